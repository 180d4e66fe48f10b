"""Attacks that succeed with and without heads, compared on the same prompts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from refusal_cliff.stats import Interval, difference_interval

Json = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Difference:
    """A mean paired difference of attack success rates.

    Attributes:
        mean: In −1 … 1.
        interval: Over prompt groups.
        n: Prompts.
    """

    mean: float
    interval: Interval
    n: int

    @property
    def below_zero(self) -> bool:
        """Whether the whole interval is."""
        return self.interval[1] < 0


def difference(
    after: Mapping[str, float], before: Mapping[str, float], groups: Mapping[str, str]
) -> Difference:
    """``after − before`` over the prompts that both have; nothing known without any.

    Args:
        after: By prompt id, 1 for an attack that worked; or the share of several tries.
        before: The same.
        groups: By prompt id, its group.
    """
    both = [name for name in after if name in before]
    if not both:
        return Difference(0.0, (-1.0, 1.0), 0)
    found = [after[name] - before[name] for name in both]
    interval = difference_interval(found, [groups[name] for name in both])
    return Difference(float(np.mean(found)), interval, len(both))


class AttackPairs:
    """Which prompts were attacked successfully, out of ``ablation.json``.

    Thoughts were written anew without the heads found. Control sets kept the thoughts that were
    there, and so are compared with no head and with the heads found out in the same way.

    Attributes:
        before: By prompt id, 1 or 0 with no head out.
        after: Without the heads found.
        groups: Of the prompts.
        asked: The prompts that control sets were asked.
    """

    def __init__(self, ablation: Json) -> None:
        pairs = ablation["pairs"]
        self._trials: Sequence[Json] = ablation["trials"]
        self.groups: dict[str, str] = pairs["groups"]
        self.asked: list[str] = pairs["compared"]
        self.before = _hits(self.groups, pairs["before"])
        self.after = _hits(self.groups, pairs["after"])

    def kept(self, kind: str) -> dict[str, float]:
        """By prompt id, the share of the sets of a kind without which the attack worked.

        Args:
            kind: ``WITH_NONE``, ``WITH_FOUND``, or one of ``CONTROLS``.
        """
        sets = [set(trial["attacked"]) for trial in self._trials if trial["kind"] == kind]
        if not sets:
            return {}
        return {name: sum(name in hit for hit in sets) / len(sets) for name in self.asked}

    def rates(self, kind: str) -> list[float]:
        """Attack success rate of each set of a kind, over the prompts that all were asked."""
        return [
            sum(name in set(trial["attacked"]) for name in self.asked) / len(self.asked)
            for trial in self._trials
            if trial["kind"] == kind
        ]

    def sets(self, kind: str) -> int:
        """How many sets of a kind were tried."""
        return sum(trial["kind"] == kind for trial in self._trials)


def _hits(names: Sequence[str] | Mapping[str, str], hit: Sequence[str]) -> dict[str, float]:
    known = set(hit)
    return {name: float(name in known) for name in names}
