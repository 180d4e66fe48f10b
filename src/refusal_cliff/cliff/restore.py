"""Blanks that a server stripped from an answer, put back as the model writes them.

Servers that tell thinking and answer apart often strip the blanks around both, and the text alone
does not say which. The server's count of tokens says that something is missing; the model, which is
here, says what: an answer decoded greedily is one that the model itself would write again.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, cast

import torch

from refusal_cliff.data.traces import Row, Trace
from refusal_cliff.model.subject import Subject
from refusal_cliff.thinking import render_prompt, split_spans

_NEAR = 0.1
"""Logits closer than this to the highest may have been the highest where the server computed."""
_MOST = 256
"""Blanks put back or taken out at most."""
_AT_ONCE = 512
"""Tokens looked at in one pass: what bounds the memory of their logits."""


def agrees(trace: Trace, row: Row) -> bool:
    """Whether a text gave back as many tokens as its server counted, or the server did not count.

    One more is agreement too: not every server counts the end-of-sequence token.
    """
    counted = row.get("tokens")
    return not isinstance(counted, int) or 0 <= len(trace.token_ids) - counted <= 1


def put_back(subject: Subject, trace: Trace, row: Row) -> Trace | None:
    """The trace with the blanks that its server stripped; ``None`` if they cannot be known.

    From the first written token on, wherever the model would greedily have written another token:
    if that is blank it is put in, if the token that stands there is blank it is taken out. The
    result counts only if every token of it is then what the model writes, to within rounding, and
    if prompt and whole have exactly the tokens that the server counted. There is one such text at
    the most, and none for an answer that was sampled, or written by another model.

    Args:
        subject: The model that wrote it.
        trace: Tokenised from text.
        row: What the server told, see `Record`.
    """
    start = len(render_prompt(subject.tokenizer, trace.prompt.text))
    if row.get("prompt_tokens") not in (None, start):
        return None
    ids = _greedy(subject, trace.token_ids, start)
    if ids is None or len(ids) != row.get("tokens"):
        return None
    spans = split_spans(ids, start, subject.tokenizer, subject.format)
    return replace(trace, token_ids=tuple(ids), spans=None if trace.spans is None else spans)


def _greedy(subject: Subject, token_ids: Sequence[int], start: int) -> list[int] | None:
    """The tokens with other blanks, so that from ``start`` on the model would write each."""
    ids, place, edits = list(token_ids), start, 0
    while place < len(ids):
        stop = min(place + _AT_ONCE, len(ids))
        wrong = _first_other(subject, ids[:stop], place)
        if wrong is None:
            place = stop
            continue
        place, token = wrong
        if _is_blank(subject, token):
            ids.insert(place, token)
        elif _is_blank(subject, ids[place]):
            del ids[place]
        else:
            return None
        edits += 1
        if edits > _MOST:
            return None
    return ids


@torch.inference_mode()
def _first_other(subject: Subject, ids: Sequence[int], start: int) -> tuple[int, int] | None:
    """The first place from ``start`` on where the model would write another token, and which."""
    inputs = torch.tensor([ids], device=subject.device)
    n = len(ids) - start
    model = cast("Any", subject.model)
    takes = inspect.signature(model.forward).parameters
    few = {"logits_to_keep": n + 1} if "logits_to_keep" in takes else {}  # else those of all tokens
    output = model(input_ids=inputs, use_cache=False, **few)
    logits = output.logits[0, -n - 1 : -1].float()
    highest, best = logits.max(-1)
    written = inputs[0, start:, None].to(logits.device)
    other = (highest - logits.gather(-1, written)[:, 0] > _NEAR).nonzero()
    if not len(other):
        return None
    first = int(other[0, 0])
    return start + first, int(best[first])


def _is_blank(subject: Subject, token: int) -> bool:
    return str(subject.tokenizer.decode([token])).isspace()
