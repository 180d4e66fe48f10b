"""Probes as files: weights as safetensors, all else as JSON."""

from __future__ import annotations

from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

from refusal_cliff.errors import RefusalCliffError
from refusal_cliff.io import atomic_path, read_json, write_json
from refusal_cliff.probe import Floats, Probe, ProbeSet
from refusal_cliff.quality import Quality


def write_probes(weights: Path, description: Path, probes: ProbeSet) -> None:
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
