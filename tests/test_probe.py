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
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from refusal_cliff.errors import RefusalCliffError
from refusal_cliff.logistic import principal
from refusal_cliff.probe import (
    AS_GOOD,
    FOLDS,
    SHUFFLES,
    STRENGTHS,
    Estimator,
    Probe,
    ProbeSet,
    choose_layer,
    cross_validate,
    fit_probes,
    fold_groups,
    shuffled,
    split_groups,
)
from refusal_cliff.probe_files import read_probes, write_probes
from refusal_cliff.quality import Quality, calibrate

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
    assert 0.4 < found.shuffled_auroc < 0.6
    assert found.shuffled_auroc_se < 0.037
    assert quality.ece < 0.15
    assert 0 <= quality.ece_ci[0] <= quality.ece_ci[1]


def test_without_a_signal_the_interval_covers_chance() -> None:
    residuals, labels, groups, _ = planted(320, 0.0)
    found = fit(residuals, labels, groups).chosen
    assert found.quality.auroc_ci[0] < 0.5 < found.quality.auroc_ci[1]
    assert 0.4 < found.shuffled_auroc < 0.6


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
    assert [set(labels[part].tolist()) for part in parts] == [{0, 1}] * 2


def test_a_split_has_the_shares_it_says_and_a_seed() -> None:
    labels = np.arange(200) % 2
    groups = [f"g{i}" for i in range(200)]
    parts = split_groups(labels, groups, 0)
    assert [len(part) for part in parts] == [150, 50]
    assert [int(labels[part].sum()) for part in parts] == [75, 25]
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
    assert [int(labels[part].sum()) for part in parts] == [9, 3]


@settings(max_examples=150, deadline=None)
@given(labelled_groups(), st.integers(0, 5))
def test_folds_keep_groups_whole_and_both_classes_everywhere(
    rows: tuple[list[int], list[str]], seed: int
) -> None:
    labels, groups = np.array(rows[0]), rows[1]
    fold = fold_groups(labels, groups, seed)
    assert len(set(zip(groups, fold.tolist(), strict=True))) == len(set(groups))
    assert [set(labels[fold == part].tolist()) for part in range(FOLDS)] == [{0, 1}] * FOLDS


@pytest.mark.parametrize(("ones", "folds"), [(2, 2), (3, 3), (5, 5), (9, 5)])
def test_a_class_of_few_groups_makes_fewer_folds(ones: int, folds: int) -> None:
    labels = np.array([1] * ones + [0] * 40)
    fold = fold_groups(labels, [f"g{i}" for i in range(len(labels))], 0)
    assert sorted(set(fold.tolist())) == list(range(folds))
    assert set(np.bincount(fold[labels == 1]).tolist()) <= {ones // folds, -(-ones // folds)}


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
        assert len(values) == SHUFFLES
        means.append(values.mean())
        errors.append(values.std(ddof=1) / np.sqrt(SHUFFLES))
        spread.append(values.std())
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
