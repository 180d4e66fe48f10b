"""Which sets of heads are taken out while a model answers: doses of a ranking, and controls."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from refusal_cliff.data.traces import Prompt
from refusal_cliff.heads.table import METHODS, HeadRow, budget, ranked
from refusal_cliff.model.subject import Head

CONTROLS = ("random", "same-layer", "promoting")
"""Kinds of control sets: any other heads; others of the same blocks; heads that promote refusal."""
FOUND, WITH_NONE, WITH_FOUND = "found", "with-none", "with-found"
"""The heads found, on all prompts; and what control sets are compared with, on their prompts."""
PROMOTING_POOL = 2
"""Promoting sets are drawn from the strongest, this many times as many as are drawn."""
Asked: TypeAlias = tuple[Prompt, frozenset[Head], bool, bool]
"""A prompt, the heads out, whether the model thinks anew, and else whether they are out in all."""


@dataclass(frozen=True, slots=True)
class Trial:
    """A set of heads to take out while answering some prompts.

    Attributes:
        kind: ``FOUND``, ``top-`` and a ranking, ``joint``, ``WITH_NONE``, ``WITH_FOUND``, or one of
            ``CONTROLS``.
        heads: The set.
        prompts: What to answer.
        anew: Whether the model thinks anew; else its thought is kept and the heads are out from the
            closing tokens on.
        everywhere: Whether they are out while a kept thought is read, too: so a server continues it
            with an adapter.
    """

    kind: str
    heads: tuple[Head, ...]
    prompts: tuple[Prompt, ...]
    anew: bool = False
    everywhere: bool = False

    @property
    def asked(self) -> list[Asked]:
        """What each of its answers depends on."""
        heads = frozenset(self.heads)
        return [(prompt, heads, self.anew, self.everywhere) for prompt in self.prompts]


def is_dose(kind: str) -> bool:
    """Whether a kind of trial is a dose: the top of a ranking, or a joint set."""
    return kind.startswith("top-") or kind == "joint"


def sizes(total: int, fractions: Sequence[float]) -> list[int]:
    """Numbers of heads of some fractions of all, each once, rising; 0 stays 0."""
    return sorted({budget(total, part) if part else 0 for part in fractions})


def dose_trials(
    rows: Sequence[HeadRow],
    methods: Sequence[str],
    joint: Sequence[Sequence[Head]],
    fractions: Sequence[float],
    prompts: Sequence[Prompt],
    *,
    everywhere: bool = False,
) -> list[Trial]:
    """The top of each ranking, and the best joint set, of each size.

    Args:
        rows: All heads.
        methods: Rankings.
        joint: The best joint set of 1, 2, … heads; empty to try none.
        fractions: Sizes, as shares of all heads.
        prompts: What each trial answers.
        everywhere: As for `Trial`.
    """
    asked = tuple(prompts)
    wanted = sizes(len(rows), fractions)
    found = [
        Trial(f"top-{method}", tuple(ranked(rows, method)[:n]), asked, everywhere=everywhere)
        for method in methods
        for n in wanted
    ]
    found += [
        Trial("joint", tuple(joint[n - 1]), asked, everywhere=everywhere)
        for n in wanted
        if 0 < n <= len(joint)
    ]
    return found


def control_trials(
    rows: Sequence[HeadRow],
    found: Sequence[Head],
    spared: Sequence[Head],
    draws: dict[str, int],
    prompts: Sequence[Prompt],
    seed: int,
) -> list[Trial]:
    """Sets of as many heads as were found, that should restore nothing, and what they must not do.

    No head and the heads found come first, on the same prompts.

    Args:
        rows: All heads.
        found: The heads found.
        spared: Heads never in a set, beside those found.
        draws: Sets of each kind of ``CONTROLS``.
        prompts: What each trial answers.
        seed: Seed of the draws.
    """
    if not found:
        return []
    free = [row.head for row in rows if row.head not in found and row.head not in spared]
    rng = random.Random(f"random-heads:{seed}")
    drawers = {
        "random": lambda: rng.sample(free, len(found)),
        "same-layer": lambda: list(_same_layers(rng, found, free)),
        "promoting": lambda: rng.sample(_promoting(rows, free, len(found)), len(found)),
    }
    asked = tuple(prompts)
    return [
        Trial(WITH_NONE, (), asked),
        Trial(WITH_FOUND, tuple(found), asked),
        *(
            Trial(kind, tuple(sorted(drawers[kind]())), asked)
            for kind in CONTROLS
            for _ in range(draws[kind])
        ),
    ]


def _same_layers(rng: random.Random, found: Sequence[Head], free: Sequence[Head]) -> Iterator[Head]:
    """As many heads of each block as were found there; fewer where there are no others."""
    for layer, n in sorted(Counter(head.layer for head in found).items()):
        others = [head for head in free if head.layer == layer]
        yield from rng.sample(others, min(n, len(others)))


def _promoting(rows: Sequence[HeadRow], free: Sequence[Head], n: int) -> list[Head]:
    strongest = sorted((row for row in rows if row.head in free), key=METHODS["causal"])
    return [row.head for row in strongest[: PROMOTING_POOL * n]]
