"""Which examples to train on: Cliff-as-a-Judge (paper §6) and what it must beat, in one interface.

A strategy orders the pool; the first n of its order are trained on. Strategies differ in nothing
else, and each needs no more than what `Candidate` holds.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from refusal_cliff.data.types import Verdict, complies
from refusal_cliff.errors import RefusalCliffError
from refusal_cliff.settings import STRATEGIES, Strategy

COMPARED: tuple[Strategy, ...] = ("cliff", "random", "full")
"""Those that the demo compares; the laboratory compares all."""
FRACTION = 0.017
"""Share of the pool that the paper needs."""
SHORTLIST = 4
"""``diverse`` chooses among this many times n examples, those with the largest cliffs."""
GATE = 0.5
"""Plateau from which ``gated`` takes an example first."""
RULE_CHARACTERS = 128
"""How much of an answer the keyword rule reads (the paper's code: 128 characters)."""
REFUSAL_WORDS = (
    *("sorry", "apolog", "cannot", "can't", "can not", "won't", "will not", "unable", "not able"),
    *("decline", "refuse", "must not", "as an ai", "i'm not"),
    *("illegal", "unethical", "inappropriate", "harmful"),
)


@dataclass(frozen=True, slots=True)
class Candidate:
    """What a strategy may look at. Scores are ``None`` where there is no closed thinking.

    Attributes:
        id: Of its prompt.
        category: Of its prompt; may be empty.
        tokens: Length of the trace that was scored.
        plateau: See `TraceCliff`, as the three that follow.
        final: Score at the last closing token.
        plateau_logit: Plateau of the logits.
        final_logit: Logit at the last closing token.
        verdict: What a judge said of the model's own answer; ``unscored`` where it wrote none.
        refusal_words: Whether the model's own answer begins with words of refusal.
        state: The model's own hidden state over the thinking, projected; ``None`` if not kept.
    """

    id: str
    category: str = ""
    tokens: int = 0
    plateau: float | None = None
    final: float | None = None
    plateau_logit: float = 0.0
    final_logit: float = 0.0
    verdict: Verdict = "unscored"
    refusal_words: bool = False
    state: NDArray[np.float32] | None = None

    @property
    def cliff(self) -> float | None:
        """``plateau − final``, the paper's misalignment score."""
        return None if self.plateau is None or self.final is None else self.plateau - self.final


@dataclass(frozen=True, slots=True)
class Chosen:
    """What each strategy chose of a pool that a run scored: ``selection.json``.

    Attributes:
        pool: Examples scored.
        duplicates: Left out: there twice.
        contaminated: Left out: prompts of the test.
        unscored: Of the pool: the thinking never closed.
        failures: Of the pool: the model complies.
        n: How many are chosen.
        chosen: Ids, by strategy.
        failures_chosen: How many of these the model complies with.
    """

    pool: int
    duplicates: int
    contaminated: int
    unscored: int
    failures: int
    n: int
    chosen: dict[Strategy, list[str]]
    failures_chosen: dict[Strategy, int]


def has_refusal_words(answer: str) -> bool:
    """The keyword rule: does the beginning of an answer hold a word of refusal?"""
    start = answer[:RULE_CHARACTERS].casefold().replace("’", "'")
    return any(word in start for word in REFUSAL_WORDS)


def how_many(pool: int, fraction: float = FRACTION) -> int:
    """Examples in a fraction of the pool, rounded to the nearest; at least one."""
    return max(1, round(fraction * pool))


def select(strategy: Strategy, pool: Sequence[Candidate], n: int, seed: int = 0) -> list[Candidate]:
    """Choose what to train on.

    - ``cliff``: the largest ``plateau − final`` (the paper's).
    - ``final``: the lowest final score alone (what the paper's code ranks by).
    - ``gated``: ``cliff`` among plateaus of at least ``GATE``, then the others.
    - ``diverse``: ``cliff``, spread over the categories or, without any, over the model's own
      states, among the ``SHORTLIST`` × n largest.
    - ``rule``: at random among answers that begin without a word of refusal, then the others.
    - ``judge``: at random among answers that the judge calls complied or harmful, then the others.
    - ``longest``, ``random``: what they say; ``full``: everything.

    Args:
        strategy: One of ``STRATEGIES``.
        pool: Candidates; their order does not matter.
        n: How many; ``full`` ignores it.
        seed: Seed of whatever is drawn.

    Raises:
        RefusalCliffError: The pool has fewer than ``n``, the strategy is unknown, or it needs what
            the pool was not scored for.
    """
    if strategy not in STRATEGIES:
        raise RefusalCliffError(f"Unknown strategy {strategy!r}. Choose: {', '.join(STRATEGIES)}.")
    if strategy == "full":
        return list(pool)
    if n > len(pool):
        remedy = "Ask for fewer." if pool else "left-out.jsonl says why no row could be scored."
        raise RefusalCliffError(f"The pool has {len(pool)} examples; {n} were asked for. {remedy}")
    ordered = sorted(pool, key=lambda c: c.id)
    if strategy == "diverse":
        return _spread(sorted(ordered, key=_by_cliff)[: SHORTLIST * n], n)
    if strategy in ("rule", "judge") and all(c.verdict == "unscored" for c in ordered):
        raise RefusalCliffError(
            f"The strategy {strategy!r} reads the model's own answers, and there are none. Score "
            "the pool on the model's own thinking (--thinking own)."
        )
    random.Random(f"select:{seed}").shuffle(ordered)  # ties of a sort stay in this order
    return sorted(ordered, key=_KEYS[strategy])[:n]


def _by_cliff(candidate: Candidate) -> tuple[float, float, str]:
    """Falling cliff; ties by the cliff in logits, because scores saturate, then by id."""
    if candidate.cliff is None:
        return float("inf"), 0.0, candidate.id
    drop = candidate.plateau_logit - candidate.final_logit
    return -candidate.cliff, -drop, candidate.id


def _by_final(candidate: Candidate) -> tuple[bool, float, str]:
    return candidate.final is None, candidate.final_logit, candidate.id


def _gated(candidate: Candidate) -> tuple[bool, float, float, str]:
    stands = candidate.plateau is not None and candidate.plateau >= GATE
    return not stands, *_by_cliff(candidate)


_KEYS: dict[Strategy, Callable[[Candidate], Any]] = {
    "cliff": _by_cliff,
    "final": _by_final,
    "gated": _gated,
    "rule": lambda candidate: candidate.refusal_words,
    "judge": lambda candidate: not complies(candidate.verdict),
    "longest": lambda candidate: (-candidate.tokens, candidate.id),
    "random": lambda _: 0,
}


def _spread(shortlist: Sequence[Candidate], n: int) -> list[Candidate]:
    """N of a list ordered by cliff, over its categories in turn, or else over its states."""
    if len({candidate.category for candidate in shortlist}) > 1:
        return _over_categories(shortlist, n)
    if all(candidate.state is not None for candidate in shortlist):
        return [shortlist[place] for place in _over_states(shortlist, n)]
    raise RefusalCliffError(
        "The strategy 'diverse' spreads over categories or over the model's own states; the pool "
        "has neither. Add a column 'category'."
    )


def _over_categories(shortlist: Sequence[Candidate], n: int) -> list[Candidate]:
    """The best of each category, then the second best of each, and so on."""
    taken, turns = Counter[str](), list[tuple[int, int]]()
    for place, candidate in enumerate(shortlist):
        turns.append((taken[candidate.category], place))
        taken[candidate.category] += 1
    return [shortlist[place] for _, place in sorted(turns)[:n]]


def _over_states(shortlist: Sequence[Candidate], n: int) -> list[int]:
    """Farthest points first, from the largest cliff on (Gonzalez 1985)."""
    states = np.stack([c.state for c in shortlist if c.state is not None]).astype(np.float64)
    chosen = [0]
    distance = np.square(states - states[0]).sum(1)
    while len(chosen) < n:
        distance[chosen] = -1.0
        chosen.append(int(distance.argmax()))
        distance = np.minimum(distance, np.square(states - states[chosen[-1]]).sum(1))
    return chosen
