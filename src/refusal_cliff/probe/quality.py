"""How well scores tell two classes apart and mean what they say, with intervals over groups."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias, cast

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.special import expit
from scipy.stats import rankdata
from sklearn.linear_model import LogisticRegression

from refusal_cliff.stats import Floats, Interval, percentiles, resampled_counts

Labels: TypeAlias = NDArray[np.int64]

ECE_BINS = 10
FEW = 30
"""Groups of a class below which the bootstrap of an AUROC is too narrow."""
_Z = 1.96
_LEAST = 1e-9


@dataclass(frozen=True, slots=True)
class Quality:
    """A probe on rows that it was not fitted on.

    Attributes:
        auroc: Area under the ROC curve.
        auroc_ci: Its bootstrap interval over groups; where a class has fewer than ``FEW`` of them,
            widened to that of `newcombe`, which has a width even where no row is on the wrong side.
        accuracy: Accuracy at score 0.5.
        accuracy_ci: Its bootstrap interval over groups.
        ece: Expected calibration error, in ten equal bins.
        ece_ci: Its bootstrap interval over groups. It leans upwards and need not hold ``ece``:
            the gaps of a bin add up without a sign, and a draw adds its own noise to them.
    """

    auroc: float
    auroc_ci: Interval
    accuracy: float
    accuracy_ci: Interval
    ece: float
    ece_ci: Interval


def measure_quality(logits: Floats, labels: Labels, groups: Sequence[str], seed: int) -> Quality:
    """AUROC, accuracy and calibration error of score logits, each with its interval.

    All draws of the bootstrap are counted at once: a draw is a weight for every row.

    Args:
        logits: [rows].
        labels: [rows], 0 or 1, both present.
        groups: Rows of one group are drawn together.
        seed: Seed of the draws.
    """
    counts = resampled_counts(groups, seed)
    correct = (logits > 0) == (labels == 1)
    gaps = _gaps(expit(logits), labels)
    n = counts.sum(1)
    return Quality(
        auroc=float(auroc(labels, logits)),
        auroc_ci=_auroc_interval(labels, logits, groups, counts),
        accuracy=float(correct.mean()),
        accuracy_ci=percentiles(counts @ correct / n),
        ece=expected_calibration_error(expit(logits), labels),
        ece_ci=percentiles(np.abs(counts @ gaps).sum(1) / n),
    )


def _auroc_interval(
    labels: Labels, logits: Floats, groups: Sequence[str], counts: Floats
) -> Interval:
    low, high = percentiles(weighted_auroc(labels, logits, counts))
    names = np.asarray(groups)
    positive, negative = (len(set(names[labels == value])) for value in (1, 0))
    if min(positive, negative) >= FEW:
        return low, high
    wide = newcombe(float(auroc(labels, logits)), positive, negative)
    return min(low, wide[0]), max(high, wide[1])


def newcombe(found: float, positive: int, negative: int) -> Interval:
    """Interval of an AUROC by score inversion (Newcombe 2006, method 5).

    The AUROCs θ that are at most 1.96 standard errors from the one found, where the variance is
    Hanley and McNeil's at θ for classes of equal size: θ(1−θ)[1 + (N−1)(1−θ)/(2−θ) + (N−1)θ/(1+θ)]
    / (positive · negative), N = (positive + negative) / 2.

    Args:
        found: The AUROC.
        positive: Rows (or groups of rows) of class 1.
        negative: Of class 0.
    """
    size = (positive + negative) / 2 - 1

    def apart(theta: float) -> float:
        spread = 1 + size * (1 - theta) / (2 - theta) + size * theta / (1 + theta)
        error = np.sqrt(theta * (1 - theta) * spread / (positive * negative))
        return abs(found - theta) - _Z * error

    low, high, inside = 0.0, 1.0, min(max(found, _LEAST), 1 - _LEAST)
    if found > _LEAST and apart(_LEAST) > 0:
        low = cast("float", brentq(apart, _LEAST, inside))
    if found < 1 - _LEAST and apart(1 - _LEAST) > 0:
        high = cast("float", brentq(apart, inside, 1 - _LEAST))
    return low, high


def auroc(labels: Labels, scores: Floats) -> Floats:
    """AUROC by ranks (Mann and Whitney 1947), ties counted half.

    Args:
        labels: [rows], 0 or 1.
        scores: [rows] or [rows, k].

    Returns:
        [] or [k]; NaN where a class is missing.
    """
    positive = int(labels.sum())
    negative = len(labels) - positive
    if positive == 0 or negative == 0:
        return np.full(scores.shape[1:], np.nan)
    ranks = np.asarray(rankdata(scores, axis=0))[labels == 1].sum(0)
    return np.asarray((ranks - positive * (positive + 1) / 2) / (positive * negative))


def weighted_auroc(labels: Labels, scores: Floats, weights: Floats) -> Floats:
    """AUROC of rows that count several times, or not at all.

    Args:
        labels: [rows], 0 or 1.
        scores: [rows].
        weights: [draws, rows], at least 0.

    Returns:
        [draws]; NaN where a draw lacks a class, which an interval leaves out.
    """
    order = np.argsort(scores, kind="stable")
    _, starts = np.unique(scores[order], return_index=True)
    ordered = weights[:, order]
    positive = np.add.reduceat(ordered * labels[order], starts, axis=1)
    negative = np.add.reduceat(ordered * (1 - labels[order]), starts, axis=1)
    below = np.cumsum(negative, axis=1) - negative / 2
    pairs = positive.sum(1) * negative.sum(1)
    return np.divide(
        (positive * below).sum(1), pairs, out=np.full(len(weights), np.nan), where=pairs > 0
    )


def calibrate(scores: Floats, labels: NDArray[np.int64]) -> tuple[float, float]:
    """Slope and intercept of Platt scaling with smoothed targets (Platt 1999), classes balanced.

    The smoothing keeps the slope finite where the classes are separable.
    """
    spread = float(scores.std()) or 1.0
    middle = float(scores.mean())
    counts = np.bincount(labels, minlength=2).astype(float)
    targets = np.where(labels == 1, (counts[1] + 1) / (counts[1] + 2), 1 / (counts[0] + 2))
    balance: NDArray[np.float64] = 1.0 / counts[labels]
    features = np.concatenate([scores, scores])[:, None]
    model = LogisticRegression(C=1e6, max_iter=2000)
    model.fit(
        (features - middle) / spread,
        np.repeat([1, 0], len(labels)),
        sample_weight=len(labels) * np.concatenate([targets * balance, (1 - targets) * balance]),
    )
    slope = float(model.coef_[0, 0]) / spread
    return slope, float(np.ravel(model.intercept_)[0]) - slope * middle


def expected_calibration_error(scores: Floats, labels: Labels) -> float:
    """Mean gap between score and share of positives, over equal bins of the score, by bin size."""
    return float(np.abs(_gaps(scores, labels).sum(0)).sum() / len(labels))


def _gaps(scores: Floats, labels: Labels) -> Floats:
    """Score minus label in the column of the score's bin, [rows, bins]."""
    bins = np.minimum((scores * ECE_BINS).astype(np.int64), ECE_BINS - 1)
    gaps = np.zeros((len(scores), ECE_BINS))
    gaps[np.arange(len(scores)), bins] = scores - labels
    return gaps
