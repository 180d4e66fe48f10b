"""Prompts and traces as files.

The Parquet files of a run are read strictly. What others wrote may hold anything: of
``traces.jsonl`` and other sources, each row is used or left out.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa

from refusal_cliff.data.fields import SPANS, checked_label
from refusal_cliff.data.reading import DEFAULT, Reading, every, source_rows, used_and_left_out
from refusal_cliff.data.said import told_of
from refusal_cliff.data.shapes import prompt_of_row, trace_of_row
from refusal_cliff.data.types import (
    Label,
    LeftOut,
    Prompt,
    Trace,
    complies,
    is_judged,
    row_of_prompt,
)
from refusal_cliff.errors import RefusalCliffError
from refusal_cliff.io import fields_of, write_json_lines
from refusal_cliff.tables import read_parquet, write_parquet

_NEEDED = {
    **dict.fromkeys(("id", "prompt", "label", "group", "category"), pa.string()),
    "tags": pa.list_(pa.string()),
    "token_ids": pa.list_(pa.int32()),
    "spans": pa.struct([(name, pa.int32()) for name in SPANS]),
    **dict.fromkeys(("thinking", "response"), pa.string()),
    "complete": pa.bool_(),
    "verdict": pa.string(),
}
_NEWER = {
    "thinking_cut": pa.bool_(),
    "judge": pa.string(),
    "score": pa.float64(),
    "reason": pa.string(),
}
"""Columns that files of earlier versions do not have."""
TRACE_SCHEMA = pa.schema(
    [
        *(pa.field(name, kind, nullable=name == "spans") for name, kind in _NEEDED.items()),
        *_NEWER.items(),
    ]
)


def read_prompts(
    path: Path | str, *, label: str | None = None, reading: Reading = DEFAULT
) -> list[Prompt]:
    """Read the prompts of a source, every row of which must be usable.

    Args:
        path: A JSON Lines, CSV or Parquet file, a folder written by ``save_to_disk`` of datasets,
            or a data set of the Hugging Face hub.
        label: Label of rows without one: ``harmful`` or ``benign``, or another word for it; that
            of ``reading`` counts before it.
        reading: How rows are read.

    Raises:
        RefusalCliffError: The source or a row is not usable; the message names both.
    """
    label = checked_label(label)
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
    rows = [_columns_of(trace) for trace in traces]
    write_parquet(path, pa.Table.from_pylist(rows, schema=TRACE_SCHEMA))


def read_traces(path: Path) -> list[Trace]:
    """Read traces written by :func:`write_traces`.

    Raises:
        RefusalCliffError: The file is not readable, lacks a column, or a row contradicts itself.
    """
    table = read_parquet(path)
    missing = [name for name in _NEEDED if name not in table.column_names]
    if missing:
        raise RefusalCliffError(
            f"{path} is not a file of traces: it lacks the column(s) {', '.join(missing)}. "
            "Generate the traces again, or point to the right file."
        )
    rows = enumerate(table.to_pylist(), start=1)
    return list(every(path, rows, partial(trace_of_row, path)))


def _columns_of(trace: Trace) -> dict[str, Any]:
    columns = fields_of(trace)
    del columns["prompt"], columns["told"]
    spans = None if trace.spans is None else asdict(trace.spans)
    return {**row_of_prompt(trace.prompt), **columns, "spans": spans}


def row_of_trace(trace: Trace) -> dict[str, Any]:
    """A trace as a row of ``traces.jsonl``; the tokens only where there are some."""
    row = {**_columns_of(trace), **asdict(told_of(trace))}
    if not trace.token_ids:
        del row["token_ids"], row["spans"]
    elif row["prompt_tokens"] is not None:
        del row["spans"]
    return row


def write_answers(path: Path, traces: Iterable[Trace]) -> None:
    """Write traces as JSON Lines, in text or in tokens, atomically."""
    write_json_lines(path, map(row_of_trace, traces))


def read_answers(
    source: str | Path, reading: Reading = DEFAULT
) -> tuple[list[Trace], list[LeftOut]]:
    """What models answered, out of a source that may hold anything, and the rows that are none.

    Raises:
        RefusalCliffError: The source cannot be read at all, or holds no answer.
    """
    make = partial(trace_of_row, source, reading=reading)
    traces, left_out = used_and_left_out(source, source_rows(source, reading), make)
    if not traces:
        first = f" Row {left_out[0].row}: {left_out[0].why}" if left_out else ""
        raise RefusalCliffError(f"{source} holds no answer to judge.{first}")
    return traces, left_out


def write_left_out(path: Path, rows: Iterable[LeftOut]) -> None:
    """Write rows that are not used as JSON Lines, atomically."""
    write_json_lines(path, map(asdict, rows))
