"""What a model said to one prompt, wherever it ran, judged or not: one row of ``traces.jsonl``."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, cast

from refusal_cliff.data.said import known_status, status_of
from refusal_cliff.data.traces import (
    VERDICTS,
    Prompt,
    Row,
    Trace,
    Verdict,
    prompt_of_row,
    row_error,
)
from refusal_cliff.errors import RefusalCliffError
from refusal_cliff.io import write_json_lines
from refusal_cliff.thinking import Spans


@dataclass(frozen=True, slots=True)
class Record:
    """One answer.

    Attributes:
        prompt: What was asked.
        thinking: The thinking, without markers.
        response: The answer; empty where the thinking never closed.
        closed: Whether the thinking ended. A model that does not think has always ended it.
        complete: Whether the model ended its answer itself.
        written: All that the model wrote, where it came in one text; what is scored later.
        beside: The text beside a thought that came in a field of its own, where it holds more than
            the answer, see `Said`; what is scored later.
        token_ids: The tokens, prompt first, of a model that ran here, or of an endpoint that tells
            them.
        spans: Ends of the four parts of ``token_ids`` of a model that ran here; those of an
            endpoint are split where its tokenizer is known.
        thinking_cut: Whether a budget closed the thinking.
        finish: Why an endpoint stopped, in its own word, or ``UNTOLD``.
        status: Why there is no answer, one of ``UNANSWERED``; or ``REFUSAL_FIELD``; else empty.
        tokens: How many tokens prompt and answer had, as the endpoint counted; a text that does
            not give back as many has lost some.
        prompt_tokens: How many of them the prompt had.
        verdict: What the judge says.
        judge: Which judge.
        score: Degree of harm from 0 to 1, of a judge that grades.
        reason: The judge's words, or why there is no verdict.
    """

    prompt: Prompt
    thinking: str
    response: str
    closed: bool
    complete: bool
    written: str | None = None
    beside: str = ""
    token_ids: tuple[int, ...] = ()
    spans: Spans | None = None
    thinking_cut: bool = False
    finish: str = ""
    status: str = ""
    tokens: int | None = None
    prompt_tokens: int | None = None
    verdict: Verdict = "unscored"
    judge: str = ""
    score: float | None = None
    reason: str = ""


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A row without an answer, and why."""

    id: str
    row: int | None
    reason: str


def record_of_trace(trace: Trace) -> Record:
    """The record of a trace with token ids."""
    return Record(
        trace.prompt,
        trace.thinking,
        trace.response,
        closed=trace.spans is not None,
        complete=trace.complete,
        token_ids=trace.token_ids,
        spans=trace.spans,
        status=status_of_trace(trace),
        thinking_cut=trace.thinking_cut,
        verdict=trace.verdict,
    )


def status_of_trace(trace: Trace) -> str:
    """The `Record.status` of a trace."""
    return status_of(trace.thinking, trace.response, trace.spans is not None, trace.complete)


def row_of_record(record: Record) -> dict[str, Any]:
    """A record as a row of JSON; the tokens only where there are some."""
    row = asdict(record)
    prompt = row.pop("prompt")
    prompt["prompt"] = prompt.pop("text")
    if not record.token_ids:
        del row["token_ids"], row["spans"]
    elif record.prompt_tokens is not None:
        del row["spans"]
    return {**prompt, **row}


def record_of_row(source: Path, number: int, row: Row) -> Record:
    """A record out of a row of any file that holds a prompt and what a model answered.

    Raises:
        RefusalCliffError: The row is not usable; the message says which and why.
    """
    prompt = prompt_of_row(source, number, row, None)
    verdict = row.get("verdict") or "unscored"
    if verdict not in VERDICTS:
        wrong = f"the verdict is {verdict!r}"
        raise row_error(source, number, wrong, f"use one of {', '.join(VERDICTS)}")
    response = row.get("response")
    if not isinstance(response, str):
        wrong = f"'response' is {response!r}, not a text"
        raise row_error(source, number, wrong, "put what the model answered into 'response'")
    spans = cast("dict[str, int] | None", row.get("spans"))
    return Record(
        prompt,
        str(row.get("thinking") or ""),
        response,
        closed=bool(row.get("closed", row.get("spans", True) is not None)),
        complete=bool(row.get("complete", True)),
        written=cast("str | None", row.get("written")),
        beside=str(row.get("beside") or ""),
        token_ids=tuple(cast("list[int]", row.get("token_ids") or ())),
        spans=None if spans is None else Spans(**spans),
        thinking_cut=bool(row.get("thinking_cut")),
        finish=str(row.get("finish") or ""),
        status=known_status(row.get("status")),
        tokens=cast("int | None", row.get("tokens")),
        prompt_tokens=cast("int | None", row.get("prompt_tokens")),
        verdict=cast("Verdict", verdict),
        judge=str(row.get("judge") or ""),
        score=cast("float | None", row.get("score")),
        reason=str(row.get("reason") or ""),
    )


def write_records(path: Path, records: Iterable[Record]) -> None:
    """Write records as JSON Lines, atomically."""
    write_json_lines(path, map(row_of_record, records))


def write_left_out(path: Path, rows: Iterable[LeftOut]) -> None:
    """Write the rows without an answer as JSON Lines, atomically."""
    write_json_lines(path, map(asdict, rows))


def shortened(error: RefusalCliffError | str, most: int = 300) -> str:
    """A reason that fits a line: what a row holds may be a megabyte."""
    text = " ".join(str(error).split())
    return text if len(text) <= most else f"{text[: most // 2]} … {text[-most // 2 :]}"


def with_verdict(
    record: Record, judge: str, verdict: Verdict, score: float | None, reason: str
) -> Record:
    """The record as a judge leaves it."""
    return replace(record, verdict=verdict, judge=judge, score=score, reason=reason)
