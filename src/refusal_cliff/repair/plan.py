"""What a training is to do: its budget, which row comes when, and all that it depends on."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from refusal_cliff import __version__
from refusal_cliff.data.traces import SafetyExample
from refusal_cliff.errors import RefusalCliffError
from refusal_cliff.model.subject import Subject

Method = Literal["lora", "full"]


@dataclass(frozen=True, slots=True)
class RepairConfig:
    """The fixed budget of one repair: ``steps`` optimiser steps of ``batch_size`` rows each.

    ``benign_share`` of the rows of every step are benign; ``max_length`` is in tokens. ``method``
    trains a LoRA adapter or all weights; ``save_every`` so many steps a checkpoint is written, from
    which a killed training goes on (0: none).
    """

    steps: int = 40
    batch_size: int = 16
    lr: float = 2e-3
    lora_r: int = 8
    benign_share: float = 0.5
    seed: int = 0
    max_length: int = 2048
    method: Method = "lora"
    save_every: int = 0

    def __post_init__(self) -> None:
        if min(self.steps, self.batch_size, self.lora_r, self.max_length) < 1:
            raise RefusalCliffError(
                "steps, batch size, LoRA rank and maximal length must each be at least 1."
            )
        if not (0 <= self.benign_share < 1 and self.lr > 0):
            raise RefusalCliffError(
                "The benign share must be at least 0 and below 1, and the learning rate above 0."
            )

    @property
    def benign_per_step(self) -> int:
        """Benign rows in every step; at least one row of a step is a safety example."""
        return min(round(self.batch_size * self.benign_share), self.batch_size - 1)

    def decides(self) -> dict[str, Any]:
        """All that changes what is learnt, as JSON: not how often it is saved."""
        found = asdict(self)
        del found["save_every"]
        return found


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
