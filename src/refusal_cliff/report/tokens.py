"""The tokens of one trace, coloured by their score."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from refusal_cliff.report.data import ExampleTrace
from refusal_cliff.report.lines import known
from refusal_cliff.report.palette import sequential
from refusal_cliff.report.words import count, number, token_text

MAX_TOKENS = 400
"""Thinking tokens shown; a longer thought loses its middle, because the cliff is at its end."""
_BEFORE_GAP = 80


@dataclass(frozen=True, slots=True)
class Token:
    """One token as it is shown.

    Attributes:
        text: What to write.
        class_: CSS classes; the colour of its score is one of them.
        tip: Its place and its score, in words.
    """

    text: str
    class_: str
    tip: str


def tokens_of(trace: ExampleTrace) -> list[Token]:
    """Thinking, closing and answer of a trace; the prompt is shown elsewhere."""
    spans = trace.spans
    thinking = _shortened([_token(trace, i) for i in range(spans.prompt, spans.thinking)])
    rest = [_token(trace, i) for i in range(spans.thinking, len(trace.pieces))]
    return [*thinking, *rest]


def _shortened(tokens: Sequence[Token]) -> list[Token]:
    left_out = len(tokens) - MAX_TOKENS
    if left_out <= 0:
        return list(tokens)
    note = Token(f" ⋯ {count(left_out, 'token')} left out ⋯ ", "gap", "")
    return [*tokens[:_BEFORE_GAP], note, *tokens[_BEFORE_GAP + left_out :]]


def _token(trace: ExampleTrace, at: int) -> Token:
    spans, score, piece = trace.spans, trace.scores[at], trace.pieces[at]
    closing = spans.thinking <= at < spans.closing
    if at >= spans.closing:
        return Token(piece, "answer", "answer · no score: the probe was not fitted here")
    place = f"token {number(at - spans.last_closing, 0)}"
    classes = ["closing"] if closing else []
    if score is None or not known(score):
        return Token(piece, " ".join(classes), f"{place} · not measured")
    text = token_text(piece) if closing else piece
    tip = f"{place} · score {number(score)}"
    return Token(text, " ".join(["scored", sequential(score), *classes]), tip)
