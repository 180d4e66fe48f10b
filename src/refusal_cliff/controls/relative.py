"""Scores relative to benign and refused traces at the same place: 0 is benign, 1 is refused.

A probe calibrated at one token drifts over others, for every trace alike. Here each token is read
against what benign and refused traces have *there*: so many tokens before the last closing token,
or, further back, in that tenth of the thinking.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from refusal_cliff.cliff.scores import TraceScores
from refusal_cliff.thinking import Spans

NEAR = 16
"""Tokens before the last closing token that are places of their own."""
TENTHS = 10
LEAST_DISTANCE = 0.1
"""Of the median distance of all places; where groups are nearer together, they measure noise."""


def places(spans: Spans) -> NDArray[np.int64]:
    """The place of each token from the first thinking token to the last closing one.

    Returns:
        [tokens]: ``0 … NEAR - 1`` counted back from the last closing token, ``NEAR + tenth``
        before these.
    """
    last = spans.last_closing
    tokens = np.arange(spans.prompt, last + 1)
    back = last - tokens
    length = max(spans.thinking - spans.prompt, 1)
    tenth = np.clip(TENTHS * (tokens - spans.prompt) // length, 0, TENTHS - 1)
    return np.where(back < NEAR, back, NEAR + tenth).astype(np.int64)


def relative(traces: Sequence[TraceScores], row: int) -> list[TraceScores] | None:
    """The traces with one row of logits: ``(logit − benign) / (refused − benign)`` at each place.

    Medians over the tokens of benign, and of refused harmful traces. Tokens outside thinking and
    closing keep 0; they are part of no plateau and no final score.

    Args:
        traces: All test traces.
        row: The probe, a row of their logits.

    Returns:
        ``None`` where refused traces do not stand above benign ones, or one of them is missing.
    """
    where = [places(trace.spans) for trace in traces]
    logits = [
        trace.logits[row, trace.spans.prompt : trace.spans.last_closing + 1] for trace in traces
    ]
    benign = [trace.label == "benign" for trace in traces]
    refused = [trace.label == "harmful" and trace.verdict == "refused" for trace in traces]
    if not any(benign) or not any(refused):
        return None
    low, high = (_medians(where, logits, group) for group in (benign, refused))
    distance = high - low
    usual = float(np.nanmedian(distance))
    if not usual > 0:
        return None
    scale = np.fmax(distance, LEAST_DISTANCE * usual)  # where one group has no token, too
    found = []
    for trace, at, here in zip(traces, where, logits, strict=True):
        made = np.zeros((1, trace.logits.shape[1]), dtype=np.float32)
        level = np.where(np.isfinite(low[at]), low[at], float(np.nanmedian(low)))
        made[0, trace.spans.prompt : trace.spans.last_closing + 1] = (here - level) / scale[at]
        found.append(replace(trace, logits=made))
    return found


def _medians(
    where: Sequence[NDArray[np.int64]],
    logits: Sequence[NDArray[np.float32]],
    chosen: Sequence[bool],
) -> NDArray[np.float64]:
    """Median logit at each place over the chosen traces; NaN where they have no token."""
    at = np.concatenate([w for w, use in zip(where, chosen, strict=True) if use])
    values = np.concatenate([v for v, use in zip(logits, chosen, strict=True) if use])
    found = np.full(NEAR + TENTHS, np.nan)
    for place in np.unique(at):
        found[place] = np.median(values[at == place])
    return found
