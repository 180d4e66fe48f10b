"""The tokens that an answer was written in, where a server tells its text alone.

Servers that tell thinking and answer apart often strip the blanks around both, and the text alone
does not say which; a word without its blank is other tokens, too. The server's count of tokens may
say that something is missing. The model, which is here, says what: an answer decoded greedily is
one that the model itself would write again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from refusal_cliff.data.said import told_of
from refusal_cliff.data.types import Told, Trace
from refusal_cliff.model.blocks import decoder_of
from refusal_cliff.model.final_norm import logits_of
from refusal_cliff.model.subject import Subject
from refusal_cliff.thinking import render_prompt, split_spans

_NEAR = 0.1
"""Logits closer than this to the highest may have been the highest where the server computed."""
_MOST = 256
"""Tokens put right at most."""
_AHEAD = 512
"""Tokens looked at before all others are: answers that were sampled seldom get further."""
_AT_ONCE = 512
"""Tokens whose logits are in memory at once."""


def agrees(trace: Trace, told: Told) -> bool:
    """Whether a text gave back as many tokens as its server counted, or the server did not count.

    One more is agreement too: not every server counts the end-of-sequence token.
    """
    return told.tokens is None or 0 <= len(trace.token_ids) - told.tokens <= 1


def as_written(subject: Subject, trace: Trace, told: Trace) -> Trace:
    """The trace in the tokens that the model wrote, as far as they can be known.

    The model is asked only about texts whose server counted the tokens and did not tell them; of
    any other there is nothing to hold an answer against. Where `put_back` finds no tokens the trace
    stays as it is, for what was sampled need not be what the model would write; `agrees` says
    whether to believe it.
    """
    server = told_of(told)
    if told.token_ids or server.tokens is None:
        return trace
    return put_back(subject, trace, server) or trace


def put_back(subject: Subject, trace: Trace, told: Told) -> Trace | None:
    """The trace with the blanks that its server stripped; ``None`` if they cannot be known.

    From the first written token on, wherever the model would greedily have written another token
    that differs from the text in blanks alone, that token takes the place of what it says, and the
    rest of the text is tokenised again. The result counts only if every token of it is then what
    the model writes, to within rounding, and if prompt and whole have exactly the tokens that the
    server counted: it is what the model writes to this prompt, and the text told, blanks aside.
    There is none for an answer that was sampled, or written by another model. A trace in which
    nothing was missing is given back itself.
    """
    prompt = tuple(render_prompt(subject.tokenizer, trace.prompt.text))
    start = len(prompt)
    if told.prompt_tokens not in (None, start) or trace.token_ids[:start] != prompt:
        return None
    total = len(trace.token_ids) if told.tokens is None else told.tokens
    ids = _greedy(subject, trace.token_ids, start, total, near=0.0)  # ties as they fall here
    if ids is None:
        ids = _greedy(subject, trace.token_ids, start, total, near=_NEAR)  # ties as the text says
    if ids is None:
        return None
    if tuple(ids) == trace.token_ids:
        return trace
    spans = split_spans(ids, start, subject.tokenizer, subject.format)
    return replace(trace, token_ids=tuple(ids), spans=None if trace.spans is None else spans)


def blanks_put_back(subject: Subject, told: Trace, trace: Trace) -> int:
    """How many blank characters more a trace has than the text told; less than 0 if fewer."""
    before, after = (_text(subject, ids) for ids in (told.token_ids, trace.token_ids))
    return sum(map(str.isspace, after)) - sum(map(str.isspace, before))


def _greedy(
    subject: Subject, token_ids: Sequence[int], start: int, total: int, near: float
) -> list[int] | None:
    """The same text, blanks aside, in ``total`` tokens: from ``start`` on the model's own.

    A token whose logit is within ``near`` of the highest is the model's own, too.
    """
    ids, place, stop, edits = list(token_ids), start, start + _AHEAD, 0
    while place < min(len(ids), total):
        wrong = _first_other(subject, ids[: min(stop, total)], place, near)
        if wrong is None:
            place, stop = stop, total
            continue
        place, token = wrong
        rest = _after(_text(subject, ids[place:]), _text(subject, [token]))
        if rest is None or edits == _MOST:
            return None
        ids[place:] = [token, *_tokens(subject, rest)]
        place, stop, edits = place + 1, place + 1 + _AHEAD, edits + 1
    return ids if len(ids) == total else None


def _after(text: str, token: str) -> str | None:
    """What is left of a text after a token that it begins with, blanks aside; else ``None``."""
    for character in token:
        if character.isspace():
            text = text[1:] if text[:1].isspace() else text
            continue
        text = text.lstrip()
        if not text.startswith(character):
            return None
        text = text[1:]
    return text


@torch.inference_mode()
def _first_other(
    subject: Subject, ids: Sequence[int], start: int, near: float
) -> tuple[int, int] | None:
    """The first place from ``start`` on where the model would write another token, and which."""
    inputs = torch.tensor([ids], device=subject.device)
    states = decoder_of(subject.model)(input_ids=inputs, use_cache=False)[0]
    for first in range(start, len(ids), _AT_ONCE):
        logits = logits_of(subject.model, states[0, first - 1 : -1][:_AT_ONCE])
        highest, best = logits.max(-1)
        written = inputs[0, first : first + _AT_ONCE, None].to(logits.device)
        other = (highest - logits.gather(-1, written)[:, 0] > near).nonzero()
        if len(other):
            at = int(other[0, 0])
            return first + at, int(best[at])
    return None


def _text(subject: Subject, ids: Sequence[int]) -> str:
    return str(subject.tokenizer.decode(list(ids), clean_up_tokenization_spaces=False))


def _tokens(subject: Subject, text: str) -> list[int]:
    return list(subject.tokenizer(text, add_special_tokens=False)["input_ids"])
