"""Which single heads are proven to suppress refusal: all heads judged at once, and by how much.

A head's effect is measured against the fall that it should explain: the share of it that comes
back when the head alone is taken out. Effect and fall are read by one probe, so the share does not
depend on the probe's scale, bias or calibration. Two things are asked of a head beyond "its
interval lies above zero", which more than a third of all heads can pass:

- **Size.** It undoes more than `SMALLEST_SHARE` of the fall.
- **All heads at once.** The lower bounds hold for all heads together in 95 % of the cases: the
  studentised maximum over heads (max-T, Westfall and Young 1993, single step), by a bootstrap over
  prompt groups. Heads that move together are corrected less than by Bonferroni.

The probe and the model are taken as given: what varies is the prompts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from refusal_cliff.stats import EXACT, LEVEL, RESAMPLES, bootstrap_mean, resampled_counts

SMALLEST_SHARE = 0.05
"""The smallest effect of interest: what a head undoes alone, of the mean fall of the traces."""

_Doubles = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Proof:
    """What is proven of one head alone.

    Attributes:
        share: Part of the traces' mean fall, in logits, that comes back without the head; ``None``
            where the traces do not fall beyond doubt, so that there is nothing to explain.
        low: Lower bound of ``share``; the bounds of all heads hold at once in 95 % of the cases.
        p: Of a share of `SMALLEST_SHARE` or less, adjusted for all heads.
        proven: Whether ``low`` lies above `SMALLEST_SHARE`.
    """

    __pydantic_config__ = EXACT

    share: float | None
    low: float | None
    p: float
    proven: bool

    @property
    def suppresses(self) -> bool:
        """Whether the head lowers the score at all, of all heads at once, however little alone.

        This is what a head needs to be taken out with others: heads that stand in for each other,
        and the many small ones of a large model, undo little alone.
        """
        return self.low is not None and self.low > 0


NOTHING = Proof(None, None, 1.0, proven=False)
"""Of a head where there is nothing to explain."""


def prove(
    effects: NDArray[np.floating], falls: NDArray[np.floating], groups: Sequence[str], seed: int = 0
) -> list[Proof]:
    """What is proven of each head.

    Args:
        effects: [traces, heads] rise of the final logit without each head.
        falls: [traces] plateau − final, in the same logits; NaN where a trace has no plateau.
        groups: Group of each trace's prompt; near-duplicates are drawn together.
        seed: Seed of the bootstrap.
    """
    measured = np.isfinite(falls)
    names = [group for group, inside in zip(groups, measured, strict=True) if inside]
    fall = falls[measured].astype(np.float64)
    effect = effects[measured].astype(np.float64)
    if len(set(names)) < 2 or bootstrap_mean(fall, names, seed=seed)[0] <= 0:
        return [NOTHING] * effects.shape[1]
    acting = np.flatnonzero(effect.any(0))  # a head after the probe is no hypothesis
    found = [Proof(0.0, 0.0, 1.0, proven=False)] * effects.shape[1]
    bounds = _max_t(effect[:, acting], fall, names, seed)
    for place, (share, low, p) in zip(acting, bounds, strict=True):
        found[place] = Proof(share, low, p, proven=low > SMALLEST_SHARE)
    return found


def _max_t(
    effects: _Doubles, falls: _Doubles, groups: Sequence[str], seed: int
) -> list[tuple[float, float, float]]:
    """Of each head: its share, the simultaneous lower bound, and adjusted p."""
    _, first, member = np.unique(np.asarray(groups), return_index=True, return_inverse=True)
    effect, fall = np.zeros((len(first), effects.shape[1])), np.zeros(len(first))
    np.add.at(effect, member, effects)
    np.add.at(fall, member, falls)
    drawn = resampled_counts(groups, seed, RESAMPLES)[:, first]
    (share,), (error,) = _ratios(np.ones((1, len(first))), effect, fall)
    shares, errors = _ratios(drawn, effect, fall)
    largest = np.sort(_studentised(shares - share, errors).max(1))
    critical = largest[int(np.ceil(LEVEL * (RESAMPLES + 1))) - 1]
    observed = _studentised(share - SMALLEST_SHARE, error)
    exceeding = RESAMPLES - np.searchsorted(largest, observed, side="left")
    found = np.stack([share, share - critical * error, (1 + exceeding) / (1 + RESAMPLES)])
    return [(share, low, p) for share, low, p in found.T.tolist()]


def _ratios(counts: _Doubles, effect: _Doubles, fall: _Doubles) -> tuple[_Doubles, _Doubles]:
    """Shares and their standard errors in some draws of groups, [draws, heads] each.

    The error is that of a ratio of sums (linearised), from the residuals of the groups.
    """
    total, n = (counts @ fall)[:, None], len(fall)
    shares = counts @ effect / total
    residuals = (
        counts @ effect**2
        - 2 * shares * (counts @ (effect * fall[:, None]))
        + shares**2 * (counts @ fall**2)[:, None]
    )
    return shares, np.sqrt(np.maximum(residuals, 0) * n / (n - 1)) / np.abs(total)


def _studentised(difference: _Doubles, error: _Doubles) -> _Doubles:
    """``difference / error``; where no error can be told, nothing is proven by chance."""
    known = error > 1e-9 * np.abs(difference)
    unknown = np.where(difference > 0, np.inf, -np.inf)
    return np.divide(difference, error, out=unknown, where=known)
