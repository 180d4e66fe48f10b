"""Probes as files: weights as safetensors, all else as JSON."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

from refusal_cliff import __version__
from refusal_cliff.errors import RefusalCliffError
from refusal_cliff.io import atomic_path, read_json, write_json
from refusal_cliff.models import Subject
from refusal_cliff.probe import Floats, Probe, ProbeSet
from refusal_cliff.quality import Quality
from refusal_cliff.traces import Trace

WEIGHTS, DESCRIPTION = "probes.safetensors", "probes.json"


@dataclass(frozen=True, slots=True)
class Provenance:
    """Where probes come from, and so what they may be used on.

    Attributes:
        model: What the user called the model.
        fingerprint: The model's fingerprint.
        data_hash: SHA-256 over the training traces' ids, tokens and verdicts.
        read_point: ``resid_post``: the residual stream after a block, before any final norm.
        position: ``last-closing``: the token from which the first response token is predicted.
        polarity: A high score says "I will refuse".
        version: Of this package.
    """

    model: str
    fingerprint: str
    data_hash: str
    read_point: str = "resid_post"
    position: str = "last-closing"
    polarity: str = "high score refuses"
    version: str = __version__


def provenance_of(subject: Subject, traces: Iterable[Trace]) -> Provenance:
    """Provenance of probes fitted on ``traces``; their order does not matter."""
    rows = sorted((t.prompt.id, t.prompt.label, t.verdict, t.token_ids) for t in traces)
    digest = hashlib.sha256(json.dumps(rows).encode()).hexdigest()
    return Provenance(subject.name, subject.fingerprint, digest)


def probes_of(folder: Path, subject: Subject) -> ProbeSet:
    """The probes in a folder, if they were fitted on this model.

    Raises:
        RefusalCliffError: There are none, or they were fitted on another model.
    """
    description = folder / DESCRIPTION
    if not description.is_file():
        raise RefusalCliffError(
            f"{folder} holds no {DESCRIPTION}. Give the folder of a model in a run, such as "
            "runs/demo/tiny; refusal-cliff audit makes one."
        )
    found = read_json(description).get("provenance") or {}
    if found.get("fingerprint") != subject.fingerprint:
        raise RefusalCliffError(
            f"The probes of {description} were fitted on {found.get('model', 'an unknown model')!r}"
            f" (fingerprint {str(found.get('fingerprint'))[:12]}), not on {subject.name!r} "
            f"({subject.fingerprint[:12]}): weights, chat template or precision differ, so their "
            "scores would mean nothing. Fit probes on this model, or load the other one."
        )
    return read_probes(folder / WEIGHTS, description)


def write_probes(
    weights: Path, description: Path, probes: ProbeSet, provenance: Provenance | None = None
) -> None:
    """Write weights and biases as safetensors, all else as JSON."""
    tensors = {
        "weight": np.stack([probe.weight for probe in probes.probes]).astype(np.float32),
        "bias": np.array([probe.bias for probe in probes.probes], dtype=np.float64),
    }
    with atomic_path(weights) as temporary:
        save_file(tensors, temporary)
    rows = [_to_json(probe) for probe in probes.probes]
    write_json(
        description,
        {
            "layer": probes.layer,
            "label_rule": probes.label_rule,
            "estimator": probes.estimator,
            "n": probes.n,
            "provenance": None if provenance is None else asdict(provenance),
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
    probes = tuple(_from_json(row, weight) for row, weight in zip(rows, directions, strict=True))
    return ProbeSet(
        probes, content["layer"], content["label_rule"], content["estimator"], content["n"]
    )


def _to_json(probe: Probe) -> dict[str, Any]:
    row = {name: value for name, value in asdict(probe).items() if name != "weight"}
    return row | row.pop("quality")


def _from_json(row: dict[str, Any], weight: Floats) -> Probe:
    names = {field.name for field in fields(Quality)}
    quality: dict[str, Any] = {
        name: tuple(value) if name.endswith("_ci") else value
        for name, value in row.items()
        if name in names
    }
    own = {name: value for name, value in row.items() if name not in names}
    return Probe(weight=weight, quality=Quality(**quality), **own)
