"""Tables of our own as Parquet: written whole, and every page and value checked when read."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from refusal_cliff.errors import RefusalCliffError
from refusal_cliff.io import atomic_path, first_fault

T = TypeVar("T")
PARQUET_ERRORS = (OSError, pa.ArrowException, UnicodeDecodeError)
"""What Arrow raises for a file that is damaged; the last for the name of a column."""


def write_parquet(path: Path, table: pa.Table, numbers: str | None = None) -> None:
    """Write a table atomically, with a checksum of each page.

    Args:
        path: The file.
        table: What it is to hold.
        numbers: Leaf column of most of it: numbers that all differ, so that no dictionary helps,
            but their bytes by place (sign and exponent apart from the rest) can be compressed.

    Raises:
        RefusalCliffError: The folder cannot be written, or the disk is full.
    """
    with atomic_path(path) as temporary:
        split = {"use_dictionary": False, "use_byte_stream_split": [numbers]} if numbers else {}
        pq.write_table(table, temporary, write_page_checksum=True, **split)


def read_parquet(path: Path, columns: Sequence[str] | None = None) -> pa.Table:
    """Read what `write_parquet` wrote; nothing that is damaged gets through.

    Args:
        path: A Parquet file.
        columns: Which of its columns; all by default.

    Raises:
        RefusalCliffError: The file is missing or damaged, or lacks a column.
    """
    try:
        table = pq.read_table(path, columns=columns, page_checksum_verification=True)
        table.validate(full=True)
        names = {name for field in table.schema for name in _names(field)}
    except PARQUET_ERRORS as error:
        said = " ".join(str(error).split())[:300]
        raise RefusalCliffError(
            f"Could not read {path}: {said}. Check the path, or make the file again."
        ) from error
    if lacking := set(columns or ()) - names:
        raise RefusalCliffError(
            f"{path} lacks the column(s) {', '.join(sorted(lacking))}. Make the file again."
        )
    return table


def rows_as(path: Path, table: pa.Table, kind: type[T], what: str) -> list[T]:
    """The rows of a table of ours; nothing of another shape gets through.

    Args:
        path: Where it was read from.
        table: The table.
        kind: A dataclass, one field for each column.
        what: What it is a table of, for the error.

    Raises:
        RefusalCliffError: A column is missing or unknown, or a value is none of its field.
    """
    from pydantic import TypeAdapter, ValidationError  # slow to import

    read, rows = TypeAdapter(kind).validate_python, list[T]()
    for number, row in enumerate(table.to_pylist(), start=1):
        try:
            rows.append(read(row))
        except ValidationError as error:
            raise RefusalCliffError(
                f"{path} is not a table of {what} (row {number}, {first_fault(error)}): it is "
                "another file, damaged, or of another version. Give that of a run folder of this "
                "version, such as RUN/model of audit."
            ) from error
    return rows


def _names(field: pa.Field) -> list[str]:
    """Name of a column and of all inside it: Arrow decodes each only when it is asked for."""
    inside = map(field.type.field, range(field.type.num_fields))
    return [field.name, *(name for part in inside for name in _names(part))]
