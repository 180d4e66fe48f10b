"""Numbered rows of any source, in bounded memory: a row's columns, or why it cannot be read.

A source is a JSON Lines, CSV or Parquet file, a folder that ``save_to_disk`` of datasets wrote, or
the name of a data set on the Hugging Face hub. Each row is measured before it is unpacked. No row
stops the reading, and none is lost: what cannot be read is yielded as the reason. What the columns
mean is for `data.shapes` to say.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from refusal_cliff.data.types import Row, shortened
from refusal_cliff.errors import RefusalCliffError
from refusal_cliff.io import sha256_file
from refusal_cliff.tables import PARQUET_ERRORS

Found = tuple[int, Row | str]
"""Number of a row, counted from 1, and its columns or what is wrong with it."""
FILES = (".jsonl", ".csv", ".parquet")
MAX_ROW_BYTES = 8 << 20
"""A larger row is left out: no model reads that much at once."""
_TOO_LARGE = f"it is larger than {MAX_ROW_BYTES >> 20} MiB, the most that a row may have"
_OVERHEAD = 8
"""Bytes counted for every element of a list, and for every value that is no text."""
_TEXTS = (
    *(pa.string(), pa.large_string(), pa.string_view()),
    *(pa.binary(), pa.large_binary(), pa.binary_view()),
)
Sizes = NDArray[np.int64]
_PIECE = 1 << 20
_BATCH = 256
_BATCH_BYTES = _CHUNK_BYTES = 64 << 20


def read_rows(source: str | Path, split: str = "train") -> Iterator[Found]:
    """Rows of a source with their numbers: lines of JSON Lines, else data rows.

    Args:
        source: A JSON Lines, CSV or Parquet file; a folder written by ``save_to_disk`` of datasets;
            or the name of a data set on the Hugging Face hub.
        split: Split of a data set that has several.

    Raises:
        RefusalCliffError: There is no such source, or it cannot be read at all.
    """
    path = Path(source)
    ending = path.suffix.lower()
    if path.is_dir():
        yield from _of_data_set(str(source), split)
    elif ending in FILES:
        yield from _of_file(path, ending)
    elif path.exists() or _is_path(str(source)):
        raise RefusalCliffError(
            f"{path}: the ending {path.suffix!r} is not known. Give a file that ends in "
            f"{', '.join(FILES)}, a folder written by save_to_disk, or the name of a data set."
        )
    else:
        yield from _of_data_set(str(source), split)


@dataclass(frozen=True, slots=True)
class Chunk:
    """Rows that are worked on together, their place among all, and a SHA-256 of what they hold."""

    number: int
    rows: tuple[Found, ...]
    digest: str


def chunks(rows: Iterable[Found], size: int) -> Iterator[Chunk]:
    """Cut rows into chunks of ``size``, fewer where they are large: a chunk is held in memory.

    A chunk that a mended row is not in keeps its digest.
    """
    taken: list[Found] = []
    made, held, digest = 0, 0, hashlib.sha256()
    for found in rows:
        line = _canonical(found)
        taken.append(found)
        held += len(line)
        digest.update(line)
        if len(taken) == size or held >= _CHUNK_BYTES:
            yield Chunk(made, tuple(taken), digest.hexdigest())
            taken, made, held, digest = [], made + 1, 0, hashlib.sha256()
    if taken:
        yield Chunk(made, tuple(taken), digest.hexdigest())


def source_digest(source: str) -> str | None:
    """A SHA-256 of all that a file or folder holds; ``None`` for a data set of the hub."""
    path = Path(source)
    if path.is_file():
        return sha256_file(path)
    if not path.is_dir():
        return None
    digest = hashlib.sha256()
    for file in sorted(file for file in path.rglob("*") if file.is_file()):
        digest.update(f"{file.relative_to(path)}\0{sha256_file(file)}\n".encode(errors="replace"))
    return digest.hexdigest()


def _canonical(found: Found) -> bytes:
    """The same bytes for the same row; ASCII, since a row may hold half a surrogate pair."""
    return json.dumps(found, default=repr).encode() + b"\n"


def _is_path(source: str) -> bool:
    """Whether a source can only be meant as a path: names on the hub have one slash at most."""
    return source.startswith((".", "~", os.sep)) or source.count(os.sep) > 1


def _of_file(path: Path, ending: str) -> Iterator[Found]:
    read = (_json_lines, _csv_rows, _parquet_rows)[FILES.index(ending)]
    if path.exists() and not path.is_file():  # of /dev/zero there is no end
        raise RefusalCliffError(f"{path} is not a regular file. Save the rows as a file first.")
    try:
        yield from read(path)
    except PARQUET_ERRORS as error:
        raise RefusalCliffError(
            f"Could not read {path}: {shortened(error)}. Check the path, or make the file again."
        ) from error


def _json_lines(path: Path) -> Iterator[Found]:
    with path.open("rb") as file:
        for number, line in enumerate(_lines(file), start=1):
            if line is None:
                yield number, _TOO_LARGE
            elif line.strip():
                yield number, _json_object(line)


def _lines(file: BinaryIO) -> Iterator[bytes | None]:
    """Lines, or ``None`` for one that is longer than a row may be; the rest of it is skipped."""
    while line := file.readline(MAX_ROW_BYTES + 1):
        if len(line) <= MAX_ROW_BYTES or line.endswith(b"\n"):
            yield line
            continue
        while line and not line.endswith(b"\n"):
            line = file.readline(_PIECE)
        yield None


def _json_object(line: bytes) -> Row | str:
    try:
        row = json.loads(line.decode("utf-8-sig"))
        _canonical((0, row))  # nested deeper than can be written is nested too deep
    except UnicodeDecodeError as error:
        return f"it is not UTF-8 (byte {error.start})"
    except RecursionError:
        return "it is not JSON that can be read: it is nested too deep"
    except ValueError as error:
        return shortened(f"it is not JSON ({error})")
    return row if isinstance(row, dict) else "it is not an object"


_ESCAPED_QUOTE = re.compile(rb'\\"(?![,\r\n])')
_LONGEST_RECORD = 1000
"""Lines in which the end of an unreadable record is looked for."""


class _TooLong(Exception):
    """A record of CSV is larger than a row may be; all of it has been skipped."""


class _CsvLines:
    """The lines of a CSV file, for `csv.reader`, which may ask for several a record."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._pieces: Iterator[str] = iter(())
        self._encoding = "utf-8-sig"
        self.begin_record()

    def begin_record(self) -> None:
        self._size = self._quotes = self._escaped = 0

    def __iter__(self) -> _CsvLines:
        return self

    def __next__(self) -> str:
        piece = next(self._pieces, None)
        if piece is not None:
            return piece
        line = self._line()
        if not line:
            raise StopIteration
        if self._size > MAX_ROW_BYTES:
            self._skip(line)
            raise _TooLong
        text = line.decode(self._encoding, errors="surrogateescape")
        self._encoding = "utf-8"
        if "\r" not in text:
            return text
        self._pieces = iter(io.StringIO(text, newline=""))  # a lone \r ends a line of CSV, too
        return next(self._pieces)

    def _line(self) -> bytes:
        line = self._file.readline(MAX_ROW_BYTES + 1)
        self._size += len(line)
        self._quotes += line.count(b'"')
        self._escaped += len(_ESCAPED_QUOTE.findall(line))
        return line

    def end_record(self) -> None:
        """Skip what is left of an unreadable record that escapes its quotes with a backslash.

        Its other quotes then say where it ends. Where they do not, nothing is skipped.
        """
        if not self._escaped:
            return
        here = self._file.tell()
        for _ in range(_LONGEST_RECORD):
            if (self._quotes - self._escaped) % 2 == 0:
                return
            if not self._line():
                break
        self._file.seek(here)

    def _skip(self, line: bytes) -> None:
        """Go on to the first end of a line at which all quotes are closed."""
        while line and not (line.endswith(b"\n") and self._quotes % 2 == 0):
            line = self._line()


def _csv_rows(path: Path) -> Iterator[Found]:
    csv.field_size_limit(MAX_ROW_BYTES)  # 131,072 by default: less than a long thought
    with path.open("rb") as file:
        lines = _CsvLines(file)
        records = filter(None, _csv_records(lines))
        header = next(records, [])
        if isinstance(header, str):
            raise RefusalCliffError(
                f"{path}: the header cannot be read: {header}. Save the file again."
            )
        for number, cells in enumerate(records, start=1):
            yield number, cells if isinstance(cells, str) else _csv_row(header, cells)


def _csv_records(lines: _CsvLines) -> Iterator[list[str] | str]:
    reader = csv.reader(lines, strict=True)
    while True:
        lines.begin_record()
        try:
            yield next(reader)
        except StopIteration:
            return
        except _TooLong:
            yield _TOO_LARGE
        except csv.Error as error:
            lines.end_record()
            yield f"it is not CSV ({error})"


def _csv_row(header: list[str], cells: list[str]) -> Row | str:
    if len(cells) > len(header):
        return "it has more cells than the header; quote texts with commas"
    return dict.fromkeys(header) | dict(zip(header, cells, strict=False))


def _parquet_rows(path: Path) -> Iterator[Found]:
    """Texts stay in their dictionaries: unpacked, a small file may be larger than memory."""
    described = pq.read_metadata(path)
    columns = (described.schema.column(i) for i in range(described.num_columns))
    texts = [column.path for column in columns if column.physical_type == "BYTE_ARRAY"]
    size = sum(described.row_group(i).total_byte_size for i in range(described.num_row_groups))
    rows = max(1, min(_BATCH, _BATCH_BYTES * described.num_rows // max(1, size)))
    with pq.ParquetFile(path, read_dictionary=texts, buffer_size=_PIECE) as file:
        yield from enumerate(rows_of_batches(file.iter_batches(rows, use_threads=False)), start=1)


def _of_data_set(source: str, split: str) -> Iterator[Found]:
    try:
        tables = _data_set(source, split).with_format("arrow").iter(batch_size=_BATCH)
        batches = (batch for table in tables for batch in cast("pa.Table", table).to_batches())
        yield from enumerate(rows_of_batches(batches), start=1)
    except Exception as error:  # of any kind: what datasets runs into has no common base
        raise RefusalCliffError(
            f"Could not read the data set {source!r}, split {split!r}: {_first_line(error)} Give a "
            "JSON Lines, CSV or Parquet file, a folder written by save_to_disk, or a data set of "
            "the Hugging Face hub; choose the split with --split."
        ) from error


def _data_set(source: str, split: str) -> Any:
    import datasets

    if not Path(source).is_dir():
        return datasets.load_dataset(source, split=split, streaming=True)
    found = datasets.load_from_disk(source)
    return found[split] if isinstance(found, datasets.DatasetDict) else found


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".") + "."


class Unreadable:
    """A cell that has no value in Python, such as a date in the year 300,000."""

    def __init__(self, reason: str) -> None:
        self._reason = reason

    def __repr__(self) -> str:
        return f"unreadable ({self._reason})"


def rows_of_batches(batches: Iterable[pa.RecordBatch]) -> Iterator[Row | str]:
    """One row after the other, or why it cannot be read.

    Args:
        batches: Texts in them may be dictionary-encoded.

    Raises:
        pyarrow.ArrowInvalid: A dictionary lacks a value that a row names: the file is damaged, and
            Arrow itself would read beyond the end of the dictionary.
    """
    for batch in batches:
        sizes = np.zeros(batch.num_rows, dtype=np.int64)
        for column in batch.columns:
            sizes += sizes_of(column)
        for place, size in enumerate(sizes):
            yield _TOO_LARGE if size > MAX_ROW_BYTES else _row(batch.slice(place, 1))


def sizes_of(array: Any) -> Sizes:
    """Bytes of every element once it is unpacked; of values that are no texts, a rough count.

    Args:
        array: An Arrow array of any type, nested or dictionary-encoded.
    """
    kind = array.type
    if isinstance(kind, pa.BaseExtensionType):
        return sizes_of(array.storage)
    if pa.types.is_dictionary(kind):
        of_values = np.append(sizes_of(array.dictionary), 0)  # the last is that of a null
        places = array.indices.cast(pa.int64())
        low, high = pc.call_function("min_max", [places]).as_py().values()  # None if all are null
        if high is not None and not 0 <= low <= high < len(array.dictionary):
            raise pa.ArrowInvalid("a value is outside the dictionary of its column")
        return of_values[pc.fill_null(places, -1).to_numpy(zero_copy_only=False)]
    if pa.types.is_struct(kind):
        fields = (sizes_of(array.field(i)) for i in range(kind.num_fields))
        return sum(fields, start=np.zeros(len(array), dtype=np.int64))
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_map(kind):
        if pa.types.is_map(kind):
            inside = pa.StructArray.from_arrays([array.keys, array.items], ["key", "value"])
        else:
            inside = array.values
        ends = _ends(sizes_of(inside))
        offsets = array.offsets.to_numpy(zero_copy_only=False)
        return ends[offsets[1:]] - ends[offsets[:-1]]
    if pa.types.is_fixed_size_list(kind):
        ends = _ends(sizes_of(array.values))
        starts = (np.arange(len(array) + 1) + array.offset) * kind.list_size
        return ends[starts[1:]] - ends[starts[:-1]]
    if kind in _TEXTS:
        lengths = pc.fill_null(pc.call_function("binary_length", [array]), 0)
        return lengths.to_numpy(zero_copy_only=False)
    return np.full(len(array), _OVERHEAD, dtype=np.int64)


def _ends(sizes: Sizes) -> Sizes:
    """Bytes up to the end of each element; lists are differences of these."""
    return np.concatenate([[0], np.cumsum(sizes + _OVERHEAD, dtype=np.int64)])


def _row(batch: pa.RecordBatch) -> Row:
    try:
        return batch.to_pylist()[0]
    except Exception:  # of any kind: Arrow raises what Python's own types raise
        columns = zip(batch.schema.names, batch.columns, strict=True)
        return {name: _cell(column) for name, column in columns}


def _cell(column: Any) -> object:
    """One bad cell costs no more than itself: its column may not matter."""
    try:
        return column[0].as_py()
    except Exception as error:
        return Unreadable(shortened(error))
