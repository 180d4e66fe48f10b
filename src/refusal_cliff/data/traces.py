"""Prompts and traces as files that a run depends on: read strictly, and written whole."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import pyarrow as pa

from refusal_cliff.data.reading import DEFAULT, Reading, every, source_rows
from refusal_cliff.data.shapes import prompt_of_row, record_of_row
from refusal_cliff.data.types import (
    Label,
    Prompt,
    Record,
    Trace,
    complies,
    is_judged,
    row_of_prompt,
)
from refusal_cliff.errors import RefusalCliffError
from refusal_cliff.tables import read_parquet, write_parquet

TRACE_SCHEMA = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("prompt", pa.string(), nullable=False),
        pa.field("label", pa.string(), nullable=False),
        pa.field("group", pa.string(), nullable=False),
        pa.field("category", pa.string(), nullable=False),
        pa.field("tags", pa.list_(pa.string()), nullable=False),
        pa.field("token_ids", pa.list_(pa.int32()), nullable=False),
        pa.field(
            "spans",
            pa.struct([(name, pa.int32()) for name in ("prompt", "thinking", "closing", "total")]),
        ),
        pa.field("thinking", pa.string(), nullable=False),
        pa.field("response", pa.string(), nullable=False),
        pa.field("complete", pa.bool_(), nullable=False),
        pa.field("verdict", pa.string(), nullable=False),
        pa.field("thinking_cut", pa.bool_()),
    ]
)


def read_prompts(
    path: Path | str, *, label: Label | None = None, reading: Reading = DEFAULT
) -> list[Prompt]:
    """Read the prompts of a source, every row of which must be usable.

    Args:
        path: See `read_rows`.
        label: Label of rows without one; that of ``reading`` counts before it.
        reading: How rows are read.

    Raises:
        RefusalCliffError: The source or a row is not usable; the message names both.
    """
    reading = reading if label is None else reading.by_default(label)
    make = partial(prompt_of_row, path, reading=reading)
    prompts = list(every(path, source_rows(path, reading), make))
    if not prompts:
        raise RefusalCliffError(f"{path} holds no prompts. Add at least one row.")
    return prompts


@dataclass(frozen=True, slots=True)
class PromptFile:
    """A file of prompts, and how a user says that its rows are to be read."""

    path: Path
    reading: Reading = DEFAULT

    def prompts(self, label: Label | None = None) -> list[Prompt]:
        """What it holds, see `read_prompts`."""
        try:
            return read_prompts(self.path, label=label, reading=self.reading)
        except RefusalCliffError as error:
            raise RefusalCliffError(self.reading.remedy(str(error))) from error


def closed(traces: Iterable[Trace]) -> list[Trace]:
    """The traces that can be scored: their thinking closed and they were judged."""
    return [trace for trace in traces if trace.spans is not None and is_judged(trace.verdict)]


def verdict_groups(traces: Sequence[Trace]) -> dict[str, list[Trace]]:
    """Judged traces as ``refused`` and ``complied`` harmful ones and answered ``benign`` ones."""
    harmful = [trace for trace in traces if trace.prompt.label == "harmful"]
    return {
        "refused": [trace for trace in harmful if trace.verdict == "refused"],
        "complied": [trace for trace in harmful if complies(trace.verdict)],
        "benign": [
            trace for trace in traces if trace.prompt.label == "benign" and complies(trace.verdict)
        ],
    }


def write_traces(path: Path, traces: Iterable[Trace]) -> None:
    """Write traces to Parquet, one row a trace, atomically."""
    table = pa.Table.from_pylist([_row_of_trace(trace) for trace in traces], schema=TRACE_SCHEMA)
    write_parquet(path, table)


def read_traces(path: Path) -> list[Trace]:
    """Read traces written by :func:`write_traces`.

    Raises:
        RefusalCliffError: The file is not readable, lacks a column, or a row contradicts itself.
    """
    table = read_parquet(path)
    needed = [field.name for field in TRACE_SCHEMA if field.name != "thinking_cut"]  # newer
    missing = [name for name in needed if name not in table.column_names]
    if missing:
        raise RefusalCliffError(
            f"{path} is not a file of traces: it lacks the column(s) {', '.join(missing)}. "
            "Generate the traces again, or point to the right file."
        )
    rows = enumerate(table.to_pylist(), start=1)
    return [trace_of_record(record) for record in every(path, rows, partial(record_of_row, path))]


def trace_of_record(record: Record) -> Trace:
    """The trace in a record that has token ids."""
    return Trace(**{name: getattr(record, name) for name in Trace.__slots__})


def _row_of_trace(trace: Trace) -> dict[str, object]:
    return {
        **row_of_prompt(trace.prompt),
        "token_ids": list(trace.token_ids),
        "spans": None if trace.spans is None else asdict(trace.spans),
        "thinking": trace.thinking,
        "response": trace.response,
        "complete": trace.complete,
        "verdict": trace.verdict,
        "thinking_cut": trace.thinking_cut,
    }
