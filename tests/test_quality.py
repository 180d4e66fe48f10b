"""Scores are judged as scikit-learn judges them, and all draws at once as one by one."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import expit
from scipy.stats import norm
from sklearn.metrics import roc_auc_score

from refusal_cliff.probe.quality import (
    auroc,
    calibrate,
    expected_calibration_error,
    measure_quality,
    newcombe,
    weighted_auroc,
)
from refusal_cliff.stats import bootstrap, resampled_counts


@pytest.mark.parametrize("gap", [0.0, 1e-6, 1.0, 1e6])
def test_calibration_of_separable_scores_is_finite_and_monotone(gap: float) -> None:
    labels = np.array([0] * 10 + [1] * 30)
    scores = np.where(labels == 1, gap, -gap) + 3.0
    slope, intercept = calibrate(scores, labels)
    assert np.isfinite([slope, intercept]).all()
    assert slope >= 0
    low, high = expit(slope * (3.0 - gap) + intercept), expit(slope * (3.0 + gap) + intercept)
    assert (low, high) == pytest.approx((1 / 12, 31 / 32) if gap else (0.5, 0.5), abs=0.1)


def test_calibration_recovers_the_log_odds_of_balanced_classes() -> None:
    rng = np.random.default_rng(5)
    labels = (rng.random(20_000) < 0.2).astype(np.int64)
    scores = rng.normal(size=20_000) + 2.0 * labels
    # Normal classes at 0 and 2 with deviation 1: the log-odds of equal classes are 2s - 2.
    assert calibrate(scores, labels) == pytest.approx((2.0, -2.0), abs=0.1)


def test_calibration_turns_round_where_the_scores_are_upside_down() -> None:
    labels = np.arange(40) % 2
    slope, _ = calibrate(-1.0 * labels, labels)
    assert slope < 0


def test_calibration_error() -> None:
    labels = np.array([0, 0, 0, 1])
    error = expected_calibration_error
    assert error(np.full(4, 0.25), labels) == pytest.approx(0.0)
    assert error(labels.astype(float), labels) == 0.0
    assert error(np.full(4, 0.95), labels) == pytest.approx(0.7)
    assert error(1.0 - labels, labels) == 1.0
    # Two bins: 0.1 says nothing happens and is off by 0.1, 0.6 is off by 0.1 as well.
    assert error(np.array([0.1, 0.1, 0.6, 0.6]), np.array([0, 0, 0, 1])) == pytest.approx(0.1)


@given(
    st.lists(st.tuples(st.integers(0, 1), st.integers(-3, 3)), min_size=2, max_size=40).filter(
        lambda rows: {label for label, _ in rows} == {0, 1}
    )
)
def test_auroc_equals_that_of_scikit_learn(rows: list[tuple[int, int]]) -> None:
    labels = np.array([label for label, _ in rows])
    scores = np.array([score for _, score in rows], dtype=float)
    assert auroc(labels, scores) == pytest.approx(roc_auc_score(labels, scores))


@given(st.integers(0, 1000), st.integers(2, 40))
def test_weighted_auroc_is_that_of_repeated_rows(seed: int, n: int) -> None:
    rng = np.random.default_rng(seed)
    labels = rng.integers(2, size=n)
    scores = rng.integers(-3, 4, size=n).astype(float)
    weights = rng.integers(3, size=(5, n))
    rows = [np.repeat(np.arange(n), weight) for weight in weights]
    expected = [float(auroc(labels[row], scores[row])) for row in rows]
    assert weighted_auroc(labels, scores, weights.astype(float)) == pytest.approx(
        expected, nan_ok=True
    )


def test_auroc_of_many_scores_is_that_of_each() -> None:
    rng = np.random.default_rng(0)
    labels, scores = rng.integers(2, size=30), rng.integers(9, size=(30, 7)).astype(float)
    each = [roc_auc_score(labels, column) for column in scores.T]
    assert auroc(labels, scores) == pytest.approx(each)


def test_intervals_are_those_of_the_slow_bootstrap() -> None:
    rng = np.random.default_rng(1)
    labels = rng.integers(2, size=150)
    logits = rng.normal(size=150) + labels
    groups = [f"g{row % 60}" for row in range(150)]
    found = measure_quality(logits, labels, groups, 3)

    def calibration_error(rows: np.ndarray) -> float:
        return expected_calibration_error(expit(logits[rows]), labels[rows])

    assert found.auroc_ci == pytest.approx(
        bootstrap(lambda rows: float(auroc(labels[rows], logits[rows])), groups, 3)
    )
    assert found.accuracy_ci == pytest.approx(
        bootstrap(lambda rows: float(((logits > 0) == (labels == 1))[rows].mean()), groups, 3)
    )
    assert found.ece_ci == pytest.approx(bootstrap(calibration_error, groups, 3))
    assert found.accuracy == pytest.approx(float(((logits > 0) == (labels == 1)).mean()))
    assert found.ece == pytest.approx(calibration_error(np.arange(150)))


@given(st.lists(st.sampled_from("abcdef"), min_size=1, max_size=30), st.integers(0, 9))
def test_counts_are_the_draws_of_the_bootstrap(groups: list[str], seed: int) -> None:
    drawn: list[list[int]] = []

    def note(rows: np.ndarray) -> float:
        drawn.append(np.bincount(rows, minlength=len(groups)).tolist())
        return 0.0

    bootstrap(note, groups, seed, 4)
    assert resampled_counts(groups, seed, 4).tolist() == drawn


def test_a_few_rows_told_apart_without_a_fault_do_not_make_the_auroc_certain() -> None:
    labels = np.array([1] * 9 + [0] * 10)
    found = measure_quality(labels - 0.5, labels, [str(at) for at in range(19)], 0)
    assert found.auroc == 1.0
    assert found.auroc_ci[1] == 1.0
    assert 0.7 < found.auroc_ci[0] < 0.95
    assert newcombe(1.0, 200, 200)[0] > 0.98


@given(st.floats(0.01, 0.99), st.integers(2, 200), st.integers(2, 200))
def test_newcombes_interval_holds_the_auroc_and_mirrors(found: float, one: int, other: int) -> None:
    low, high = newcombe(found, one, other)
    assert 0 <= low <= found <= high <= 1
    mirrored = newcombe(1 - found, other, one)
    assert (low, high) == pytest.approx((1 - mirrored[1], 1 - mirrored[0]), abs=1e-6)


@pytest.mark.parametrize("gap", [0.0, 1.5, 3.0])
def test_the_interval_of_an_auroc_covers_it_at_few_positives(gap: float) -> None:
    rng = np.random.default_rng(6)
    labels = np.array([1] * 10 + [0] * 12)
    truth = float(norm.cdf(gap / np.sqrt(2)))
    covered = []
    for seed in range(200):
        scores = rng.normal(size=22) + gap * labels
        low, high = measure_quality(scores, labels, [str(at) for at in range(22)], seed).auroc_ci
        covered.append(low <= truth <= high)
    assert np.mean(covered) >= 0.92
