"""Many logistic regressions on the same rows at once: they differ in labels, weights and strength.

Cross-validation and the shuffled-label control need hundreds of fits a layer. On principal
coordinates the curvature of the loss has a bound that is diagonal, so that a step for all of them
is two matrix products.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

Floats: TypeAlias = NDArray[np.floating[Any]]

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
