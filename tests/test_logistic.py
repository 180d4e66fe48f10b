"""Many fits at once are the same fits one by one, by scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression

from refusal_cliff.probe.direction import balanced, fit_logistic, principal


@pytest.mark.parametrize("shape", [(40, 6), (20, 60)])
def test_principal_coordinates_are_a_turn_of_the_features(shape: tuple[int, int]) -> None:
    features = np.random.default_rng(0).normal(size=shape)
    features -= features.mean(0)
    coordinates, axes = principal(features)
    assert coordinates.shape[1] == min(shape[0] - 1, shape[1])
    assert coordinates @ axes == pytest.approx(features)
    assert axes @ axes.T == pytest.approx(np.eye(len(axes)), abs=1e-12)
    square = coordinates.T @ coordinates
    assert square == pytest.approx(np.diag(np.diag(square)), abs=1e-9)


def test_features_that_are_all_the_same_have_no_axes() -> None:
    coordinates, axes = principal(np.zeros((5, 3)))
    assert (coordinates.shape, axes.shape) == ((5, 0), (0, 3))


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    n=st.integers(20, 60),
    width=st.integers(1, 90),
    ones=st.integers(3, 15),
    signal=st.floats(0, 10),
)
def test_each_fit_is_that_of_scikit_learn(
    seed: int, n: int, width: int, ones: int, signal: float
) -> None:
    rng = np.random.default_rng(seed)
    labels = np.stack([rng.permutation(np.arange(n) < ones) for _ in range(6)], axis=1) * 1
    features = rng.normal(size=(n, width)) * rng.exponential(size=width)
    features[:, 0] += signal * labels[:, 0]
    features -= features.mean(0)
    features /= np.sqrt((features**2).sum(1).mean())
    used = rng.random((n, 6)) < 0.8
    used |= np.arange(n)[:, None] == [labels[:, k].argmax() for k in range(6)]
    strengths = np.array([1e-4, 1e-3, 1e-2, 1e-1, 1.0, 1.0])
    weights = np.stack([balanced(labels[:, k], used[:, k]) for k in range(6)], axis=1)
    coordinates, axes = principal(features)
    found = axes.T @ fit_logistic(coordinates, labels.astype(float), weights, strengths)
    for k, strength in enumerate(strengths):
        model = LogisticRegression(
            C=strength, class_weight="balanced", solver="newton-cholesky", tol=1e-10
        )
        expected = model.fit(features[used[:, k]], labels[used[:, k], k]).coef_[0]
        error = np.linalg.norm(found[:, k] - expected)
        assert error <= 1e-4 * np.linalg.norm(expected) + 1e-12
