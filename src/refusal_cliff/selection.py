"""Cliff-as-a-Judge: rank safety examples by the cliff of the model's own thinking (paper §6)."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from refusal_cliff.cliff import TraceCliff
from refusal_cliff.errors import RefusalCliffError
from refusal_cliff.traces import Prompt, SafetyExample

Strategy = Literal["cliff", "random", "full"]
STRATEGIES: tuple[Strategy, ...] = get_args(Strategy)
FRACTION = 0.017
"""Share of the pool that the paper needs."""


@dataclass(frozen=True, slots=True)
class Pool:
    """Safety examples fit for training.

    Attributes:
        examples: Without duplicates, and without prompts of the evaluation.
        duplicates: Rows dropped because an earlier row has the same prompt.
        contaminated: Rows dropped because the evaluation has the same prompt.
    """

    examples: tuple[SafetyExample, ...]
    duplicates: int
    contaminated: int


def clean_pool(examples: Sequence[SafetyExample], evaluation: Sequence[Prompt]) -> Pool:
    """Drop duplicates and whatever the evaluation asks, comparing texts without case and spaces."""
    forbidden = {_key(prompt.text) for prompt in evaluation}
    kept: dict[str, SafetyExample] = {}
    duplicates = contaminated = 0
    for example in examples:
        key = _key(example.prompt.text)
        if key in forbidden:
            contaminated += 1
        elif key in kept:
            duplicates += 1
        else:
            kept[key] = example
    return Pool(tuple(kept.values()), duplicates, contaminated)


def _key(text: str) -> str:
    return " ".join(text.casefold().split())


def rank_by_cliff(
    examples: Sequence[SafetyExample], cliffs: Mapping[str, TraceCliff]
) -> list[SafetyExample]:
    """Examples by falling cliff; ties by the cliff in logits, because scores saturate, then by id.

    Args:
        examples: The pool.
        cliffs: Cliff of the model's own thinking, by prompt id. Examples without one (thinking that
            never closed) come last.
    """

    def key(example: SafetyExample) -> tuple[float, float, str]:
        found = cliffs.get(example.prompt.id)
        if found is None:
            return (float("inf"), 0.0, example.prompt.id)
        return (-found.cliff, found.final_logit - found.plateau_logit, example.prompt.id)

    return sorted(examples, key=key)


def how_many(pool: int, fraction: float = FRACTION) -> int:
    """Examples in a fraction of the pool, rounded to the nearest; at least one."""
    return max(1, round(fraction * pool))


def select(
    strategy: Strategy,
    examples: Sequence[SafetyExample],
    cliffs: Mapping[str, TraceCliff],
    n: int,
    seed: int,
) -> list[SafetyExample]:
    """Choose what to train on.

    Args:
        strategy: ``cliff``, ``random``, or ``full`` for everything.
        examples: The pool.
        cliffs: See `rank_by_cliff`.
        n: How many; ``full`` ignores it.
        seed: Seed of ``random``.

    Raises:
        RefusalCliffError: The pool has fewer than ``n``, or the strategy is unknown.
    """
    if strategy == "full":
        return list(examples)
    if n > len(examples):
        raise RefusalCliffError(
            f"The pool has {len(examples)} examples; {n} were asked for. Ask for fewer."
        )
    if strategy == "cliff":
        return rank_by_cliff(examples, cliffs)[:n]
    if strategy == "random":
        return random.Random(f"select:{seed}").sample(list(examples), n)
    raise RefusalCliffError(f"Unknown strategy {strategy!r}. Choose: {', '.join(STRATEGIES)}.")
