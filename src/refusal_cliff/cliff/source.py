"""Traces in the tokens of a model, out of rows of any shape."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from refusal_cliff.cliff.restore import agrees, as_written
from refusal_cliff.data.fields import bad
from refusal_cliff.data.reading import DEFAULT, Reading
from refusal_cliff.data.said import REFUSAL_FIELD, told_of
from refusal_cliff.data.shapes import trace_of_row
from refusal_cliff.data.types import Row, Trace, without_verdict
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
    """One trace out of a row, see `told_trace` and `in_tokens`.

    Raises:
        RefusalCliffError: The row is not usable; the message says why.
    """
    return in_tokens(told_trace(source, number, row, subject, reading), subject)


def told_trace(
    source: str | Path, number: int, row: Row, subject: Subject, reading: Reading = DEFAULT
) -> Trace:
    """What a row says that a model wrote, its thinking between that model's markers or others.

    Raises:
        BadRow: The row is not usable.
    """
    fmt = subject.format
    thinks = fmt.thinks and fmt.opened_by_prompt
    reading = reading.of_model(fmt)
    return trace_of_row(source, number, row, reading, asked_again=True, thinks=thinks)


def answered_trace(told: Trace, subject: Subject) -> Trace:
    """An unjudged trace in the tokens that the model wrote.

    Raises:
        RefusalCliffError: As for `in_tokens`; or it is longer than the model's context, or the text
            does not give back the tokens that its server counted.
    """
    trace = in_tokens(told, subject)
    if subject.context is not None and len(trace.token_ids) > subject.context:
        raise bad("it is longer than the model's context", "drop it")
    if trace.spans is not None:
        trace = as_written(subject, trace, told)
    if trace.spans is not None and not agrees(trace, told_of(told)):
        raise bad(
            "its text does not give back the tokens that the server counted",
            "let the server tell token ids, or let the model here answer the prompt",
        )
    return without_verdict(trace)


def in_tokens(told: Trace, subject: Subject) -> Trace:
    """A trace in tokens: those that it has, else its text tokenised once.

    One that no judge has seen is judged by the phrase rules. Of a text, ``written`` is all that the
    model wrote, ``finish`` says whether the end-of-sequence token followed, and ``token_ids`` with
    ``prompt_tokens`` are the tokens themselves, where the server told them.

    Raises:
        RefusalCliffError: The tokens are not the model's, or the text cannot be one of its traces.
    """
    _check_vocabulary(told, subject)
    trace = told if told.told is None else _tokenised(told, subject)
    if trace.verdict != "unscored" or trace.judge:  # no other judge steps in for one
        return trace
    if told_of(told).status == REFUSAL_FIELD:
        return replace(trace, verdict="refused")
    return judge_traces([trace], RulesJudge())[0]


def _tokenised(told: Trace, subject: Subject) -> Trace:
    ids, spans = _ids_and_spans(told, subject)
    trace = replace(told, token_ids=tuple(ids), spans=None, told=None)
    if spans is None or not told.closed:
        return trace
    return replace(
        trace,
        spans=spans,
        thinking=thinking_text(subject.tokenizer, ids, spans),
        response=response_text(subject.tokenizer, subject.ending.without(ids), spans),
    )


def _written(trace: Trace, fmt: ThinkingFormat) -> tuple[str | None, str]:
    """Thinking and response, or ``None`` and all that the model wrote.

    What it wrote in one piece stays as it is, blanks included; thinking that is marked in another
    way than the model's own, or stands apart, is put between the model's own markers.
    """
    told = told_of(trace)
    whole = told.written
    closer = fmt.answer or fmt.closer
    marked = not trace.thinking or not told.closed or (closer != "" and closer in (whole or ""))
    if whole is not None and marked:
        return None, _without_opener(whole, fmt)
    if not told.closed:  # a thought that never ended, in a field of its own
        return None, fmt.opening + trace.thinking
    return trace.thinking, (trace.thinking and told.beside) or trace.response


def _without_opener(whole: str, fmt: ThinkingFormat) -> str:
    """The text without an opener that the prompt has written already: servers may put it back."""
    text = whole.lstrip()
    if not (fmt.opened_by_prompt and text.startswith(fmt.opener)):
        return whole
    return text.removeprefix(fmt.opener).removeprefix(fmt.tail.rpartition(fmt.opener)[2])


def _ids_and_spans(trace: Trace, subject: Subject) -> tuple[list[int], Spans | None]:
    """The tokens that a server told, or else those of the text with the token that ended it."""
    tokenizer, fmt = subject.tokenizer, subject.format
    told = told_of(trace)
    if trace.token_ids and told.prompt_tokens is not None:
        ids = list(trace.token_ids)
        return ids, split_spans(ids, told.prompt_tokens, tokenizer, fmt)
    ids, spans = tokenise_trace(tokenizer, fmt, trace.prompt.text, *_written(trace, fmt))
    if told.finish in _ENDED and not subject.ending.ends(ids):
        ids = [*ids, *subject.ending.written[:1]]  # unless the server left it in the text
        spans = None if spans is None else replace(spans, total=len(ids))
    return ids, spans


def _check_vocabulary(trace: Trace, subject: Subject) -> None:
    size = subject.vocabulary
    if trace.token_ids and max(trace.token_ids) >= size:
        raise bad(
            f"token {max(trace.token_ids)} is not among the {size} of {subject.name}",
            "score the traces with the model that wrote them, or drop the column token_ids",
        )
