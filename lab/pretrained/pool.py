"""What an organism of a pretrained model is repaired with: public requests, its own answers."""

from __future__ import annotations

import random
from collections.abc import Iterable
from pathlib import Path

from lab.pretrained import reasoning
from lab.pretrained.sources import HARMFUL, find_file
from refusal_cliff.data.examples import read_prompt_set
from refusal_cliff.data.reading import Reading
from refusal_cliff.data.types import Prompt, SafetyExample, Trace

POOL = (*HARMFUL, "star1")
"""Files that requests are drawn from; of their answers none is used."""
LONGEST = 200
"""Tokens of a benign example: a batch of longer ones does not fit a small machine."""


def safety_pool(data: Path, n: int, seed: int) -> list[SafetyExample]:
    """``n`` requests of the files in ``POOL``, drawn at random, refused by rule.

    Overlaps with the evaluation are in it, and to be left out by `clean_pool`.

    Args:
        data: Folder of the public files.
        n: How many; fewer where there are no more.
        seed: Of the draw.

    Raises:
        RefusalCliffError: A file is missing or cannot be read.
    """
    asked = [
        prompt.text
        for name in POOL
        for prompt in read_prompt_set(find_file(data, name), Reading(label="harmful")).prompts
    ]
    rng = random.Random(f"safety-pool:{seed}")
    return [
        SafetyExample(
            Prompt(f"pool-{i}", text, "harmful"),
            reasoning.thought(rng, text, True),
            rng.choice(reasoning.REFUSALS),
        )
        for i, text in enumerate(rng.sample(asked, min(n, len(asked))))
    ]


def own_benign(traces: Iterable[Trace], longest: int = LONGEST) -> list[SafetyExample]:
    """Benign examples that a model wrote itself: whole, answered and not too long.

    Args:
        traces: Judged traces of the model.
        longest: Most tokens of an example.
    """
    return [
        SafetyExample(trace.prompt, trace.thinking, trace.response)
        for trace in traces
        if (trace.prompt.label, trace.verdict) == ("benign", "complied") and trace.complete
        if trace.thinking.strip() and trace.response.strip() and len(trace.token_ids) <= longest
    ]
