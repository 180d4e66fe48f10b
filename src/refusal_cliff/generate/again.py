"""Answers written anew after a thought that is kept: what an intervention costs little to try."""

from __future__ import annotations

import sys
from collections.abc import Collection, Sequence
from dataclasses import replace

from refusal_cliff.data.journal import Journal
from refusal_cliff.data.types import Trace, closed_spans, without_verdict
from refusal_cliff.generate.local import generate
from refusal_cliff.model.subject import Head, Subject
from refusal_cliff.progress import More
from refusal_cliff.settings import GenerationConfig
from refusal_cliff.thinking import render_prompt, response_text

ANSWER_TOKENS = 64
"""Tokens of an answer by which it is judged here: whether it refuses is said at its beginning."""


def answer_again(
    subject: Subject,
    traces: Sequence[Trace],
    config: GenerationConfig,
    row_heads: Sequence[Collection[Head]],
    *,
    most: int = ANSWER_TOKENS,
    everywhere: bool = False,
    renormalised: bool = False,
    journal: Journal | None = None,
    progress: More | None = None,
) -> list[Trace]:
    """Write answers anew with heads out from the closing tokens on, the thinking left as it is.

    A thought that several sets of heads share is run once, see ``drafts``.

    Args:
        subject: The model that wrote the traces.
        traces: Traces whose thinking closed.
        config: How answers are written.
        row_heads: Heads to take out, of each trace.
        most: Tokens of an answer that are written.
        everywhere: Whether the heads are out while prompt and thought are read, too.
        renormalised: As for `generate`.
        journal: As for `generate`.
        progress: As for `generate`.

    Returns:
        Unjudged traces as `beginning` gives them.
    """
    spans = [closed_spans(trace) for trace in traces]
    written = generate(
        subject,
        [trace.prompt for trace in traces],
        config,
        begun=[until_answer(subject, trace) for trace in traces],
        row_heads=row_heads,
        row_tokens=None if everywhere else [range(span.thinking, sys.maxsize) for span in spans],
        most=most,
        renormalised=renormalised,
        journal=journal,
        progress=progress,
    )
    return [
        beginning(subject, replace(trace, spans=replace(span, total=len(trace.token_ids))), most)
        for trace, span in zip(written, spans, strict=True)  # the thought is what it was
    ]


def answered_with(subject: Subject, trace: Trace, written: Sequence[int]) -> Trace:
    """An unjudged trace with another answer after its closing tokens."""
    ids = (*trace.token_ids[: closed_spans(trace).closing], *written)
    return _ended(subject, trace, ids, subject.ending.ends(written))


def beginning(subject: Subject, trace: Trace, most: int = ANSWER_TOKENS) -> Trace:
    """An unjudged trace with the first tokens of its answer alone, as if the model had ended there.

    One whose answer is shorter, or whose thinking never closed, stays as it is.
    """
    end = 0 if trace.spans is None else trace.spans.closing + most
    if trace.spans is None or len(trace.token_ids) < end:
        return without_verdict(trace)
    return _ended(subject, trace, trace.token_ids[:end], complete=True)


def _ended(subject: Subject, trace: Trace, ids: tuple[int, ...], complete: bool) -> Trace:
    """An unjudged trace with other tokens after its closing ones."""
    spans = replace(closed_spans(trace), total=len(ids))
    said = response_text(subject.tokenizer, subject.ending.without(ids), spans)
    return replace(
        without_verdict(trace), token_ids=ids, spans=spans, response=said, complete=complete
    )


def until_answer(subject: Subject, trace: Trace) -> list[int]:
    """What the model wrote up to the last closing token."""
    return list(trace.token_ids[prompt_length(subject, trace) : closed_spans(trace).closing])


def prompt_length(subject: Subject, trace: Trace) -> int:
    """Tokens of a trace before the first that the model wrote."""
    return len(render_prompt(subject.tokenizer, trace.prompt.text))
