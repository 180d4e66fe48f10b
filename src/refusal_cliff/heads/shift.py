"""How far the first answer token's distribution moves when heads are taken out.

In the manner of Ships and Sahara (Zhou et al., arXiv 2410.13708): no probe and no direction, so a
second opinion on which heads matter. A shift has no sign: it finds heads that refuse as well as
heads that suppress refusal, and heads that only choose words.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from scipy.special import log_softmax

from refusal_cliff.data.traces import Trace, closed_spans
from refusal_cliff.heads.effects import Floats, check_same
from refusal_cliff.heads.joint import JointEffects
from refusal_cliff.heads.readout import answer_readout
from refusal_cliff.model.subject import Subject

LOGITS_AT_ONCE = 1 << 26
"""Logits of one batch: traces times sets times vocabulary."""


class AnswerShifts(JointEffects):
    """The exact shift of any set of heads on some traces, taken out over the closing tokens.

    ``of`` gives D(p ‖ p without the set) of the next token at the last closing one, in nats,
    [traces, sets].

    Args:
        subject: The model.
        traces: Closed traces; their keys and values are kept.

    Raises:
        RefusalCliffError: The model's blocks cannot be run one by one with the same result.
    """

    def __init__(self, subject: Subject, traces: Sequence[Trace]) -> None:
        self._start(subject, traces, answer_readout(subject))
        ids = torch.tensor([traces[0].token_ids[: closed_spans(traces[0]).closing]])
        with torch.inference_mode():
            own = subject.model(ids.to(subject.device), use_cache=False).logits[0, -1]
        check_same(subject, self._base[0, 0], own.float().cpu().numpy())
        self._at_once = max(1, min(self._at_once, LOGITS_AT_ONCE // self._base.size))

    def _effect(self, changed: Floats) -> Floats:
        """[traces, sets, vocabulary] to [traces, sets]; one trace at a time, for its size."""
        pairs = zip(self._base, changed, strict=True)
        return np.stack([divergence(base, others) for base, others in pairs])


def divergence(base: Floats, changed: Floats) -> Floats:
    """Kullback-Leibler divergence of the distributions of logits, in nats.

    Args:
        base: [.., vocabulary], of p.
        changed: [.., vocabulary], of q.

    Returns:
        D(p ‖ q), [..].
    """
    log_p = log_softmax(base.astype(np.float64), axis=-1)
    log_q = log_softmax(changed.astype(np.float64), axis=-1)
    return (np.exp(log_p) * (log_p - log_q)).sum(-1)
