"""How far verdicts agree with labels given by people, with bootstrap intervals over prompts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from refusal_cliff.stats import Interval, percentiles, resampled_counts

Counts = NDArray[np.float64]
"""[..., 4]: true positives, false positives, false negatives, true negatives."""


@dataclass(frozen=True, slots=True)
class Measure:
    """A number and its bootstrap interval; without both, the ``reason`` why there is none."""

    value: float | None
    interval: Interval | None
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Agreement:
    """Verdicts against labels.

    Attributes:
        n: How many of both.
        positives: Labels that are yes.
        confusion: True positives, false positives, false negatives, true negatives.
        precision: Of the verdicts that are yes, how many labels are.
        recall: Of the labels that are yes, how many verdicts are: the sensitivity.
        specificity: Of the labels that are no, how many verdicts are.
        f1: Harmonic mean of precision and recall.
        kappa: Agreement beyond chance (Cohen 1960).
    """

    n: int
    positives: int
    confusion: tuple[int, int, int, int]
    precision: Measure
    recall: Measure
    specificity: Measure
    f1: Measure
    kappa: Measure


def agreement(groups: Sequence[str], true: ArrayLike, said: ArrayLike, seed: int = 0) -> Agreement:
    """Compare verdicts with labels.

    Args:
        groups: Group of each answer, such as its prompt; drawn together.
        true: Labels, booleans, as many.
        said: Verdicts, booleans, as many.
        seed: Seed of the bootstrap.
    """
    counts = _confusion(np.asarray(said, dtype=bool), np.asarray(true, dtype=bool))
    total, drawn = counts.sum(0), resampled_counts(groups, seed) @ counts
    tp, fp, fn, tn = (int(n) for n in total)

    def measure(of: Callable[[Counts, Counts, Counts, Counts], Counts]) -> Measure:
        value = float(of(*total))
        if np.isfinite(value):
            return Measure(value, percentiles(of(*drawn.T)))
        never = "the judge says yes to none of them" if tp + fp == 0 else "the answers do not vary"
        return Measure(None, None, f"{never}, so that it divides by nothing")

    return Agreement(
        n=len(groups),
        positives=tp + fn,
        confusion=(tp, fp, fn, tn),
        precision=measure(lambda tp, fp, fn, tn: _ratio(tp, tp + fp)),
        recall=measure(lambda tp, fp, fn, tn: _ratio(tp, tp + fn)),
        specificity=measure(lambda tp, fp, fn, tn: _ratio(tn, tn + fp)),
        f1=measure(_f1),
        kappa=measure(_kappa),
    )


def f1_difference(
    groups: Sequence[str], true: ArrayLike, before: ArrayLike, after: ArrayLike, seed: int = 0
) -> Measure:
    """F1 after minus before, both over the same draws of groups; arguments as of `agreement`."""
    labels, drawn = np.asarray(true, dtype=bool), resampled_counts(groups, seed)
    old, new = (_confusion(np.asarray(said, dtype=bool), labels) for said in (before, after))
    value = float(_f1(*new.sum(0)) - _f1(*old.sum(0)))
    return Measure(value, percentiles(_f1(*(drawn @ new).T) - _f1(*(drawn @ old).T)))


def _confusion(said: NDArray[np.bool_], true: NDArray[np.bool_]) -> Counts:
    """One row an answer, a 1 in the cell it falls into."""
    cells = (said & true, said & ~true, ~said & true, ~said & ~true)
    return np.stack(cells, axis=1).astype(np.float64)


def _f1(tp: Counts, fp: Counts, fn: Counts, tn: Counts) -> Counts:
    del tn
    return _ratio(2 * tp, 2 * tp + fp + fn)


def _kappa(tp: Counts, fp: Counts, fn: Counts, tn: Counts) -> Counts:
    n = tp + fp + fn + tn
    agreed = (tp + tn) / n
    chance = ((tp + fp) * (tp + fn) + (fn + tn) * (fp + tn)) / n**2
    return _ratio(agreed - chance, 1 - chance)


def _ratio(over: Any, under: Any) -> Counts:
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(np.divide(over, under), dtype=np.float64)
