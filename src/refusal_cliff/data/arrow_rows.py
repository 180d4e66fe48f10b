"""Rows out of Arrow batches: each is measured before it is unpacked, and read on its own."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from refusal_cliff.data.types import Row, shortened

MAX_ROW_BYTES = 8 << 20
"""A larger row is left out: no model reads that much at once."""
_OVERHEAD = 8
"""Bytes counted for every element of a list, and for every value that is no text."""
_TEXTS = (
    *(pa.string(), pa.large_string(), pa.string_view()),
    *(pa.binary(), pa.large_binary(), pa.binary_view()),
)
Sizes = NDArray[np.int64]


class Unreadable:
    """A cell that has no value in Python, such as a date in the year 300,000."""

    def __init__(self, reason: str) -> None:
        self._reason = reason

    def __repr__(self) -> str:
        return f"unreadable ({self._reason})"


def too_large() -> str:
    """Why a row is left out that is larger than `MAX_ROW_BYTES`."""
    return f"it is larger than {MAX_ROW_BYTES >> 20} MiB, the most that a row may have"


def rows_of_batches(batches: Iterable[pa.RecordBatch]) -> Iterator[Row | str]:
    """One row after the other, or why it cannot be read; texts may be dictionary-encoded.

    Raises:
        pyarrow.ArrowInvalid: A dictionary lacks a value that a row names: the file is damaged, and
            Arrow itself would read beyond the end of the dictionary.
    """
    for batch in batches:
        sizes = np.zeros(batch.num_rows, dtype=np.int64)
        for column in batch.columns:
            sizes += sizes_of(column)
        for place, size in enumerate(sizes):
            yield too_large() if size > MAX_ROW_BYTES else _row(batch.slice(place, 1))


def sizes_of(array: Any) -> Sizes:
    """Bytes of every element once it is unpacked; of values that are no texts, a rough count."""
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
