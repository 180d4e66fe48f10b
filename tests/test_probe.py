"""Probes find what is planted, find nothing where nothing is, and never see a test group."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from refusal_cliff.errors import RefusalCliffError
from refusal_cliff.probe.direction import (
    AS_GOOD,
    SHUFFLES,
    STRENGTHS,
    Estimator,
    cross_validate,
    principal,
    shuffled,
)
from refusal_cliff.probe.fit import (
    FOLDS,
    Probe,
    ProbeSet,
    Provenance,
    choose_layer,
    fit_probes,
    fold_groups,
    split_groups,
)
from refusal_cliff.probe.quality import Quality, calibrate, measure_quality

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
    quality = found.quality
    assert quality.auroc > 0.98
    assert quality.accuracy > 0.9
    assert quality.auroc_ci[0] <= quality.auroc <= quality.auroc_ci[1]
    assert quality.accuracy_ci[0] <= quality.accuracy <= quality.accuracy_ci[1]
    assert found.permutation_p == pytest.approx(1 / 201)
    assert 0.5 < found.shuffled_auroc < 0.9
    assert quality.ece < 0.15
    assert 0 <= quality.ece_ci[0] <= quality.ece_ci[1]


def test_without_a_signal_the_interval_covers_chance() -> None:
    residuals, labels, groups, _ = planted(320, 0.0)
    found = fit(residuals, labels, groups).chosen
    assert found.quality.auroc_ci[0] < 0.5 < found.quality.auroc_ci[1]
    assert found.permutation_p > 0.05
    assert 0.5 < found.shuffled_auroc < 0.75


def test_an_axis_of_much_variance_makes_shuffled_labels_reach_a_high_auroc() -> None:
    """Then an AUROC near 1 proves little, and the mean over shuffles, near 0.5, hides it."""
    residuals, labels, groups, direction = planted(320, 0.0)
    along = np.outer(np.where(np.array(labels) == 1, 40.0, -40.0), direction)[:, None]
    found = fit((residuals + along).astype(np.float32), labels, groups).chosen
    assert found.quality.auroc == 1.0
    assert found.shuffled_auroc > 0.95
    assert found.permutation_p == pytest.approx(1 / 201)


def test_copies_of_a_test_prompt_cannot_leak() -> None:
    """Labels are noise and every trace comes four times: only a leak could tell them apart."""
    whole, torn = [], []
    for seed in range(6):
        rng = np.random.default_rng(seed)
        copies = np.tile(rng.normal(size=(80, 1, 60)).astype(np.float32), (4, 1, 1))
        labels = [int(label) for label in rng.permutation(np.arange(80) % 2)] * 4
        groups = [f"g{i}" for i in range(80)] * 4
        whole.append(fit(copies, labels, groups).chosen.quality.auroc)
        torn.append(fit(copies, labels, [f"g{i}" for i in range(320)]).chosen.quality.auroc)
    assert abs(np.mean(whole) - 0.5) < 0.12  # 6 tests of 20 prompts: standard error 0.05
    assert min(torn) > 0.7


def noisy(n: int, signal: float, seed: int) -> tuple[Floats, NDArray[np.int64], NDArray[np.int64]]:
    """Centred rows of common scale 1, labels and folds."""
    residuals, labels, groups, _ = planted(n, signal, seed)
    rows = residuals[:, 0].astype(np.float64)
    rows -= rows.mean(0)
    rows /= np.sqrt((rows**2).sum(1).mean())
    return rows, np.array(labels), fold_groups(np.array(labels), groups, seed)


@pytest.mark.parametrize("seed", range(6))
def test_cross_validation_is_that_of_scikit_learn_fit_by_fit(seed: int) -> None:
    rows, labels, fold = noisy(90, 1.2, seed)

    def direction(used: NDArray[np.bool_], strength: float) -> Floats:
        model = LogisticRegression(C=strength, class_weight="balanced", tol=1e-10, max_iter=10_000)
        found = model.fit(rows[used], labels[used]).coef_[0]
        return found / np.linalg.norm(found)

    held_out = np.zeros((len(STRENGTHS), len(rows)))
    for place, strength in enumerate(STRENGTHS):
        for part in range(FOLDS):
            out = fold == part
            held_out[place, out] = rows[out] @ direction(~out, strength)
    quality = [
        np.mean([roc_auc_score(labels[fold == f], row[fold == f]) for f in range(FOLDS)])
        for row in held_out
    ]
    best = next(i for i, value in enumerate(quality) if value >= max(quality) - AS_GOOD)
    coordinates, axes = principal(rows)
    found = cross_validate(coordinates, labels, fold, "logistic")
    assert found.strength == STRENGTHS[best]
    assert found.cv_auroc == pytest.approx(quality[best])
    assert found.held_out == pytest.approx(held_out[best], abs=1e-5)
    expected = direction(np.ones(len(rows), dtype=bool), STRENGTHS[best])
    assert found.vector @ axes == pytest.approx(expected, abs=1e-5)


def test_the_difference_of_means_is_cross_validated_as_well() -> None:
    rows, labels, fold = noisy(90, 1.2, 0)
    coordinates, axes = principal(rows)
    found = cross_validate(coordinates, labels, fold, "difference-of-means")
    difference = rows[labels == 1].mean(0) - rows[labels == 0].mean(0)
    assert found.vector @ axes == pytest.approx(difference / np.linalg.norm(difference))
    seen = fold != 2
    part = rows[seen & (labels == 1)].mean(0) - rows[seen & (labels == 0)].mean(0)
    expected = rows[~seen] @ part / np.linalg.norm(part)
    assert found.held_out[~seen] == pytest.approx(expected)
    assert found.strength == 0.0


@pytest.mark.parametrize("estimator", ["logistic", "difference-of-means"])
def test_the_weight_reads_raw_residuals(estimator: Estimator) -> None:
    """Centre and scale are folded in: the same score as that of scaled residuals, calibrated."""
    residuals, labels, groups, _ = planted(240, 2.0)
    probe = fit(residuals, labels, groups, estimator).chosen
    label_array = np.array(labels)
    rows, out = split_groups(label_array, groups, 0)
    train, test = (residuals[part, 0].astype(np.float64) for part in (rows, out))
    centre = train.mean(0)
    scale = np.sqrt(((train - centre) ** 2).sum(1).mean())
    fold = fold_groups(label_array[rows], [groups[row] for row in rows], 0)
    coordinates, axes = principal((train - centre) / scale)
    found = cross_validate(coordinates, label_array[rows], fold, estimator)
    slope, intercept = calibrate(found.held_out, label_array[rows])
    expected = slope * ((test - centre) / scale @ (found.vector @ axes)) + intercept
    exact = slope / scale * (found.vector @ axes)
    assert probe.weight == pytest.approx(exact, rel=1e-6)
    assert probe.bias == pytest.approx(intercept - exact @ centre, abs=1e-6)
    assert test @ exact + probe.bias == pytest.approx(expected, abs=1e-6)
    correct = (expected > 0) == (label_array[out] == 1)
    assert probe.quality.auroc == pytest.approx(roc_auc_score(label_array[out], expected))
    assert probe.quality.accuracy == pytest.approx(correct.mean())


def test_a_probe_of_more_features_than_rows_is_not_overconfident() -> None:
    """Any labels can be read off the training rows here, so only held-out scores are honest."""
    rng = np.random.default_rng(2)
    residuals = rng.normal(size=(200, 1, 400)).astype(np.float32)
    residuals[:, 0, 0] += 2.0 * (np.arange(200) % 2)
    probe = fit(residuals, [row % 2 for row in range(200)], [f"g{i}" for i in range(200)]).chosen
    assert probe.quality.ece < 0.2


@pytest.mark.parametrize("seed", range(4))
def test_noise_never_turns_a_probe_round(seed: int) -> None:
    """Held-out scores of noise may fall with the label; the direction of training is kept."""
    residuals, labels, groups, _ = planted(60, 0.0, seed)
    probe = fit(residuals, labels, groups, "difference-of-means").chosen
    rows = split_groups(np.array(labels), groups, 0)[0]
    train, label_array = residuals[rows, 0], np.array(labels)[rows]
    difference = train[label_array == 1].mean(0) - train[label_array == 0].mean(0)
    assert probe.weight @ difference > 0


@pytest.mark.parametrize("estimator", ["logistic", "difference-of-means"])
def test_shuffled_labels_give_chance_though_single_shuffles_do_not(estimator: Estimator) -> None:
    means, errors, spread = [], [], []
    for seed in range(8):
        rows, labels, _ = noisy(160, 12.0, seed)
        coordinates = principal(rows)[0]
        values = shuffled(
            coordinates[:120], labels[:120], coordinates[120:], labels[120:], estimator, 1e-3, seed
        )
        assert len(values.of_true) == len(values.of_shuffled) == SHUFFLES
        means.append(values.of_true.mean())
        errors.append(values.of_true.std(ddof=1) / np.sqrt(SHUFFLES))
        spread.append(values.of_true.std())
        assert values.of_shuffled.mean() == pytest.approx(0.5, abs=0.03)
        assert values.of_shuffled.std() < 0.15
        assert values.either_way > 0.7
    assert np.abs(np.array(means) - 0.5).max() < 4 * max(errors)
    assert max(errors) < 0.037
    assert min(spread) > 0.25


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


def probe_of(layer: int, cv_auroc: float) -> Probe:
    weight = np.full(3, layer, dtype=np.float32)
    quality = Quality(0.9, (0.8, 1.0), 0.85, (0.7, 0.95), 0.05, (0.02, 0.1))
    return Probe(layer, weight, 0.5, 1e-2, cv_auroc, quality, 0.5, 0.02)


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


def test_a_layer_is_chosen_by_cross_validation_not_by_test() -> None:
    better = replace(probe_of(2, 0.8).quality, auroc=1.0)
    probes = [probe_of(1, 0.9), replace(probe_of(2, 0.8), quality=better)]
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


def test_what_the_residuals_are_of_is_kept() -> None:
    residuals, labels, groups, _ = planted(60, 5.0)
    assert fit(residuals, labels, groups).provenance is None
    origin = Provenance("small", "f" * 64, "d" * 64, "final_norm")
    found = fit_probes(
        residuals, labels, groups, [1], label_rule="refused-vs-benign", provenance=origin
    )
    assert (found.provenance, found.read_point) == (origin, "final_norm")
    assert {probe.read_point for probe in found.probes} == {"final_norm"}


def elsewhere(direction: Floats, seed: int) -> tuple[Floats, list[int], list[str]]:
    """Another data set: other noise, two a group, classes apart along ``direction``."""
    rng = np.random.default_rng(seed)
    labels = [row // 2 % 2 for row in range(160)]
    rows = rng.normal(size=(160, WIDTH)) + 5.0 * np.outer(labels, direction)
    return 3.0 * rows[:, None], labels, [f"h{row // 2}" for row in range(160)]


def test_a_direction_that_holds_elsewhere_transfers_and_another_does_not() -> None:
    residuals, labels, groups, direction = planted(480, 5.0)
    noise = planted(480, 0.0, seed=1)[0]
    probes = fit(np.concatenate([residuals, noise], 1), labels, groups)
    other = np.random.default_rng(9).normal(size=WIDTH)
    other -= other @ direction * direction
    same, different = (
        elsewhere(axis, seed=2) for axis in (direction, other / np.linalg.norm(other))
    )
    holds, fails = (
        [
            measure_quality(states[:, 0] @ probe.weight + probe.bias, np.array(of), others, 0)
            for probe in probes.probes
        ]
        for states, of, others in (same, different)
    )
    assert holds[0].auroc_ci[0] > 0.95
    assert holds[1].auroc < 0.9 < holds[0].auroc
    assert abs(fails[0].auroc - 0.5) < 0.3
