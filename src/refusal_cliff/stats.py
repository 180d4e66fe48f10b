"""Intervals for shares and means. All are 95 % intervals unless said otherwise."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from pydantic import AfterValidator, ConfigDict, Field
from scipy.stats import binomtest, norm, rankdata

RESAMPLES = 2000
LEVEL = 0.95

Interval = tuple[float, float]
Floats: TypeAlias = NDArray[np.floating[Any]]


def ordered(interval: Interval) -> Interval:
    """The interval; a ``ValueError`` where it ends before it begins."""
    if interval[0] > interval[1]:
        raise ValueError(f"the interval {interval} ends before it begins")
    return interval


def in_brackets(interval: Sequence[float], form: str = ".2f") -> str:
    """An interval as text: ``[0.12, 0.34]``."""
    low, high = interval
    return f"[{low:{form}}, {high:{form}}]"


EXACT = ConfigDict(extra="forbid")
"""Of rows of a table of ours: no column, and no part of one, that is not known."""
Fraction = Annotated[float, Field(ge=0, le=1)]
Correlation = Annotated[float, Field(ge=-1, le=1)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Ordered = Annotated[Interval, AfterValidator(ordered)]
"""Numbers that a file of ours holds, checked when it is read."""


def wilson(successes: float, n: float) -> Interval:
    """Wilson score interval of a share (Wilson 1927).

    Args:
        successes: How many; need not be whole, see `share_interval`.
        n: Of how many; more than 0.
    """
    if not 0 <= successes <= n or n <= 0:
        raise ValueError(f"{successes} of {n} is not a share")
    z = float(norm.ppf(0.5 + LEVEL / 2))
    share = successes / n
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * np.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    low = 0.0 if successes == 0 else float(centre - half)  # exact where rounding is not
    high = 1.0 if successes == n else float(centre + half)
    return low, high


def share_interval(hits: Sequence[bool], groups: Sequence[str]) -> Interval:
    """Wilson interval of a share whose rows come in groups: answers to one prompt, near-duplicates.

    The effective sample size takes the place of n: the variance of the share under independence,
    divided by its cluster-robust variance (linearised, as in survey statistics). Groups that agree
    within count less than their rows; rows never count more than they are. Groups of one row give
    `wilson`. Where all rows agree, each group counts as one row.

    Args:
        hits: Of each row; at least one row.
        groups: Of each row.
    """
    effective = effective_size(hits, groups)
    return wilson(sum(hits) / len(hits) * effective, effective)


def effective_size(hits: Sequence[bool], groups: Sequence[str]) -> float:
    """Independent rows that are worth as much as ``hits`` in groups, see `share_interval`."""
    values = np.asarray(hits, dtype=np.float64)
    _, member = np.unique(np.asarray(groups), return_inverse=True)
    n, n_groups, share = len(values), int(member.max()) + 1, float(values.mean())
    if n_groups == n:
        return float(n)
    if share in (0.0, 1.0) or n_groups == 1:
        return float(n_groups)
    sums = np.bincount(member, weights=values - share)
    robust = float((sums**2).sum()) * n_groups / (n_groups - 1) / n**2
    return min(float(n), share * (1 - share) / robust) if robust > 0 else float(n)


@dataclass(frozen=True, slots=True)
class Share:
    """``count`` of ``n`` with a Wilson interval; ``value`` is ``None`` where ``n`` is 0.

    Attributes:
        count: How many.
        n: Of how many.
        effective: Independent answers that these are worth, where some share a prompt or a group of
            near-duplicates; ``None`` where all are independent.
    """

    count: int
    n: int
    effective: float | None = None

    @classmethod
    def of(cls, hits: Sequence[bool], groups: Sequence[str]) -> Share:
        """The share of rows that are hits, see `share_interval`."""
        if len(set(groups)) == len(groups):
            return cls(sum(hits), len(hits))
        return cls(sum(hits), len(hits), effective_size(hits, groups))

    @property
    def value(self) -> float | None:
        """The share itself."""
        return self.count / self.n if self.n else None

    @property
    def interval(self) -> Interval | None:
        """Its Wilson interval, by the number of independent answers."""
        if not self.n:
            return None
        size = self.n if self.effective is None else self.effective
        return wilson(self.count / self.n * size, size)


def bootstrap(
    statistic: Callable[[NDArray[np.int64]], float],
    groups: Sequence[str],
    seed: int,
    resamples: int = RESAMPLES,
) -> Interval:
    """Percentile bootstrap over groups: near-duplicates are drawn together.

    Args:
        statistic: Value for an array of row numbers, which may repeat; NaN is left out.
        groups: Group of each row.
        seed: Seed of the draws.
        resamples: Number of draws.
    """
    rng = np.random.default_rng(seed)
    _, member = np.unique(np.asarray(groups), return_inverse=True)
    rows_of = [np.flatnonzero(member == group) for group in range(int(member.max()) + 1)]
    values = []
    for _ in range(resamples):
        drawn = rng.integers(len(rows_of), size=len(rows_of))
        values.append(statistic(np.concatenate([rows_of[group] for group in drawn])))
    return percentiles(np.asarray(values))


def resampled_counts(
    groups: Sequence[str], seed: int, resamples: int = RESAMPLES
) -> NDArray[np.float64]:
    """How often each row is drawn in each draw of `bootstrap`, [resamples, rows].

    For a statistic that is a weighted sum, this replaces the loop over draws by one product.

    Args:
        groups: Group of each row; rows of one group are drawn together.
        seed: Seed of the draws: those of `bootstrap` with the same seed.
        resamples: Number of draws.
    """
    _, member = np.unique(np.asarray(groups), return_inverse=True)
    n = int(member.max()) + 1
    drawn = np.random.default_rng(seed).integers(n, size=(resamples, n))
    flat = (drawn + n * np.arange(resamples)[:, None]).ravel()
    counts = np.bincount(flat, minlength=resamples * n).reshape(resamples, n)
    return counts[:, member].astype(np.float64)


def counts_with_all(groups: Sequence[str], seed: int, resamples: int) -> NDArray[np.float64]:
    """`resampled_counts` below a row in which each row counts once, [1 + resamples, rows]."""
    return np.vstack([np.ones(len(groups)), resampled_counts(groups, seed, resamples)])


def bootstrap_mean(
    values: Sequence[float] | NDArray[Any],
    groups: Sequence[str] | None = None,
    *,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> Interval:
    """Bootstrap interval of the mean over groups, computed from group sums.

    Args:
        values: One a row; at least one.
        groups: Group of each row; ``None`` makes every row its own group.
        seed: Seed of the draws.
        resamples: Number of draws.
    """
    array = np.asarray(values, dtype=np.float64)
    names = np.arange(len(array)).astype(str) if groups is None else np.asarray(groups)
    _, member = np.unique(names, return_inverse=True)
    sums, counts = np.bincount(member, weights=array), np.bincount(member)
    rng = np.random.default_rng(seed)
    drawn = rng.integers(len(sums), size=(resamples, len(sums)))
    return percentiles(sums[drawn].sum(1) / counts[drawn].sum(1))


def difference_interval(
    differences: Sequence[float] | NDArray[Any], groups: Sequence[str], seed: int = 0
) -> Interval:
    """Interval of a mean paired difference of shares, by bootstrap over groups.

    Two made-up groups, one at −1 and one at +1, are drawn with the others, as Agresti and Min
    (2005) add half a pair to every cell: without them, few pairs that all agree would have an
    interval of no width. It always holds the mean itself.

    Args:
        differences: After minus before of each pair, in −1 … 1; at least one.
        groups: Of each pair.
        seed: Seed of the draws.
    """
    padded = [*map(float, differences), -1.0, 1.0]
    low, high = bootstrap_mean(padded, [*(f"={name}" for name in groups), "-1", "+1"], seed=seed)
    mean = float(np.mean(np.asarray(differences, dtype=np.float64)))
    return min(low, mean), max(high, mean)


def percentiles(values: NDArray[np.floating[Any]]) -> Interval:
    """Percentile interval of resampled values; NaN is left out."""
    tail = 100 * (1 - LEVEL) / 2
    low, high = np.nanpercentile(values, [tail, 100 - tail])
    return float(low), float(high)


def mcnemar(before: Sequence[bool], after: Sequence[bool]) -> float:
    """Exact two-sided McNemar test: p of so uneven a split of the pairs that changed.

    Args:
        before: One answer a pair.
        after: The other; as many.
    """
    gained = sum(not b and a for b, a in zip(before, after, strict=True))
    lost = sum(b and not a for b, a in zip(before, after, strict=True))
    return float(binomtest(gained, gained + lost).pvalue) if gained + lost else 1.0


def spearman(first: NDArray[Any], second: NDArray[Any]) -> float:
    """Spearman's rank correlation, ties given their mean rank; NaN where one side is constant.

    Args:
        first: [n].
        second: [n].
    """
    ranks = rankdata([first, second], axis=1)
    if len(first) < 2 or (ranks.std(axis=1) == 0).any():
        return float("nan")
    return float(np.corrcoef(ranks)[0, 1])
