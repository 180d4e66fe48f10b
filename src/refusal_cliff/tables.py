"""Tables of our own as Parquet: written whole, and every page and value checked when read.

A table of one row for each trace can be larger than the memory, so that it is written and read in
parts, too.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from refusal_cliff.errors import RefusalCliffError
from refusal_cliff.io import atomic_path, first_fault

T = TypeVar("T")
PARQUET_ERRORS = (OSError, pa.ArrowException, UnicodeDecodeError)
"""What Arrow raises for a file that is damaged; the last for the name of a column."""
_BYTES_AT_ONCE = 1 << 24
_BUFFER = 1 << 20
"""Bytes of a column that are read at a time; with Arrow's defaults the whole file is in memory."""


def write_parquet(path: Path, table: pa.Table) -> None:
    """Write a table atomically, with a checksum of each page.

    Raises:
        RefusalCliffError: The folder cannot be written, or the disk is full.
    """
    write_parquet_parts(path, table.schema, [table])


def write_parquet_parts(
    path: Path, schema: pa.Schema, parts: Iterable[pa.Table], numbers: str | None = None
) -> None:
    """Write a table as `write_parquet` does, one part in memory at a time.

    Args:
        path: The file.
        schema: Of the table.
        parts: Its rows in order.
        numbers: Leaf column of most of it: numbers that all differ, so that no dictionary helps,
            but their bytes by place (sign and exponent apart from the rest) can be compressed.

    Raises:
        RefusalCliffError: The folder cannot be written, or the disk is full.
    """
    split = {"use_dictionary": False, "use_byte_stream_split": [numbers]} if numbers else {}
    with (
        atomic_path(path) as temporary,
        pq.ParquetWriter(temporary, schema, write_page_checksum=True, **split) as writer,
    ):
        for part in parts:
            writer.write_table(part)


def read_parquet(path: Path, columns: Sequence[str] | None = None) -> pa.Table:
    """Read what `write_parquet` wrote; nothing that is damaged gets through.

    Args:
        path: A Parquet file.
        columns: Which of its columns; all by default.

    Raises:
        RefusalCliffError: The file is missing or damaged, or lacks a column.
    """
    with _said_of(path):
        table = pq.read_table(path, columns=columns, page_checksum_verification=True)
        table.validate(full=True)
        names = {name for field in table.schema for name in _names(field)}
    _require_columns(path, columns or (), names)
    return table


def read_parquet_parts(path: Path, schema: pa.Schema) -> Iterator[pa.Table]:
    """Read a table as `read_parquet` does, a few rows in memory at a time.

    Args:
        path: A Parquet file.
        schema: Its columns and their types.

    Raises:
        RefusalCliffError: The file is missing or damaged, or one of something else.
    """
    with _said_of(path):
        file = pq.ParquetFile(
            path, pre_buffer=False, buffer_size=_BUFFER, page_checksum_verification=True
        )
        found = file.schema_arrow
        _require_columns(path, schema.names, {name for field in found for name in _names(field)})
        if found.names != schema.names or found.types != schema.types:
            raise pa.ArrowInvalid(f"its columns are not {', '.join(schema.names)} of their types")
    left = file.metadata.num_rows
    with file:
        parts = file.iter_batches(_rows_at_once(file.metadata))
        while True:
            with _said_of(path):
                batch = next(parts, None)
                if batch is None and left:  # Arrow stops without a word where a footer is damaged
                    raise pa.ArrowInvalid(f"{left} of its rows are missing")
                if batch is None:
                    return
                left -= len(batch)
                part = pa.Table.from_batches([batch])
                part.validate(full=True)
            yield part


def _rows_at_once(told: pq.FileMetaData) -> int:
    size = sum(told.row_group(group).total_byte_size for group in range(told.num_row_groups))
    return max(1, told.num_rows * _BYTES_AT_ONCE // max(1, size))


@contextmanager
def _said_of(path: Path) -> Iterator[None]:
    """Name the file that Arrow found missing or damaged."""
    try:
        yield
    except PARQUET_ERRORS as error:
        said = " ".join(str(error).split())[:300]
        raise RefusalCliffError(
            f"Could not read {path}: {said}. Check the path, or make the file again."
        ) from error


def _require_columns(path: Path, wanted: Iterable[str], names: set[str]) -> None:
    if lacking := set(wanted) - names:
        raise RefusalCliffError(
            f"{path} lacks the column(s) {', '.join(sorted(lacking))}. Make the file again."
        )


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
