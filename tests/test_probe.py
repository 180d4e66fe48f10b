"""Probes find what is planted, find nothing where nothing is, and never see a test group."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.special import expit
from sklearn.metrics import roc_auc_score

import refusal_cliff.probe as probe_module
from refusal_cliff.errors import RefusalCliffError
from refusal_cliff.probe import (
    Estimator,
    Probe,
    ProbeSet,
    calibrate,
    choose_layer,
    expected_calibration_error,
    fit_probes,
    read_probes,
    split_groups,
    write_probes,
)

WIDTH = 24
Floats = NDArray[np.floating[Any]]


def planted(n: int, signal: float, seed: int = 0) -> tuple[Floats, list[int], list[str], Floats]:
    """Residuals of one layer with a direction of ``signal`` deviations between the classes."""
    rng = np.random.default_rng(seed)
    direction = rng.normal(size=WIDTH)
    direction /= np.linalg.norm(direction)
    labels = [row % 2 for row in range(n)]
    noise = rng.normal(size=(n, WIDTH)) + 5 * rng.normal(size=WIDTH)
    residuals = 3.0 * (noise + signal * np.outer(labels, direction))
    return residuals[:, None].astype(np.float32), labels, [f"g{i}" for i in range(n)], direction


def fit(
    residuals: Floats, labels: list[int], groups: list[str], estimator: Estimator = "logistic"
) -> ProbeSet:
    layers = range(1, residuals.shape[1] + 1)
    return fit_probes(
        residuals, labels, groups, layers, label_rule="refused-vs-complied", estimator=estimator
    )


def cosine(one: Floats, other: Floats) -> float:
    return float(one @ other / np.linalg.norm(one) / np.linalg.norm(other))


@pytest.mark.parametrize("estimator", ["logistic", "difference-of-means"])
def test_a_planted_direction_is_found(estimator: Estimator) -> None:
    residuals, labels, groups, direction = planted(480, 5.0)
    found = fit(residuals, labels, groups, estimator).chosen
    assert cosine(found.weight, direction) > 0.9
    assert found.auroc > 0.98
    assert found.accuracy > 0.9
    assert found.auroc_ci[0] <= found.auroc <= found.auroc_ci[1]
    assert 0.35 < found.shuffled_auroc < 0.65
    assert found.ece < 0.15


def test_without_a_signal_the_interval_covers_chance() -> None:
    residuals, labels, groups, _ = planted(320, 0.0)
    found = fit(residuals, labels, groups).chosen
    assert found.auroc_ci[0] < 0.5 < found.auroc_ci[1]
    assert 0.35 < found.shuffled_auroc < 0.65


def test_copies_of_a_test_prompt_cannot_leak() -> None:
    """Labels are noise and every trace comes four times: only a leak could tell them apart."""
    rng = np.random.default_rng(3)
    once = rng.normal(size=(80, 1, 60)).astype(np.float32)
    labels = [int(label) for label in rng.permutation(np.arange(80) % 2)]
    groups = [f"g{i}" for i in range(80)]
    copies = np.tile(once, (4, 1, 1))
    kept_whole = fit(copies, labels * 4, groups * 4).chosen
    torn_apart = fit(copies, labels * 4, [f"g{i}" for i in range(320)]).chosen
    assert kept_whole.auroc_ci[0] < 0.5 < kept_whole.auroc_ci[1]
    assert torn_apart.auroc_ci[0] > 0.6


@st.composite
def labelled_groups(draw: st.DrawFn) -> tuple[list[int], list[str]]:
    """Rows of groups that are positive, negative or both, enough of each class, in any order."""
    both = draw(st.integers(0, 16))
    kinds = [(0, 1)] * both
    for value in (0, 1):
        n = max(0, 12 - both) + draw(st.integers(0, 60))
        kinds += [(value,) * draw(st.integers(1, 3))] * n
    rows = [(value, f"g{group}") for group, kind in enumerate(kinds) for value in kind]
    draw(st.randoms(use_true_random=False)).shuffle(rows)
    return [value for value, _ in rows], [group for _, group in rows]


@settings(max_examples=150, deadline=None)
@given(labelled_groups(), st.integers(0, 5))
def test_a_split_keeps_groups_whole_and_both_classes_everywhere(
    rows: tuple[list[int], list[str]], seed: int
) -> None:
    labels, groups = np.array(rows[0]), rows[1]
    parts = split_groups(labels, groups, seed)
    assert sorted(np.concatenate(parts).tolist()) == list(range(len(labels)))
    owners = [{groups[row] for row in part} for part in parts]
    assert sum(map(len, owners)) == len(set(groups))
    assert [set(labels[part].tolist()) for part in parts] == [{0, 1}] * 3


def test_a_split_has_the_shares_it_says_and_a_seed() -> None:
    labels = np.arange(200) % 2
    groups = [f"g{i}" for i in range(200)]
    parts = split_groups(labels, groups, 0)
    assert [len(part) for part in parts] == [100, 50, 50]
    assert [int(labels[part].sum()) for part in parts] == [50, 25, 25]
    again, other = split_groups(labels, groups, 0), split_groups(labels, groups, 1)
    assert all(np.array_equal(a, b) for a, b in zip(parts, again, strict=True))
    assert not np.array_equal(parts[0], other[0])


@pytest.mark.parametrize("seed", range(5))
def test_groups_of_both_classes_are_shared_out_as_well(seed: int) -> None:
    """Where refusals only come beside a compliance, each part still gets its share of them."""
    rows = [(value, f"both{group}") for group in range(12) for value in (0, 1)]
    rows += [(0, f"zero{group}") for group in range(60)]
    labels = np.array([value for value, _ in rows])
    parts = split_groups(labels, [group for _, group in rows], seed)
    assert [int(labels[part].sum()) for part in parts] == [6, 3, 3]


@pytest.mark.parametrize("estimator", ["logistic", "difference-of-means"])
def test_the_weight_reads_raw_residuals(estimator: Estimator) -> None:
    """Centre and scale are folded in: the same score as that of scaled residuals, calibrated."""
    residuals, labels, groups, _ = planted(240, 2.0)
    probe = fit(residuals, labels, groups, estimator).chosen
    label_array = np.array(labels)
    rows = split_groups(label_array, groups, 0)
    train, validation, test = (
        probe_module._Part(residuals[part, 0].astype(np.float64), label_array[part])
        for part in rows
    )
    centre = train.features.mean(0)
    scale = np.sqrt(((train.features - centre) ** 2).sum(1).mean())

    def scaled(part: probe_module._Part) -> probe_module._Part:
        return probe_module._Part((part.features - centre) / scale, part.labels)

    direction, _ = probe_module._direction(scaled(train), scaled(validation), estimator)
    seen = np.concatenate([scaled(part).features @ direction for part in (train, validation)])
    slope, intercept = calibrate(seen, np.concatenate([train.labels, validation.labels]))
    expected = slope * (scaled(test).features @ direction) + intercept
    exact = np.float64(slope / scale) * direction
    assert test.features @ exact - exact @ centre + intercept == pytest.approx(expected, abs=1e-6)
    assert probe.weight == pytest.approx(exact, rel=1e-6)
    assert probe.bias == pytest.approx(intercept - exact @ centre, abs=1e-6)
    assert probe.auroc == pytest.approx(roc_auc_score(test.labels, expected))
    assert probe.accuracy == pytest.approx(((expected > 0) == (test.labels == 1)).mean())


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


@pytest.mark.parametrize(("n_ones", "missing"), [(11, "refused"), (69, "complied")])
def test_too_few_of_a_class_is_said(n_ones: int, missing: str) -> None:
    labels = [1] * n_ones + [0] * (80 - n_ones)
    residuals = np.zeros((80, 1, 2), dtype=np.float32)
    with pytest.raises(RefusalCliffError, match=rf"refused-vs-complied needs 12 {missing}.* 11\."):
        fit(residuals, labels, [f"g{i}" for i in range(80)])


def test_copies_of_a_prompt_do_not_count_as_traces() -> None:
    labels = [0] * 40 + [1] * 40
    groups = [f"g{i}" for i in range(40)] + [f"r{i % 5}" for i in range(40)]
    with pytest.raises(RefusalCliffError, match=r"12 refused .*there are 5\."):
        fit(np.zeros((80, 1, 2), dtype=np.float32), labels, groups)


def probe_of(layer: int, validation_auroc: float) -> Probe:
    weight = np.full(3, layer, dtype=np.float32)
    return Probe(layer, weight, 0.5, 1e-2, validation_auroc, 0.9, (0.8, 1.0), 0.85, 0.05, 0.5)


@pytest.mark.parametrize(
    ("quality", "layer"),
    [
        ([0.5, 0.9, 0.8, 0.7], 2),
        ([0.5, 0.9, 0.9, 0.7], 3),
        ([0.5, 0.9, 0.896, 0.8], 3),
        ([0.5, 0.9, 0.894, 0.8], 2),
        ([0.9, 0.5, 0.5, 0.897], 4),
    ],
)
def test_the_deepest_layer_as_good_as_the_best_is_chosen(quality: list[float], layer: int) -> None:
    probes = [probe_of(number, value) for number, value in enumerate(quality, 1)]
    assert choose_layer(probes) == layer


def test_a_layer_is_chosen_by_validation_not_by_test() -> None:
    probes = [probe_of(1, 0.9), replace(probe_of(2, 0.8), auroc=1.0)]
    assert choose_layer(probes) == 1


def test_layers_are_fitted_on_their_own_residuals() -> None:
    noise, labels, groups, _ = planted(240, 0.0, seed=1)
    signal, _, _, direction = planted(240, 5.0, seed=1)
    probes = fit(np.concatenate([noise, signal, noise], 1), labels, groups)
    assert [probe.layer for probe in probes.probes] == [1, 2, 3]
    assert (probes.layer, probes.row, probes.n) == (2, 1, 240)
    assert cosine(probes.chosen.weight, direction) > 0.9
    assert np.array_equal(probes.probes[0].weight, probes.probes[2].weight)


def test_a_direction_of_little_variance_is_not_blown_up() -> None:
    """Both directions separate the classes equally well; the weak one must not count as much."""
    rng = np.random.default_rng(6)
    labels = [row % 2 for row in range(400)]
    sign = 2.0 * np.array(labels) - 1.0
    residuals = rng.normal(size=(400, 1, 6)).astype(np.float32)
    residuals[:, 0, 0] = 10.0 * (sign + rng.normal(size=400) * 0.8)
    residuals[:, 0, 1] = 0.1 * (sign + rng.normal(size=400) * 0.8)
    weight = fit(residuals, labels, [f"g{i}" for i in range(400)]).chosen.weight
    assert abs(weight[1]) < 0.5 * abs(weight[0])


def test_probes_are_the_same_for_a_seed() -> None:
    residuals, labels, groups, _ = planted(120, 1.0)
    one, two = (fit(residuals, labels, groups).chosen for _ in range(2))
    assert replace(one, weight=0) == replace(two, weight=0)  # pyright: ignore[reportArgumentType]
    assert np.array_equal(one.weight, two.weight)


def test_probes_come_back(tmp_path: Path) -> None:
    probes = ProbeSet(
        (probe_of(1, 0.7), probe_of(3, 1 / 3)), 3, "refused-vs-benign", "logistic", 99
    )
    weights, description = tmp_path / "new" / "probes.safetensors", tmp_path / "new" / "probes.json"
    write_probes(weights, description, probes)
    read = read_probes(weights, description)
    assert (read.layer, read.row, read.n) == (3, 1, 99)
    assert (read.label_rule, read.estimator) == ("refused-vs-benign", "logistic")
    for one, two in zip(read.probes, probes.probes, strict=True):
        assert np.array_equal(one.weight, two.weight)
        assert replace(one, weight=two.weight) == two
    assert sorted(file.name for file in weights.parent.iterdir()) == [
        "probes.json",
        "probes.safetensors",
    ]


def test_files_of_different_probes_are_said(tmp_path: Path) -> None:
    paths = [tmp_path / name for name in ("a.safetensors", "a.json", "b.safetensors", "b.json")]
    one = ProbeSet((probe_of(1, 0.7),), 1, "refused-vs-benign", "logistic", 9)
    write_probes(paths[0], paths[1], one)
    write_probes(paths[2], paths[3], replace(one, probes=(probe_of(1, 0.7), probe_of(2, 0.7))))
    with pytest.raises(RefusalCliffError, match=r"a\.safetensors has 1 probes and .*b\.json 2\."):
        read_probes(paths[0], paths[3])


@given(
    st.lists(st.tuples(st.integers(0, 1), st.integers(-3, 3)), min_size=2, max_size=40).filter(
        lambda rows: {label for label, _ in rows} == {0, 1}
    )
)
def test_auroc_equals_that_of_scikit_learn(rows: list[tuple[int, int]]) -> None:
    labels = np.array([label for label, _ in rows])
    scores = np.array([score for _, score in rows], dtype=float)
    assert probe_module._auroc(labels, scores) == pytest.approx(roc_auc_score(labels, scores))
