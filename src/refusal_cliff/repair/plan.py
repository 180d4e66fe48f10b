"""What a training is to do: its budget, which row comes when, and all that it depends on."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

from refusal_cliff import __version__
from refusal_cliff.data.types import SafetyExample
from refusal_cliff.errors import RefusalCliffError
from refusal_cliff.model.subject import Subject
from refusal_cliff.settings import RepairConfig


def training_plan(n_safety: int, n_benign: int, config: RepairConfig) -> list[tuple[bool, int]]:
    """Which row is trained when: (is it benign, index), ``batch_size`` rows a step.

    Both kinds are shuffled by the seed and gone through again and again, each on its own, so
    that the benign rows of a step do not depend on the safety rows.

    Raises:
        RefusalCliffError: There are no rows of a kind that the mix asks for.
    """
    n_helpful = config.benign_per_step
    if n_safety == 0 or (n_benign == 0 and n_helpful > 0):
        kind = "safety" if n_safety == 0 else "benign"
        raise RefusalCliffError(
            f"There are no {kind} examples to train on. Give some"
            + (", or set the benign share to 0." if kind == "benign" else ".")
        )
    safety = _cycle(n_safety, f"safety:{config.seed}")
    benign = _cycle(n_benign, f"benign:{config.seed}")
    plan: list[tuple[bool, int]] = []
    for _ in range(config.steps):
        plan += [(False, next(safety)) for _ in range(config.batch_size - n_helpful)]
        plan += [(True, next(benign)) for _ in range(n_helpful)]
    return plan


def _cycle(n: int, seed: str) -> Iterator[int]:
    rng = random.Random(seed)
    while True:
        yield from rng.sample(range(n), n)


def made_from(
    subject: Subject,
    safety: Sequence[SafetyExample],
    benign: Sequence[SafetyExample],
    config: RepairConfig,
) -> dict[str, Any]:
    """All that the outcome of a training depends on, as JSON values: rows by their content."""
    return {
        "fingerprint": subject.fingerprint,
        "safety_sha256": digest([asdict(example) for example in safety]),
        "benign_sha256": digest([asdict(example) for example in benign]),
        **settings(config),
    }


def settings(config: RepairConfig) -> dict[str, Any]:
    """What of `made_from` is known before any row and the model are read."""
    return {**config.decides(), "version": __version__}


def digest(content: Any) -> str:
    """SHA-256 of JSON values."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
