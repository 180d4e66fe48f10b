"""Probes as files: weights as safetensors, all else as JSON; and whether they fit a model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, get_args

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from refusal_cliff.errors import RefusalCliffError
from refusal_cliff.io import atomic_path, read_json, without_folder, write_json
from refusal_cliff.model.subject import Subject
from refusal_cliff.probe.direction import Floats
from refusal_cliff.probe.fit import Probe, ProbeSet
from refusal_cliff.probe.provenance import Provenance, ReadPoint
from refusal_cliff.probe.quality import Quality

WEIGHTS, DESCRIPTION = "probes.safetensors", "probes.json"
_QUALITY = tuple(field.name for field in fields(Quality))
_ELSEWHERE = ("weight", "quality", "read_point")
_PROBE = tuple(f.name for f in fields(Probe) if f.name not in _ELSEWHERE)
_PROVENANCE = tuple(field.name for field in fields(Provenance))


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
    return read_probes(folder / WEIGHTS, description, subject)


def check_probes_fit(
    probes: ProbeSet, subject: Subject, description: Path, *, same_space: bool = False
) -> None:
    """Refuse probes that were fitted on another model than the one they are to be used on.

    Args:
        probes: Read from ``description``.
        subject: The model they are to be used on.
        description: Named in the error.
        same_space: The model is a changed version (repaired, ablated) of the one they were fitted
            on and is to be read with the same directions: only layers and width must agree.

    Raises:
        RefusalCliffError: They were not fitted on it, or cannot be.
    """
    origin = probes.provenance
    fitted = "an unknown model" if origin is None else f"{origin.model!r}"
    width, deepest = len(probes.chosen.weight), probes.probes[-1].layer
    if width != subject.width or deepest > subject.n_layers:
        raise RefusalCliffError(
            f"The probes of {description} were fitted on {fitted}, of width {width} and at least "
            f"{deepest} blocks, not on {subject.name!r}, of width {subject.width} and "
            f"{subject.n_layers} blocks. Fit probes on this model, or load the other one."
        )
    if same_space or (origin is not None and origin.fingerprint == subject.fingerprint):
        return
    known = "" if origin is None else f" (fingerprint {origin.fingerprint[:12]})"
    raise RefusalCliffError(
        f"The probes of {description} were fitted on {fitted}{known}, not on {subject.name!r} "
        f"({subject.fingerprint[:12]}): weights, chat template or precision differ, so their "
        "scores would mean nothing. Fit probes on this model, or load the other one."
    )


def write_probes(weights: Path, description: Path, probes: ProbeSet) -> None:
    """Write weights and biases as safetensors, all else as JSON, each file whole or not at all."""
    tensors = {
        "weight": np.stack([probe.weight for probe in probes.probes]).astype(np.float32),
        "bias": _biases(probes.probes),
    }
    with atomic_path(weights) as temporary:
        save_file(tensors, temporary)
    write_json(
        description,
        {
            "layer": probes.layer,
            "label_rule": probes.label_rule,
            "estimator": probes.estimator,
            "n": probes.n,
            "provenance": None if probes.provenance is None else _published(probes.provenance),
            "layers": [_to_json(probe) for probe in probes.probes],
        },
    )


def read_probes(weights: Path, description: Path, subject: Subject | None = None) -> ProbeSet:
    """Read what `write_probes` wrote.

    Args:
        weights: The safetensors file.
        description: The JSON file.
        subject: The model that they are to be used on, see `check_probes_fit`; ``None`` where they
            are only shown, or are checked by the caller.

    Raises:
        RefusalCliffError: A file is damaged or of another version, the two do not belong together,
            or the probes were fitted on another model.
    """
    content = read_json(description)
    names = ("layer", "label_rule", "estimator", "n", "provenance", "layers")
    top = _fields(content, names, description)
    rows = [_fields(row, (*_PROBE, *_QUALITY), description) for row in top["layers"]]
    tensors = _tensors(weights)
    if len(tensors["weight"]) != len(rows):
        raise RefusalCliffError(
            f"{weights} has {len(tensors['weight'])} probes and {description} {len(rows)}. "
            "Delete both, and run again."
        )
    origin = None if top["provenance"] is None else _provenance(top["provenance"], description)
    read_point = "resid_post" if origin is None else origin.read_point
    read = tuple(
        _from_json(row, w, read_point) for row, w in zip(rows, tensors["weight"], strict=True)
    )
    if not np.array_equal(tensors["bias"], _biases(read)) or top["layer"] not in (
        probe.layer for probe in read
    ):
        raise RefusalCliffError(
            f"{weights} and {description} are not of the same probes. Delete both, and run again."
        )
    probes = ProbeSet(
        read,
        top["layer"],
        top["label_rule"],
        top["estimator"],
        top["n"],
        origin,
    )
    if subject is not None:
        check_probes_fit(probes, subject, description)
    return probes


def _fields(content: Any, names: tuple[str, ...], path: Path) -> dict[str, Any]:
    """The named fields of a JSON object.

    Raises:
        RefusalCliffError: One is missing.
    """
    missing = [n for n in names if not isinstance(content, Mapping) or n not in content]
    if missing:
        raise RefusalCliffError(
            f"{path} lacks the field {missing[0]!r}: it is damaged, or was written by another "
            "version of refusal-cliff. Delete it, and run again to fit the probes anew."
        )
    return {name: content[name] for name in names}


def _published(origin: Provenance) -> dict[str, Any]:
    """Probes are passed on: where the model lay on this machine stays here."""
    return {**asdict(origin), "model": without_folder(origin.model)}


def _provenance(content: Any, path: Path) -> Provenance:
    origin = Provenance(**_fields(content, _PROVENANCE, path))
    if origin.read_point not in get_args(ReadPoint):
        raise RefusalCliffError(
            f"{path}: unknown read_point {origin.read_point!r}; this version knows "
            f"{' and '.join(get_args(ReadPoint))}. Update refusal-cliff, or fit the probes anew."
        )
    return origin


def _tensors(path: Path) -> dict[str, Floats]:
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise RefusalCliffError(
            f"Could not read {path}: {error}. Delete it, and run again to fit the probes anew."
        ) from error
    return _fields(tensors, ("weight", "bias"), path)


def _biases(probes: tuple[Probe, ...]) -> Floats:
    return np.array([probe.bias for probe in probes], dtype=np.float64)


def _to_json(probe: Probe) -> dict[str, Any]:
    content = asdict(probe)
    return {name: content[name] for name in _PROBE} | content["quality"]


def _from_json(row: dict[str, Any], weight: Floats, read_point: ReadPoint) -> Probe:
    quality: dict[str, Any] = {
        name: tuple(row[name]) if name.endswith("_ci") else row[name] for name in _QUALITY
    }
    own = {name: row[name] for name in _PROBE}
    return Probe(weight=weight, quality=Quality(**quality), read_point=read_point, **own)
