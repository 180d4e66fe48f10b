"""What a model said to one prompt, wherever it ran, judged or not: one row of ``traces.jsonl``."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

from refusal_cliff.data.reading import DEFAULT, Reading, source_rows, used_and_left_out
from refusal_cliff.data.said import status_of
from refusal_cliff.data.shapes import record_of_row
from refusal_cliff.data.types import LeftOut, Record, Trace, Verdict, row_of_prompt
from refusal_cliff.errors import RefusalCliffError
from refusal_cliff.io import fields_of, write_json_lines


def record_of_trace(trace: Trace) -> Record:
    """The record of a trace with token ids."""
    closed = trace.spans is not None
    status = status_of(trace.thinking, trace.response, closed, trace.complete)
    return Record(**fields_of(trace), closed=closed, status=status)


def row_of_record(record: Record) -> dict[str, Any]:
    """A record as a row of JSON; the tokens only where there are some."""
    row = asdict(record)
    del row["prompt"]
    if not record.token_ids:
        del row["token_ids"], row["spans"]
    elif record.prompt_tokens is not None:
        del row["spans"]
    return {**row_of_prompt(record.prompt), **row}


def read_records(
    source: str | Path, reading: Reading = DEFAULT
) -> tuple[list[Record], list[LeftOut]]:
    """Answers out of a source that may hold anything, and the rows that are none.

    Raises:
        RefusalCliffError: The source cannot be read at all, or holds no answer.
    """
    make = partial(record_of_row, source, reading=reading)
    records, left_out = used_and_left_out(source, source_rows(source, reading), make)
    if not records:
        first = f" Row {left_out[0].row}: {left_out[0].why}" if left_out else ""
        raise RefusalCliffError(f"{source} holds no answer to judge.{first}")
    return records, left_out


def write_records(path: Path, records: Iterable[Record]) -> None:
    """Write records as JSON Lines, atomically."""
    write_json_lines(path, map(row_of_record, records))


def write_left_out(path: Path, rows: Iterable[LeftOut]) -> None:
    """Write the rows without an answer as JSON Lines, atomically."""
    write_json_lines(path, map(asdict, rows))


def with_verdict(
    record: Record, judge: str, verdict: Verdict, score: float | None, reason: str
) -> Record:
    """The record as a judge leaves it."""
    return replace(record, verdict=verdict, judge=judge, score=score, reason=reason)
