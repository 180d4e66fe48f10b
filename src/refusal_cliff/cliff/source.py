"""Traces out of rows of any shape, as the model would have written them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from refusal_cliff.cliff.restore import agrees, as_written
from refusal_cliff.data.fields import bad
from refusal_cliff.data.reading import DEFAULT, Reading
from refusal_cliff.data.said import REFUSAL_FIELD
from refusal_cliff.data.shapes import record_of_row
from refusal_cliff.data.traces import trace_of_record
from refusal_cliff.data.types import Record, Row, Trace
from refusal_cliff.judges import RulesJudge, judge_traces
from refusal_cliff.model.subject import Subject
from refusal_cliff.thinking import (
    Spans,
    ThinkingFormat,
    response_text,
    split_spans,
    thinking_text,
    tokenise_trace,
)

_ENDED = ("stop", "eos_token")
"""Words of servers for: the model wrote its end-of-sequence token."""


def read_trace(
    source: str | Path, number: int, row: Row, subject: Subject, reading: Reading = DEFAULT
) -> Trace:
    """One trace out of a row, see `told_record` and `trace_of`.

    Raises:
        RefusalCliffError: The row is not usable; the message says why.
    """
    return trace_of(told_record(source, number, row, subject, reading), subject)


def told_record(
    source: str | Path, number: int, row: Row, subject: Subject, reading: Reading = DEFAULT
) -> Record:
    """What a row says that a model wrote, its thinking between that model's markers or others.

    Args:
        source: File or data set; names rows without an id.
        number: Number of the row.
        row: Its columns.
        subject: The model that wrote it.
        reading: How rows are read.

    Raises:
        BadRow: The row is not usable.
    """
    fmt = subject.format
    thinks = fmt.thinks and fmt.opened_by_prompt
    reading = reading.of_model(fmt)
    return record_of_row(source, number, row, reading, asked_again=True, thinks=thinks)


def answered_trace(record: Record, subject: Subject) -> Trace:
    """The unjudged trace of a record, in the tokens that the model wrote.

    Args:
        record: What was read.
        subject: The model that wrote it.

    Raises:
        RefusalCliffError: As for `trace_of`; or it is longer than the model's context, or the text
            does not give back the tokens that its server counted.
    """
    trace = trace_of(record, subject)
    if subject.context is not None and len(trace.token_ids) > subject.context:
        raise bad("it is longer than the model's context", "drop it")
    if trace.spans is not None:
        trace = as_written(subject, trace, record)
    if trace.spans is not None and not agrees(trace, record):
        raise bad(
            "its text does not give back the tokens that the server counted",
            "let the server tell token ids, or let the model here answer the prompt",
        )
    return replace(trace, verdict="unscored")


def trace_of(record: Record, subject: Subject) -> Trace:
    """The trace of a record: its token ids where it has them, else its text tokenised once.

    A record that no judge has seen is judged by the phrase rules. Of answers from an endpoint,
    ``written`` is all that the model wrote, ``finish`` says whether the end-of-sequence token
    followed, and ``token_ids`` with ``prompt_tokens`` are the tokens themselves, where the server
    told them.

    Args:
        record: What was read.
        subject: The model that wrote it.

    Raises:
        RefusalCliffError: The tokens are not the model's, or the text cannot be one of its traces.
    """
    _check_vocabulary(record, subject)
    trace = trace_of_record(record) if _has_spans(record) else _tokenised(record, subject)
    if trace.verdict != "unscored" or record.judge:  # no other judge steps in for one
        return trace
    if record.status == REFUSAL_FIELD:
        return replace(trace, verdict="refused")
    return judge_traces([trace], RulesJudge())[0]


def _has_spans(record: Record) -> bool:
    """Whether the token ids are split already: into spans, or as a thought that never closed."""
    told = bool(record.token_ids) and record.prompt_tokens is None
    return told and (record.spans is not None or not record.closed)


def _tokenised(record: Record, subject: Subject) -> Trace:
    ids, spans = _ids_and_spans(record, subject)
    trace = replace(trace_of_record(record), token_ids=tuple(ids), spans=None)
    if spans is None or not record.closed:
        return trace
    return replace(
        trace,
        spans=spans,
        thinking=thinking_text(subject.tokenizer, ids, spans),
        response=response_text(subject.tokenizer, subject.ending.without(ids), spans),
    )


def _written(record: Record, fmt: ThinkingFormat) -> tuple[str | None, str]:
    """Thinking and response, or ``None`` and all that the model wrote.

    What it wrote in one piece stays as it is, blanks included; thinking that is marked in another
    way than the model's own, or stands apart, is put between the model's own markers.
    """
    whole = record.written
    closer = fmt.answer or fmt.closer
    marked = not record.thinking or not record.closed or (closer != "" and closer in (whole or ""))
    if whole is not None and marked:
        return None, _without_opener(whole, fmt)
    if not record.closed:  # a thought that never ended, in a field of its own
        return None, fmt.opening + record.thinking
    return record.thinking, (record.thinking and record.beside) or record.response


def _without_opener(whole: str, fmt: ThinkingFormat) -> str:
    """The text without an opener that the prompt has written already: servers may put it back."""
    text = whole.lstrip()
    if not (fmt.opened_by_prompt and text.startswith(fmt.opener)):
        return whole
    return text.removeprefix(fmt.opener).removeprefix(fmt.tail.rpartition(fmt.opener)[2])


def _ids_and_spans(record: Record, subject: Subject) -> tuple[list[int], Spans | None]:
    """The tokens that a server told, or else those of the text with the token that ended it."""
    tokenizer, fmt = subject.tokenizer, subject.format
    if record.token_ids and record.prompt_tokens is not None:
        ids = list(record.token_ids)
        return ids, split_spans(ids, record.prompt_tokens, tokenizer, fmt)
    ids, spans = tokenise_trace(tokenizer, fmt, record.prompt.text, *_written(record, fmt))
    if record.finish in _ENDED and not subject.ending.ends(ids):
        ids = [*ids, *subject.ending.written[:1]]  # unless the server left it in the text
        spans = None if spans is None else replace(spans, total=len(ids))
    return ids, spans


def _check_vocabulary(record: Record, subject: Subject) -> None:
    size = subject.vocabulary
    if record.token_ids and max(record.token_ids) >= size:
        raise bad(
            f"token {max(record.token_ids)} is not among the {size} of {subject.name}",
            "score the traces with the model that wrote them, or drop the column token_ids",
        )
