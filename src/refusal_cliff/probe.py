"""One linear probe per layer that reads "I will refuse" at the last closing token.

Logistic regression on centred residuals that are divided by one common scale: dividing every
feature by its own deviation would blow up directions of little variance, and the probe would then
read harm, which a trace states in many ways, rather than the intention to refuse. Regularisation
is the strongest whose validation AUROC is as good as the best; the score is then calibrated.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file
from scipy.special import expit
from scipy.stats import rankdata
from sklearn.linear_model import LogisticRegression

from refusal_cliff.errors import RefusalCliffError
from refusal_cliff.io import atomic_path, read_json, write_json
from refusal_cliff.stats import Interval, bootstrap

Floats: TypeAlias = NDArray[np.floating[Any]]
LabelRule = Literal["refused-vs-benign", "refused-vs-complied"]
Estimator = Literal["logistic", "difference-of-means"]

STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
"""Inverse L2 strengths tried, the strongest regularisation first."""
AS_GOOD = 0.005
"""AUROC below the best that still counts as the best."""
SPLIT = (0.5, 0.25, 0.25)
SHUFFLES = 100
"""Shuffles of the control. Each gives an AUROC near 0 or near 1, because the direction found lies
mostly along or against the axis that separates the classes: a mean of n is off by 0.5 / √n."""
ECE_BINS = 10
MIN_PER_CLASS = 12
_BOOTSTRAPS = 500


@dataclass(frozen=True, slots=True)
class Probe:
    """``score = sigmoid(weight · h[layer] + bias)``, with its quality on held-out groups.

    Attributes:
        layer: Block after which it reads, counted from 1.
        weight: [d].
        bias: Intercept; centring and scaling are folded in.
        strength: Inverse L2 strength that was chosen; 0 for the difference of means.
        validation_auroc: AUROC on the validation split, by which layers are compared.
        auroc: AUROC on the test split.
        auroc_ci: Its bootstrap interval over groups.
        accuracy: Accuracy at score 0.5 on the test split.
        ece: Expected calibration error on the test split, in ten equal bins.
        shuffled_auroc: Mean test AUROC of probes trained on shuffled labels.
    """

    layer: int
    weight: Floats
    bias: float
    strength: float
    validation_auroc: float
    auroc: float
    auroc_ci: Interval
    accuracy: float
    ece: float
    shuffled_auroc: float


@dataclass(frozen=True, slots=True)
class ProbeSet:
    """Probes of all layers, the layer chosen, and what they were trained on.

    Attributes:
        probes: By rising layer.
        layer: The chosen layer.
        label_rule: Which traces were positive and negative.
        estimator: How the direction was found.
        n: Traces used in training, validation and test together.
    """

    probes: tuple[Probe, ...]
    layer: int
    label_rule: LabelRule
    estimator: Estimator
    n: int

    @property
    def chosen(self) -> Probe:
        """The probe of the chosen layer."""
        return self.probes[self.row]

    @property
    def row(self) -> int:
        """Place of the chosen layer among the layers."""
        return next(row for row, probe in enumerate(self.probes) if probe.layer == self.layer)


@dataclass(frozen=True, slots=True)
class _Part:
    features: Floats
    labels: NDArray[np.int64]


def fit_probes(
    residuals: Floats,
    labels: Sequence[int],
    groups: Sequence[str],
    layers: Sequence[int],
    *,
    label_rule: LabelRule,
    estimator: Estimator = "logistic",
    seed: int = 0,
) -> ProbeSet:
    """Fit, calibrate and test one probe per layer.

    Args:
        residuals: [traces, layers, d] at the last closing token.
        labels: 1 for a refusal, 0 otherwise.
        groups: Traces of one group stay on one side of the split.
        layers: Block numbers of the second axis, rising.
        label_rule: Name of the rule that made ``labels``.
        estimator: ``logistic``, or ``difference-of-means`` as the second opinion.
        seed: Seed of split, shuffles and bootstrap.

    Raises:
        RefusalCliffError: A class is too small to be split in three.
    """
    label_array = np.asarray(labels, dtype=np.int64)
    for value, name in ((1, "refused"), (0, "complied")):
        found = len({g for g, y in zip(groups, labels, strict=True) if y == value})
        if found < MIN_PER_CLASS:
            raise RefusalCliffError(
                f"A probe by {label_rule} needs {MIN_PER_CLASS} {name} traces of different "
                f"prompts; there are {found}. Give more prompts, or allow longer answers if many "
                "are cut off."
            )
    parts = split_groups(label_array, groups, seed)
    probes = tuple(
        _fit_layer(
            layer,
            [
                _Part(residuals[part, column].astype(np.float64), label_array[part])
                for part in parts
            ],
            [groups[int(row)] for row in parts[2]],
            estimator,
            seed,
        )
        for column, layer in enumerate(layers)
    )
    return ProbeSet(probes, choose_layer(probes), label_rule, estimator, len(label_array))


def split_groups(
    labels: NDArray[np.int64], groups: Sequence[str], seed: int
) -> list[NDArray[np.int64]]:
    """Row numbers of train, validation and test; groups stay whole and every class is in each."""
    rng = np.random.default_rng(seed)
    rows_of: dict[str, list[int]] = {}
    for row, group in enumerate(groups):
        rows_of.setdefault(group, []).append(row)
    parts: list[list[int]] = [[], [], []]
    for kind in ({0}, {1}, {0, 1}):
        mine = [rows for rows in rows_of.values() if set(labels[rows].tolist()) == kind]
        order = rng.permutation(len(mine))
        edges = np.round(np.cumsum(SPLIT) * len(mine)).astype(int)
        for place, index in enumerate(order):
            parts[int(np.searchsorted(edges, place, side="right"))] += mine[index]
    return [np.array(sorted(part), dtype=np.int64) for part in parts]


def choose_layer(probes: Sequence[Probe]) -> int:
    """The deepest layer whose validation AUROC is as good as the best.

    Deep, because the cliff grows with depth (paper §3); by validation, so that a test stays a test.
    """
    best = max(probe.validation_auroc for probe in probes)
    return max(probe.layer for probe in probes if probe.validation_auroc >= best - AS_GOOD)


def _fit_layer(
    layer: int, parts: Sequence[_Part], test_groups: Sequence[str], estimator: Estimator, seed: int
) -> Probe:
    train, validation, test = parts
    centre = train.features.mean(0)
    scale = float(np.sqrt(((train.features - centre) ** 2).sum(1).mean())) or 1.0
    scaled = [_Part((part.features - centre) / scale, part.labels) for part in parts]
    direction, strength = _direction(scaled[0], scaled[1], estimator)
    validation_scores = scaled[1].features @ direction
    seen = np.concatenate([scaled[0].features @ direction, validation_scores])
    slope, intercept = calibrate(seen, np.concatenate([train.labels, validation.labels]))
    weight = slope * direction / scale
    bias = float(intercept - weight @ centre)
    logits = test.features @ weight + bias
    return Probe(
        layer=layer,
        weight=weight.astype(np.float32),
        bias=bias,
        strength=strength,
        validation_auroc=_auroc(validation.labels, validation_scores),
        auroc=_auroc(test.labels, logits),
        auroc_ci=bootstrap(
            lambda rows: _auroc(test.labels[rows], logits[rows]), test_groups, seed, _BOOTSTRAPS
        ),
        accuracy=float(((logits > 0) == (test.labels == 1)).mean()),
        ece=expected_calibration_error(expit(logits), test.labels),
        shuffled_auroc=_shuffled(scaled[0], scaled[2], estimator, strength, seed),
    )


def _direction(train: _Part, validation: _Part, estimator: Estimator) -> tuple[Floats, float]:
    if estimator == "difference-of-means":
        return _difference(train), 0.0
    fits = [_logistic(train, strength) for strength in STRENGTHS]
    quality = [_auroc(validation.labels, validation.features @ fit) for fit in fits]
    place = next(i for i, value in enumerate(quality) if value >= max(quality) - AS_GOOD)
    return fits[place], STRENGTHS[place]


def _difference(part: _Part) -> Floats:
    means = [part.features[part.labels == value].mean(0) for value in (0, 1)]
    return means[1] - means[0]


def _logistic(part: _Part, strength: float) -> Floats:
    model = LogisticRegression(C=strength, class_weight="balanced", max_iter=2000)
    coefficients: Floats = model.fit(part.features, part.labels).coef_[0]
    return coefficients / (np.linalg.norm(coefficients) or 1.0)


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


def expected_calibration_error(scores: Floats, labels: NDArray[np.int64]) -> float:
    """Mean gap between score and share of positives, over equal bins of the score, by bin size."""
    bins: NDArray[np.int64] = np.minimum((scores * ECE_BINS).astype(np.int64), ECE_BINS - 1)
    gaps = [
        abs(scores[bins == place].sum() - labels[bins == place].sum()) for place in np.unique(bins)
    ]
    return float(np.sum(gaps) / len(labels))


def _shuffled(train: _Part, test: _Part, estimator: Estimator, strength: float, seed: int) -> float:
    rng = np.random.default_rng(seed)
    values = []
    for _ in range(SHUFFLES):
        part = _Part(train.features, rng.permutation(train.labels))
        fitted = _difference(part) if estimator != "logistic" else _logistic(part, strength)
        values.append(_auroc(test.labels, test.features @ fitted))
    return float(np.mean(values))


def _auroc(labels: NDArray[np.int64], scores: Floats) -> float:
    """AUROC by ranks (Mann and Whitney 1947), ties counted half.

    NaN where a class is missing, which a bootstrap leaves out.
    """
    positive = int(labels.sum())
    negative = len(labels) - positive
    if positive == 0 or negative == 0:
        return float("nan")
    ranks = rankdata(scores)[labels == 1].sum()
    return float((ranks - positive * (positive + 1) / 2) / (positive * negative))


def write_probes(weights: Path, description: Path, probes: ProbeSet) -> None:
    """Write weights and biases as safetensors, all else as JSON."""
    tensors = {
        "weight": np.stack([probe.weight for probe in probes.probes]).astype(np.float32),
        "bias": np.array([probe.bias for probe in probes.probes], dtype=np.float64),
    }
    with atomic_path(weights) as temporary:
        save_file(tensors, temporary)
    rows = [{k: v for k, v in asdict(p).items() if k != "weight"} for p in probes.probes]
    write_json(
        description,
        {
            "layer": probes.layer,
            "label_rule": probes.label_rule,
            "estimator": probes.estimator,
            "n": probes.n,
            "layers": rows,
        },
    )


def read_probes(weights: Path, description: Path) -> ProbeSet:
    """Read what `write_probes` wrote.

    Raises:
        RefusalCliffError: The two files do not belong together.
    """
    content = read_json(description)
    rows: list[dict[str, Any]] = content["layers"]
    directions = load_file(weights)["weight"]
    if len(directions) != len(rows):
        raise RefusalCliffError(
            f"{weights} has {len(directions)} probes and {description} {len(rows)}. "
            "Delete both, and run again."
        )
    probes = tuple(
        Probe(**{**row, "weight": weight, "auroc_ci": tuple(row["auroc_ci"])})
        for row, weight in zip(rows, directions, strict=True)
    )
    return ProbeSet(
        probes, content["layer"], content["label_rule"], content["estimator"], content["n"]
    )
