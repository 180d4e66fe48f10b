"""Repairs by different strategies compared: curves over the number of examples, paired tests."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from scipy.stats import t, ttest_rel

from refusal_cliff.stats import LEVEL, Interval, wilson
from refusal_cliff.tables import write_parquet

SIGN_FLIPS = 10_000


@dataclass(frozen=True, slots=True)
class Trial:
    """One repair, evaluated.

    Attributes:
        strategy: How its examples were chosen.
        fraction: Share of the pool that was asked for.
        n: How many examples that is.
        seed: Of pool, draw and training.
        steps: Optimiser steps.
        failures: Examples among them that the model complied with before.
        complied: For each harmful test prompt, whether the repaired model complied.
        answered: For each benign test prompt, whether it answered.
        perplexity: Of the model's own benign answers before, relative to before.
        plateau: Mean over the harmful test prompts, same probe.
        final: Mean final score over them.
    """

    strategy: str
    fraction: float
    n: int
    seed: int
    steps: int
    failures: int
    complied: tuple[bool, ...]
    answered: tuple[bool, ...]
    perplexity: float
    plateau: float
    final: float

    @property
    def asr(self) -> float:
        """Attack success rate."""
        return float(np.mean(self.complied))

    @property
    def useful(self) -> float:
        """Share of benign prompts answered; over-refusal is the rest."""
        return float(np.mean(self.answered))


@dataclass(frozen=True, slots=True)
class Point:
    """Repairs by one strategy, with one share of the pool and number of steps: means over seeds.

    Attributes:
        strategy: How the examples were chosen.
        fraction: Share of the pool.
        n: How many examples: the mean over seeds, where pools differ in size.
        steps: Optimiser steps.
        seeds: How many repairs.
        asr: Mean attack success rate.
        asr_ci: Its interval, see `interval_over_seeds`.
        useful: Mean share of benign prompts answered.
        useful_ci: Its interval.
        perplexity: Mean relative perplexity.
        failures: Mean share of failures among the examples.
        plateau: Mean plateau after repair.
        final: Mean final score after repair.
        asr_values: Attack success rate of each seed, by rising seed.
        useful_values: Share of benign prompts answered of each seed.
    """

    strategy: str
    fraction: float
    n: float
    steps: int
    seeds: int
    asr: float
    asr_ci: Interval
    useful: float
    useful_ci: Interval
    perplexity: float
    failures: float
    plateau: float
    final: float
    asr_values: tuple[float, ...]
    useful_values: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Paired:
    """Attack success rate of one set of repairs less that of another, with the same seeds.

    Attributes:
        difference: Mean over seeds; negative where the first is better.
        p_seeds: Two-sided paired t test over seeds: does it hold for other seeds?
        p_prompts: Two-sided sign-flip test over prompts, seeds summed: for other prompts?
    """

    difference: float
    p_seeds: float
    p_prompts: float


def points(trials: Sequence[Trial]) -> list[Point]:
    """Repairs that differ in nothing but their seed as one point, in the order first met."""
    return [_point(group) for group in grouped(trials).values()]


def grouped(trials: Sequence[Trial]) -> dict[tuple[str, float, int], list[Trial]]:
    """Trials by strategy, fraction and steps, each group by rising seed."""
    groups: dict[tuple[str, float, int], list[Trial]] = {}
    for trial in sorted(trials, key=lambda trial: trial.seed):
        groups.setdefault((trial.strategy, trial.fraction, trial.steps), []).append(trial)
    return groups


def _point(group: Sequence[Trial]) -> Point:
    asr, useful = [trial.asr for trial in group], [trial.useful for trial in group]
    return Point(
        strategy=group[0].strategy,
        fraction=group[0].fraction,
        n=_mean([trial.n for trial in group]),
        steps=group[0].steps,
        seeds=len(group),
        asr=_mean(asr),
        asr_ci=interval_over_seeds([trial.complied for trial in group]),
        useful=_mean(useful),
        useful_ci=interval_over_seeds([trial.answered for trial in group]),
        perplexity=_mean([trial.perplexity for trial in group]),
        failures=_mean([trial.failures / max(1, trial.n) for trial in group]),
        plateau=_mean([trial.plateau for trial in group]),
        final=_mean([trial.final for trial in group]),
        asr_values=tuple(asr),
        useful_values=tuple(useful),
    )


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values))


def interval_over_seeds(outcomes: Sequence[Sequence[bool]]) -> Interval:
    """Interval of a mean share: Student's t over seeds, but never inside Wilson's over all prompts.

    Seeds that all agree, as at a rate of 0, have no spread; their prompts still are a sample.

    Args:
        outcomes: [seeds][prompts].
    """
    pooled = [outcome for seed in outcomes for outcome in seed]
    low, high = wilson(sum(pooled), len(pooled))
    over_seeds = t_interval([float(np.mean(seed)) for seed in outcomes]) or (low, high)
    return min(low, over_seeds[0]), max(high, over_seeds[1])


def t_interval(values: Sequence[float]) -> Interval | None:
    """Interval of a mean of shares over seeds by Student's t, kept in 0 … 1; ``None`` for one."""
    if len(values) < 2:
        return None
    half = float(t.ppf(0.5 + LEVEL / 2, len(values) - 1) * np.std(values, ddof=1))
    centre, half = _mean(values), half / len(values) ** 0.5
    return max(0.0, centre - half), min(1.0, centre + half)


def paired(first: Sequence[Trial], second: Sequence[Trial], seed: int = 0) -> Paired:
    """Compare two sets of repairs on the same seeds and prompts.

    Args:
        first: One repair a seed.
        second: The same seeds, in the same order.
        seed: Seed of the sign flips.

    Raises:
        ValueError: The seeds differ.
    """
    if [trial.seed for trial in first] != [trial.seed for trial in second]:
        raise ValueError("the two sets were not made with the same seeds")
    complied = [
        np.array([trial.complied for trial in side], dtype=float) for side in (first, second)
    ]
    change = complied[0] - complied[1]
    return Paired(
        float(change.mean()), _p_over_seeds(change.mean(1)), _p_over_prompts(change.mean(0), seed)
    )


def _p_over_seeds(changes: NDArray[np.float64]) -> float:
    """1 where nothing changes, or where there is one seed only; 0 where all change alike."""
    if len(changes) < 2 or not changes.any():
        return 1.0
    return float(ttest_rel(changes, np.zeros_like(changes)).pvalue)


def _p_over_prompts(changes: NDArray[np.float64], seed: int) -> float:
    """Share of sign flips whose mean is as far from zero; the data count as one of them."""
    signs = np.random.default_rng(seed).choice([-1.0, 1.0], size=(SIGN_FLIPS, len(changes)))
    flipped = np.abs((signs * changes).mean(1))
    return float((1 + (flipped >= abs(changes.mean()) - 1e-12).sum()) / (1 + SIGN_FLIPS))


def write_points(path: Path, found: Sequence[Point]) -> None:
    """Write one row a point as Parquet."""
    columns: dict[str, list[Any]] = {
        name: [getattr(point, name) for point in found] for name in Point.__slots__
    }
    write_parquet(path, pa.table(columns))
