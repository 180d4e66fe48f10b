"""How a model writes, whatever it says: a changed model that rambles is not repaired."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from refusal_cliff.answers.outcomes import ends_in_loop
from refusal_cliff.data.types import Trace
from refusal_cliff.stats import Interval, Share, bootstrap_mean

REPEATS, LONGEST_PERIOD, LEAST = 3, 64, 24
"""A loop: the same tokens at least ``REPEATS`` times at the end, ``LEAST`` tokens together."""


@dataclass(frozen=True, slots=True)
class Writing:
    """How some answers were written.

    Attributes:
        thinking_tokens: Mean length of the thinking; of what was written, where it never closed.
        thinking_ci: Its bootstrap interval over prompt groups.
        looping: Answers that end in a loop.
        truncated: Answers that never ended.
    """

    thinking_tokens: float
    thinking_ci: Interval
    looping: Share
    truncated: Share


def writing_of(traces: Sequence[Trace]) -> Writing:
    """Look at the answers to some prompts, at least one."""
    lengths = [thinking_length(trace) for trace in traces]
    return Writing(
        float(np.mean(lengths)),
        bootstrap_mean(lengths, [trace.prompt.group for trace in traces]),
        Share(sum(loops(trace.token_ids) for trace in traces), len(traces)),
        Share(sum(not trace.complete for trace in traces), len(traces)),
    )


def thinking_length(trace: Trace) -> int:
    """Tokens of the thinking; all that is there where no span is known."""
    if trace.spans is None:
        return len(trace.token_ids)
    return trace.spans.thinking - trace.spans.prompt


def loops(token_ids: Sequence[int]) -> bool:
    """Whether the tokens end in a loop."""
    return ends_in_loop(token_ids, repeats=REPEATS, least=LEAST, longest=LONGEST_PERIOD)
