"""One direction that tells two classes of states apart, and how it becomes a calibrated score.

Cross-validation and the shuffled-label control need hundreds of logistic regressions a layer on the
same rows. On principal coordinates the curvature of the loss has a bound that is diagonal, so that
a step for all of them is two matrix products.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from refusal_cliff.probe.quality import auroc, calibrate
from refusal_cliff.stats import Floats

TOLERANCE = 1e-7
"""Length of a step, by that of the coefficients, at which a fit is finished."""
MAX_STEPS = 5000


def principal(features: Floats) -> tuple[Floats, Floats]:
    """Coordinates on the principal axes of centred rows.

    An L2-regularised linear fit lies in the span of its rows and does not depend on how the axes
    are turned, so a fit on the coordinates is the fit on the features, with never more columns
    than rows.

    Args:
        features: [n, d], of column mean 0.

    Returns:
        Coordinates [n, r] and axes [r, d]: ``features = coordinates @ axes``.
    """
    left, lengths, axes = np.linalg.svd(features, full_matrices=False)
    kept = lengths > lengths.max(initial=0.0) * max(features.shape) * np.finfo(np.float64).eps
    return left[:, kept] * lengths[kept], axes[kept]


def balanced(labels: NDArray[np.int64], used: NDArray[np.bool_]) -> Floats:
    """Weight of each row by which both classes weigh the same; 0 for a row that is not used.

    The weights add up to the rows used, as scikit-learn's ``class_weight="balanced"`` has them.
    """
    counts = np.bincount(labels[used], minlength=2)
    weights: Floats = used * used.sum() / (2.0 * np.maximum(counts, 1)[labels])
    return weights


def fit_logistic(coordinates: Floats, labels: Floats, weights: Floats, strength: Floats) -> Floats:
    """Coefficients of k logistic regressions, each with an intercept that is not regularised.

    Minimises ``Σ weight · log-loss + |w|² / (2 strength)``, as scikit-learn does with
    ``C = strength``, by accelerated gradient steps with restarts (O'Donoghue and Candès 2015) under
    the quadratic bound of Böhning and Lindsay (1988): no curvature exceeds a quarter of the largest
    weight times ``coordinatesᵀ coordinates``.

    Args:
        coordinates: [n, r] from `principal`: columns orthogonal and of mean 0.
        labels: [n, k], 0 or 1.
        weights: [n, k] of the rows, at least 0.
        strength: [k] inverse L2 strengths.

    Returns:
        [r, k] coefficients, without the intercepts, to a relative ``TOLERANCE`` of the last step
        or after ``MAX_STEPS``.
    """
    rows = np.column_stack([coordinates, np.ones(len(coordinates))])
    ridge = np.zeros((rows.shape[1], labels.shape[1]))
    ridge[:-1] = 1.0 / strength
    bound = weights.max(0) / 4 * (rows**2).sum(0)[:, None] + ridge
    place = np.zeros_like(ridge)
    ahead, momentum = place, np.ones(labels.shape[1])
    for _ in range(MAX_STEPS):
        gradient = rows.T @ (weights * (expit(rows @ ahead) - labels)) + ridge * ahead
        step = gradient / bound
        moved = ahead - step - place
        place = place + moved
        uphill = (gradient * moved).sum(0) > 0
        before = np.where(uphill, 1.0, momentum)
        momentum = (1 + np.sqrt(1 + 4 * before**2)) / 2
        ahead = place + (before - 1) / momentum * moved
        if (np.linalg.norm(step, axis=0) <= TOLERANCE * np.linalg.norm(place, axis=0)).all():
            break
    return place[:-1]


Estimator = Literal["logistic", "difference-of-means"]

STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
"""Inverse L2 strengths tried, the strongest regularisation first."""
AS_GOOD = 0.005
"""AUROC below the best that still counts as the best."""
SHUFFLES = 200
_NO_SIGNAL = 1e-3
"""Slope of a probe whose held-out scores do not rise with the label; scores have deviation ≤ 1."""


@dataclass(frozen=True, slots=True)
class Direction:
    """A direction and what cross-validation says of it.

    Attributes:
        vector: [r], of length 1, fitted on all rows.
        strength: Inverse L2 strength; 0 for the difference of means.
        cv_auroc: Mean AUROC over the folds.
        held_out: [n] score of each row by the direction that was fitted without its fold.
    """

    vector: Floats
    strength: float
    cv_auroc: float
    held_out: Floats


@dataclass(frozen=True, slots=True)
class Null:
    """What probes of shuffled labels reach on the test, see `shuffled`.

    Attributes:
        of_true: [shuffles] AUROC against the true labels.
        of_shuffled: [shuffles] AUROC against test labels that are shuffled too.
    """

    of_true: Floats
    of_shuffled: Floats

    @property
    def either_way(self) -> float:
        """Mean AUROC against the true labels, whichever way round the direction points."""
        return float(np.maximum(self.of_true, 1 - self.of_true).mean())

    def p(self, found: float) -> float:
        """Share of draws, the probe's own among them, that reach its AUROC by chance."""
        return float((1 + (self.of_shuffled >= found).sum()) / (1 + len(self.of_shuffled)))


@dataclass(frozen=True, slots=True)
class Standardised:
    """States [n, d] as ``centre + scale · coordinates @ axes``; centred, their mean square is 1.

    Attributes:
        coordinates: [n, r], principal.
        axes: [r, d].
        centre: [d].
        scale: Of all features alike.
    """

    coordinates: Floats
    axes: Floats
    centre: Floats
    scale: float

    def of(self, states: Floats) -> Floats:
        """Coordinates [m, r] of other states [m, d]."""
        return (states - self.centre) / self.scale @ self.axes.T

    def folded(self, found: Direction, labels: NDArray[np.int64]) -> tuple[Floats, float]:
        """Weight [d] and bias of a calibrated direction, standardisation folded in."""
        slope, intercept = calibrate_held_out(found.held_out, labels)
        weight = slope / self.scale * (found.vector @ self.axes)
        return weight, float(intercept - weight @ self.centre)


def standardised(states: Floats) -> Standardised:
    """Principal coordinates of states [n, d], in float64."""
    wide = states.astype(np.float64)
    centre = wide.mean(0)
    scale = float(np.sqrt(((wide - centre) ** 2).sum(1).mean())) or 1.0
    coordinates, axes = principal((wide - centre) / scale)
    return Standardised(coordinates, axes, centre, scale)


def cross_validate(
    coordinates: Floats, labels: NDArray[np.int64], fold: NDArray[np.int64], estimator: Estimator
) -> Direction:
    """The direction of all rows, at the strongest regularisation that is as good as the best.

    All strengths and folds are fitted at once.

    Args:
        coordinates: [n, r] from `principal`.
        labels: [n], 0 or 1.
        fold: [n] fold of each row, counted from 0.
        estimator: ``difference-of-means`` has no strength to choose.
    """
    strengths = STRENGTHS if estimator == "logistic" else (0.0,)
    folds = int(fold.max()) + 1
    used = np.stack([fold != left_out for left_out in range(folds)] + [fold >= 0], axis=1)
    vectors = _directions(
        coordinates,
        np.tile(labels[:, None], len(strengths) * (folds + 1)),
        np.tile(used, len(strengths)),
        np.repeat(strengths, folds + 1),
        estimator,
    ).reshape(-1, len(strengths), folds + 1)
    scores = np.einsum("nr,rsf->nsf", coordinates, vectors[:, :, :-1])
    held_out = scores[np.arange(len(labels)), :, fold]
    by_fold = [auroc(labels[fold == f], held_out[fold == f]) for f in range(folds)]
    quality = np.mean(by_fold, axis=0)
    place = int(np.flatnonzero(quality >= quality.max() - AS_GOOD)[0])
    return Direction(
        vector=vectors[:, place, -1],
        strength=strengths[place],
        cv_auroc=float(quality[place]),
        held_out=held_out[:, place],
    )


def _directions(
    coordinates: Floats,
    labels: NDArray[np.int64],
    used: NDArray[np.bool_],
    strengths: Floats,
    estimator: Estimator,
) -> Floats:
    """Directions of length 1, [r, k], for ``labels`` and ``used`` rows of [n, k], classes equal."""
    weights = np.stack([balanced(*pair) for pair in zip(labels.T, used.T, strict=True)], axis=1)
    if estimator == "logistic":
        vectors = fit_logistic(coordinates, labels.astype(np.float64), weights, strengths)
    else:  # balanced weights of a class add up to half the rows used
        vectors = coordinates.T @ (weights * (2 * labels - 1)) / (weights.sum(0) / 2)
    lengths = np.linalg.norm(vectors, axis=0)
    return vectors / np.where(lengths > 0, lengths, 1.0)


def calibrate_held_out(scores: Floats, labels: NDArray[np.int64]) -> tuple[float, float]:
    """Platt scaling on held-out scores: of each row by the direction fitted without its fold.

    Scores of the training rows themselves lie too far apart, the more so the wider the model, and
    would make the refusal score saturate. Held-out scores can be pooled because directions have
    length 1 and one common centre and scale; those of the final direction, which has seen more
    rows, lie a little further apart, so the score errs towards 0.5. Where held-out scores do not
    rise with the label there is no signal: the probe keeps its direction, and says 0.5.
    """
    slope, intercept = calibrate(scores, labels)
    return (slope, intercept) if slope > _NO_SIGNAL else (_NO_SIGNAL, 0.0)


def shuffled(
    coordinates: Floats,
    labels: NDArray[np.int64],
    test: Floats,
    test_labels: NDArray[np.int64],
    estimator: Estimator,
    strength: float,
    seed: int,
) -> Null:
    """Test AUROC of ``SHUFFLES`` probes that were trained on shuffled labels.

    Two questions are asked of these probes (`Null`). Against the true labels of the test: where the
    classes differ along an axis that carries much of the variance, any direction fitted to noise
    leans on that axis, by chance one way or the other, so that its AUROC is near 1 or near 0. The
    mean is near 0.5 by these coin flips alone and says nothing; the mean of max(a, 1 − a) says how
    much an AUROC near 1 proves. Against test labels that are shuffled as well: the distribution of
    the AUROC where labels mean nothing, of which the probe's own has a p.

    Args:
        coordinates: [n, r] of the training rows, from `principal`.
        labels: [n], 0 or 1.
        test: [m, r] of the test rows, on the same axes.
        test_labels: [m], 0 or 1.
        estimator: As for the probe itself.
        strength: As chosen for the probe itself.
        seed: Seed of the shuffles.

    Returns:
        Two arrays of ``SHUFFLES``: against the true labels, and against shuffled ones.
    """
    rng = np.random.default_rng(seed)
    drawn = rng.permuted(np.tile(labels[:, None], SHUFFLES), axis=0)
    vectors = _directions(
        coordinates, drawn, np.ones_like(drawn, dtype=bool), np.full(SHUFFLES, strength), estimator
    )
    scores = test @ vectors
    drawn_test = rng.permuted(np.tile(test_labels[:, None], SHUFFLES), axis=0)
    return Null(
        auroc(test_labels, scores),
        np.array([auroc(drawn_test[:, k], scores[:, k]) for k in range(SHUFFLES)]),
    )
