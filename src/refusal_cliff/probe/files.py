"""Probes as files: weights as safetensors, all else as JSON; and whether they fit a model."""

from __future__ import annotations

import hashlib
from dataclasses import asdict, fields
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from refusal_cliff.errors import RefusalCliffError
from refusal_cliff.io import atomic_path, read_text, without_folder, write_json
from refusal_cliff.model.subject import Subject, load
from refusal_cliff.probe.direction import Estimator, Floats
from refusal_cliff.probe.fit import LabelRule, Probe, ProbeSet, Provenance, ReadPoint
from refusal_cliff.probe.quality import Quality
from refusal_cliff.settings import Loading
from refusal_cliff.stats import Fraction, Ordered, ordered

WEIGHTS, DESCRIPTION = "probes.safetensors", "probes.json"
_AGAIN = "Delete it, and run the audit again to fit new probes."

_Pair = Annotated[tuple[Fraction, Fraction], AfterValidator(ordered)]


class _Checked(BaseModel):
    """JSON of the right types; a number is finite, and nothing is made fit."""

    model_config = ConfigDict(strict=True, allow_inf_nan=False)


class _Layer(_Checked):
    layer: int = Field(ge=1)
    bias: float
    strength: float = Field(ge=0)
    cv_auroc: Fraction
    shuffled_auroc: Fraction
    permutation_p: Fraction
    auroc: Fraction
    auroc_ci: _Pair
    accuracy: Fraction
    accuracy_ci: _Pair
    ece: float = Field(ge=0)
    ece_ci: Ordered


class _Origin(_Checked):
    model: str
    fingerprint: str
    data_hash: str
    read_point: ReadPoint
    position: Literal["last-closing"]
    polarity: Literal["high score refuses"]
    version: str


class _Description(_Checked):
    layer: int
    label_rule: LabelRule
    estimator: Estimator
    n: int = Field(ge=1)
    provenance: _Origin | None
    layers: list[_Layer] = Field(min_length=1)
    weights_sha256: str | None = None  # newer than the other fields


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


def subject_with_probes(model: str, folder: Path, loading: Loading) -> tuple[Subject, ProbeSet]:
    """A model and its probes, loaded: what another process needs no more than names for.

    Raises:
        RefusalCliffError: See `load` and `probes_of`.
    """
    subject = load(model, loading)
    return subject, probes_of(folder, subject)


def check_probes_fit(
    probes: ProbeSet, subject: Subject, description: Path | str, *, same_space: bool = False
) -> None:
    """Refuse probes that were fitted on another model than the one they are to be used on.

    Args:
        probes: Read from ``description``.
        subject: The model they are to be used on.
        description: Where they were read from; named in the error.
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
    if probes.read_point == "final_norm" and [p.layer for p in probes.probes] != [subject.n_layers]:
        raise RefusalCliffError(
            f"{description} is damaged: its probes read after the final norm, and are not of the "
            f"last block alone. {_AGAIN}"
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
            "weights_sha256": _sha256(tensors["weight"]),
            "layers": [_to_json(probe) for probe in probes.probes],
        },
    )


def read_probes(weights: Path, description: Path, subject: Subject | None = None) -> ProbeSet:
    """Read what `write_probes` wrote; nothing that is damaged gets through.

    Args:
        weights: The safetensors file.
        description: The JSON file.
        subject: The model that they are to be used on, see `check_probes_fit`; ``None`` where they
            are only shown, or are checked by the caller.

    Raises:
        RefusalCliffError: A file is damaged or of another version, the two do not belong together,
            or the probes were fitted on another model.
    """
    try:
        content = _Description.model_validate_json(read_text(description))
    except ValidationError as error:
        raise RefusalCliffError(_fault(description, error)) from error
    weight, bias = _tensors(weights)
    if len(weight) != len(content.layers):
        raise RefusalCliffError(
            f"{weights} has {len(weight)} probes and {description} {len(content.layers)}. "
            "Delete both, and run again."
        )
    origin = content.provenance and Provenance(**dict(content.provenance))
    read_point = origin.read_point if origin else "resid_post"
    read = tuple(_probe(row, w, read_point) for row, w in zip(content.layers, weight, strict=True))
    layers = [probe.layer for probe in read]
    same_weights = content.weights_sha256 in (None, _sha256(weight))
    if not (same_weights and np.array_equal(bias, _biases(read)) and content.layer in layers):
        raise RefusalCliffError(
            f"{weights} and {description} are not of the same probes. Delete both, and run again."
        )
    if layers != sorted(set(layers)):
        raise RefusalCliffError(
            f"{description}: the blocks of its probes are {', '.join(map(str, layers))}, which "
            f"are not in ascending order. {_AGAIN}"
        )
    probes = ProbeSet(read, content.layer, content.label_rule, content.estimator, content.n, origin)
    if subject is not None:
        check_probes_fit(probes, subject, description)
    return probes


def _fault(path: Path, error: ValidationError) -> str:
    """The first thing that is wrong; a field that is missing comes before a value."""
    found = error.errors(include_url=False)
    first = next((one for one in found if one["type"] == "missing"), found[0])
    place, kind = ".".join(map(str, first["loc"])), first["type"]
    name = str(first["loc"][-1]) if first["loc"] else "layer"
    if kind == "json_invalid":
        return f"{path} is not JSON: {first['msg']}. {_AGAIN}"
    if kind in ("missing", "model_type"):
        return (
            f"{path} lacks the field {name!r}: it is damaged, or was written by another version of "
            f"refusal-cliff. {_AGAIN}"
        )
    said = repr(first["input"])[:60]
    if kind == "literal_error":
        known = first.get("ctx", {}).get("expected")
        return (
            f"{path}: unknown {name} {said}; this version knows {known}. Update refusal-cliff, or "
            "fit new probes."
        )
    return f"{path}: {place} is {said}. {first['msg'].replace('Input', 'It', 1)}. {_AGAIN}"


def _published(origin: Provenance) -> dict[str, Any]:
    """Probes are passed on: where the model lay on this machine stays here."""
    return {**asdict(origin), "model": without_folder(origin.model)}


def _tensors(path: Path) -> tuple[Floats, Floats]:
    """Weights [layers, width] and biases [layers] of a safetensors file, all finite."""
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise RefusalCliffError(f"Could not read {path}: {error}. {_AGAIN}") from error
    for name, axes in (("weight", 2), ("bias", 1)):
        _require_numbers(path, name, tensors.get(name), axes)
    return tensors["weight"], tensors["bias"]


def _require_numbers(path: Path, name: str, found: Floats | None, axes: int) -> None:
    if found is None:
        wrong = f"lacks the tensor {name!r}"
    elif found.ndim != axes or not found.size:
        shape = "[layers, width]" if axes == 2 else "[layers]"
        wrong = f"has a {name!r} of shape {list(found.shape)}, not {shape}"
    elif found.dtype.kind != "f":
        wrong = f"has a {name!r} of {found.dtype}, not of floating-point numbers"
    elif not np.isfinite(found).all():
        wrong = f"has a {name!r} with NaN or infinity in it"
    else:
        return
    raise RefusalCliffError(f"{path} {wrong}: it is damaged. {_AGAIN}")


def _sha256(weight: Floats) -> str:
    return hashlib.sha256(np.ascontiguousarray(weight).tobytes()).hexdigest()


def _biases(probes: tuple[Probe, ...]) -> Floats:
    return np.array([probe.bias for probe in probes], dtype=np.float64)


def _to_json(probe: Probe) -> dict[str, Any]:
    content = asdict(probe)
    del content["weight"], content["read_point"]
    quality = content.pop("quality")
    return content | quality


def _probe(row: _Layer, weight: Floats, read_point: ReadPoint) -> Probe:
    own = dict(row)
    quality = Quality(**{field.name: own.pop(field.name) for field in fields(Quality)})
    return Probe(weight=weight, quality=quality, read_point=read_point, **own)
