"""How much the rankings of heads agree."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from refusal_cliff.heads.table import METHODS, HeadRow, budget, ranked
from refusal_cliff.stats import spearman

FRACTIONS = (0.01, 0.03, 0.05, 0.10)


@dataclass(frozen=True, slots=True)
class Agreement:
    """Two rankings of the same heads.

    Attributes:
        first: Name of one.
        second: Name of the other.
        spearman: Rank correlation over all heads that act on the probe; 0 where one of the
            rankings tells no heads apart.
        overlap: Share of heads in common at the top, by the fraction of all heads that the top is.
    """

    first: str
    second: str
    spearman: float
    overlap: dict[float, float]


def agreements(rows: Sequence[HeadRow]) -> list[Agreement]:
    """Every pair of rankings.

    Heads after the probe's block have no effect by any measure, and all rankings would agree on
    them: the correlation leaves them out.
    """
    acting = [row for row in rows if row.causal.mean or row.direct.mean]
    found = []
    for first, second in combinations(METHODS, 2):
        values = [[METHODS[name](row) for row in acting] for name in (first, second)]
        correlation = float(np.nan_to_num(spearman(*np.asarray(values))))
        overlap = {part: _overlap(rows, first, second, part) for part in FRACTIONS}
        found.append(Agreement(first, second, correlation, overlap))
    return found


def _overlap(rows: Sequence[HeadRow], first: str, second: str, fraction: float) -> float:
    n = budget(len(rows), fraction)
    tops = [set(ranked(rows, method)[:n]) for method in (first, second)]
    return len(tops[0] & tops[1]) / n
