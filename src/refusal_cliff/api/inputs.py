"""Prompts and examples of the embedded organisms, on which the method can be tried at once."""

from __future__ import annotations

from refusal_cliff.data.traces import LABELS, Prompt, SafetyExample
from refusal_cliff.organisms import language


def organism_prompts(split: language.Split, n: int, seed: int = 0) -> list[Prompt]:
    """Harmful and benign prompts that the embedded organisms understand.

    Args:
        split: ``validation`` to fit on, ``test`` to measure on, ``pool`` to select from; no two
            share a request.
        n: Prompts of each label.
        seed: Seed of the draw.
    """
    return [prompt for label in LABELS for prompt in language.prompts(split, label, n, seed)]


def organism_examples(n: int, seed: int = 0) -> tuple[list[SafetyExample], list[SafetyExample]]:
    """Safety examples to select from, and benign ones to mix in, for the embedded organisms.

    Args:
        n: Examples of each kind.
        seed: Seed of the draw.
    """
    return language.safety_pool(n, seed), language.examples("pool", "benign", n, seed)
