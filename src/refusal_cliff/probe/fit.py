"""One linear probe per layer that reads "I will refuse" at the last closing token.

Logistic regression on centred residuals that are divided by one common scale: dividing every
feature by its own deviation would blow up directions of little variance, and the probe would then
read harm, which a trace states in many ways, rather than the intention to refuse. Regularisation
is the strongest whose cross-validated AUROC is as good as the best; the score is then calibrated.

Prompts are split into train and test by groups. All choices (regularisation, calibration, layer)
are made by grouped cross-validation inside train, so that no row is spent on validation alone and
the test is a test.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from refusal_cliff import __version__
from refusal_cliff.data.types import Trace
from refusal_cliff.errors import RefusalCliffError
from refusal_cliff.model.subject import Subject
from refusal_cliff.probe.direction import (
    AS_GOOD,
    Estimator,
    Floats,
    cross_validate,
    shuffled,
    standardised,
)
from refusal_cliff.probe.quality import Quality, measure_quality

ReadPoint = Literal["resid_post", "final_norm"]


@dataclass(frozen=True, slots=True)
class Provenance:
    """What probes were fitted on.

    Attributes:
        model: What the user called the model.
        fingerprint: The model's fingerprint.
        data_hash: SHA-256 over the ids, labels, verdicts and tokens of the traces used.
        read_point: ``resid_post``: the residual stream after a block, before any final norm;
            ``final_norm``: the state after the norm that follows the last block (the paper's).
        position: ``last-closing``: the token from which the first response token is predicted.
        polarity: A high score says "I will refuse".
        version: Of this package.
    """

    model: str
    fingerprint: str
    data_hash: str
    read_point: ReadPoint = "resid_post"
    position: Literal["last-closing"] = "last-closing"
    polarity: Literal["high score refuses"] = "high score refuses"
    version: str = __version__


def provenance_of(
    subject: Subject, traces: Iterable[Trace], read_point: ReadPoint = "resid_post"
) -> Provenance:
    """Provenance of probes fitted on ``traces``; their order does not matter."""
    rows = sorted(
        (trace.prompt.id, trace.prompt.label, trace.verdict, list(trace.token_ids))
        for trace in traces
    )
    digest = hashlib.sha256(json.dumps(rows).encode()).hexdigest()
    return Provenance(subject.name, subject.fingerprint, digest, read_point)


TEST_SHARE = 0.25
FOLDS = 5


def split_groups(
    labels: NDArray[np.int64], groups: Sequence[str], seed: int
) -> list[NDArray[np.int64]]:
    """Row numbers of train and test; groups stay whole and both classes are in each."""
    rng = np.random.default_rng(seed)
    rows_of = _rows_of(groups)
    parts: list[list[int]] = [[], []]
    for kind in ({0}, {1}, {0, 1}):
        mine = [rows for rows in rows_of.values() if set(labels[rows].tolist()) == kind]
        in_train = round((1 - TEST_SHARE) * len(mine))
        for place, index in enumerate(rng.permutation(len(mine))):
            parts[int(place >= in_train)] += mine[index]
    return [np.array(sorted(part), dtype=np.int64) for part in parts]


def fold_groups(labels: NDArray[np.int64], groups: Sequence[str], seed: int) -> NDArray[np.int64]:
    """Fold of each row for cross-validation; groups stay whole and both classes are in each fold.

    Groups are dealt out in turn: those with positives only, then mixed ones, then the others. The
    groups that hold a class are dealt one after the other, so each fold gets one as long as there
    are as many of them as folds; where a class has fewer groups than ``FOLDS``, there are fewer
    folds.
    """
    rng = np.random.default_rng(seed)
    rows_of = _rows_of(groups)
    kinds = {group: frozenset(labels[rows].tolist()) for group, rows in rows_of.items()}
    folds = min(FOLDS, *(sum(value in kind for kind in kinds.values()) for value in (0, 1)))
    dealt = 0
    fold = np.zeros(len(labels), dtype=np.int64)
    for kind in (frozenset({1}), frozenset({0, 1}), frozenset({0})):
        mine = [rows for group, rows in rows_of.items() if kinds[group] == kind]
        for index in rng.permutation(len(mine)):
            fold[mine[index]] = dealt % folds
            dealt += 1
    return fold


def _rows_of(groups: Sequence[str]) -> dict[str, list[int]]:
    rows: dict[str, list[int]] = {}
    for row, group in enumerate(groups):
        rows.setdefault(group, []).append(row)
    return rows


LabelRule = Literal["refused-vs-benign", "refused-vs-complied"]

MIN_PER_CLASS = 12
_NO_REFUSAL = (
    " A model that hardly ever refuses shows no refusal that could be read or withdrawn, so there "
    "is no verdict on a cliff: measure what it does (refusal-cliff evaluate), and train refusing."
)


@dataclass(frozen=True, slots=True)
class Probe:
    """``score = sigmoid(weight · h[layer] + bias)``, with its quality on held-out groups.

    Attributes:
        layer: Block after which it reads, counted from 1.
        weight: [d].
        bias: Intercept; centring and scaling are folded in.
        strength: Inverse L2 strength that was chosen; 0 for the difference of means.
        cv_auroc: Mean AUROC over the folds of the training split, by which layers are compared.
        quality: Quality on the test split.
        shuffled_auroc: Mean test AUROC of probes trained on shuffled labels, whichever way round
            they point, see `shuffled`: how easily any direction tells the classes apart.
        permutation_p: Chance of the test AUROC where labels mean nothing.
        read_point: Where it reads, as in the provenance of its set.
    """

    layer: int
    weight: Floats
    bias: float
    strength: float
    cv_auroc: float
    quality: Quality
    shuffled_auroc: float
    permutation_p: float
    read_point: ReadPoint = "resid_post"


@dataclass(frozen=True, slots=True)
class ProbeSet:
    """Probes of all layers, the layer chosen, and what they were trained on.

    Attributes:
        probes: By rising layer.
        layer: The chosen layer.
        label_rule: Which traces were positive and negative.
        estimator: How the direction was found.
        n: Traces used in training and test together.
        provenance: What they were fitted on; ``None`` for residuals of unknown origin.
    """

    probes: tuple[Probe, ...]
    layer: int
    label_rule: LabelRule
    estimator: Estimator
    n: int
    provenance: Provenance | None = None

    @property
    def read_point(self) -> ReadPoint:
        """Where in the model they read."""
        return "resid_post" if self.provenance is None else self.provenance.read_point

    @property
    def chosen(self) -> Probe:
        """The probe of the chosen layer."""
        return self.probes[self.row]

    @property
    def row(self) -> int:
        """Place of the chosen layer among the layers."""
        return next(row for row, probe in enumerate(self.probes) if probe.layer == self.layer)


def fit_probes(
    residuals: Floats,
    labels: Sequence[int],
    groups: Sequence[str],
    layers: Sequence[int],
    *,
    label_rule: LabelRule,
    estimator: Estimator = "logistic",
    seed: int = 0,
    provenance: Provenance | None = None,
) -> ProbeSet:
    """Fit, calibrate and test one probe per layer.

    Args:
        residuals: [traces, layers, d] at the last closing token, at the provenance's read point.
        labels: 1 for a refusal, 0 otherwise.
        groups: Traces of one group stay on one side of the split.
        layers: Block numbers of the second axis, rising.
        label_rule: Name of the rule that made ``labels``.
        estimator: ``logistic``, or ``difference-of-means`` as the second opinion.
        seed: Seed of split, shuffles and bootstrap.
        provenance: What the residuals are of; without it, written probes fit no model.

    Raises:
        RefusalCliffError: A class is too small to be split, or a state is not a finite number.
    """
    if not np.isfinite(residuals).all():
        raise RefusalCliffError(
            "The states to fit a probe on hold NaN or infinity: the model computes them in too "
            "small a precision, or its weights are damaged. Try --dtype float32."
        )
    label_array = np.asarray(labels, dtype=np.int64)
    others = "answered benign" if label_rule == "refused-vs-benign" else "complied"
    for value, name in ((1, "refused"), (0, others)):
        found = len({g for g, y in zip(groups, labels, strict=True) if y == value})
        if found < MIN_PER_CLASS:
            raise RefusalCliffError(
                f"A probe by {label_rule} needs {MIN_PER_CLASS} {name} traces of different "
                f"prompts; there are {found}. Give more prompts, or allow longer answers if many "
                "are cut off." + (_NO_REFUSAL if value == 1 else "")
            )
    train, test = split_groups(label_array, groups, seed)
    seen, unseen = label_array[train], label_array[test]
    fold = fold_groups(seen, [groups[int(row)] for row in train], seed)
    unseen_groups = [groups[int(row)] for row in test]
    read_point = "resid_post" if provenance is None else provenance.read_point

    def fitted(layer: int, states: Floats, held_out: Floats) -> Probe:
        standard = standardised(states)
        coordinates, others = standard.coordinates, standard.of(held_out)
        found = cross_validate(coordinates, seen, fold, estimator)
        weight, bias = standard.folded(found, seen)
        null = shuffled(coordinates, seen, others, unseen, estimator, found.strength, seed)
        quality = measure_quality(held_out @ weight + bias, unseen, unseen_groups, seed)
        return Probe(
            layer=layer,
            weight=weight.astype(np.float32),
            bias=bias,
            strength=found.strength,
            cv_auroc=found.cv_auroc,
            quality=quality,
            shuffled_auroc=null.either_way,
            permutation_p=null.p(quality.auroc),
            read_point=read_point,
        )

    probes = tuple(
        fitted(layer, residuals[train, at], residuals[test, at].astype(np.float64))
        for at, layer in enumerate(layers)
    )
    return ProbeSet(probes, choose_layer(probes), label_rule, estimator, len(labels), provenance)


def too_few(name: str, found: int, asked: int, need: int | None, label: str) -> RefusalCliffError:
    """The error for prompts to fit on that leave, or will leave, too few traces of a class.

    Args:
        name: The class: ``refused`` or ``benign``.
        found: How many there are.
        asked: Of how many prompts.
        need: Prompts to fit on that would most likely do; ``None`` if that cannot be said.
        label: Label of these prompts.
    """
    which = "refused" if name == "refused" else "answered benign"
    more = (
        f"Give about {need} {label} prompts to fit on, twice as many where they are halved"
        if need is not None
        else f"Give more {label} prompts"
    )
    return RefusalCliffError(
        f"A probe needs {MIN_PER_CLASS} {which} traces of different prompts; {asked} {label} "
        f"prompts to fit on gave {found}, and the remaining prompts will probably not give "
        f"enough. {more}, or allow longer answers if many are cut off (--max-new-tokens)."
        + (_NO_REFUSAL if name == "refused" else "")
    )


def choose_layer(probes: Sequence[Probe]) -> int:
    """The deepest layer whose cross-validated AUROC is as good as the best.

    Deep, because the cliff grows with depth (paper §3); inside train, so that a test stays a test.
    """
    best = max(probe.cv_auroc for probe in probes)
    return max(probe.layer for probe in probes if probe.cv_auroc >= best - AS_GOOD)
