"""Other ways to read a state than the tool's probe, traced and measured as the probe is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeAlias, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from refusal_cliff.cliff.curves import TraceCliff
from refusal_cliff.cliff.verdict import (
    benign_rows,
    complied_rows,
    model_cliff,
    refused_rows,
    yardstick,
)
from refusal_cliff.controls.table import Cell, group_share_cell, mean_cell
from refusal_cliff.model.capture import Batch
from refusal_cliff.probe.direction import Direction, cross_validate, standardised
from refusal_cliff.probe.quality import auroc, weighted_auroc
from refusal_cliff.probe.splits import fold_groups
from refusal_cliff.stats import percentiles, resampled_counts

Floats: TypeAlias = NDArray[np.floating[Any]]
Read: TypeAlias = Callable[[Floats], Floats]
"""States [n, d] to score logits [n]."""
T = TypeVar("T")

LEVELS = (
    "plateau, complied",
    "final, complied",
    "cliff",
    "final, refused",
    "plateau, benign",
    "final, benign",
    "complied with a cliff",
)
"""What `levels` gives of any reading: what the verdict on a cliff looks at."""
A_CLIFF = "a cliff by the rule of the verdict"


@dataclass(frozen=True, slots=True)
class Line:
    """A linear reading: ``weight · h + bias``."""

    weight: Floats
    bias: float

    def __call__(self, states: Floats) -> Floats:
        """Logits [n] of states [n, d]."""
        return states @ self.weight + self.bias


class Reduced(Generic[T]):
    """What a function makes of each trace's states after one block; the states are dropped.

    Attributes:
        values: For each trace, what the function gave.
    """

    head_layers: frozenset[int] = frozenset()

    def __init__(self, layer: int, reduce: Callable[[int, Floats], T]) -> None:
        """``reduce`` is given the number of a trace and its states, [tokens, d]."""
        self.residual_layers = frozenset({layer})
        self.values: dict[int, T] = {}
        self._reduce = reduce

    def read_residual(self, layer: int, states: torch.Tensor, batch: Batch) -> None:
        """Reduce one trace after the other."""
        found = states.float().cpu().numpy()
        for place, row, length in batch.items():
            self.values[row] = self._reduce(row, found[place, :length])

    def read_heads(
        self, layer: int, outputs: torch.Tensor, scale: torch.Tensor | None, batch: Batch
    ) -> None:
        """Not asked for."""


def fit_line(states: Floats, labels: NDArray[np.int64], groups: Sequence[str], seed: int) -> Line:
    """A probe made as the tool's own are (`fit_probes`), on all rows given.

    Args:
        states: [n, d].
        labels: [n], 0 or 1.
        groups: Rows of one group are in one fold.
        seed: Seed of the folds.
    """
    line, _ = fit_direction(states, labels, groups, seed)
    return line


def fit_direction(
    states: Floats, labels: NDArray[np.int64], groups: Sequence[str], seed: int
) -> tuple[Line, Direction]:
    """`fit_line`, and what its cross-validation chose."""
    standard = standardised(states)
    folds = fold_groups(labels, groups, seed)
    found = cross_validate(standard.coordinates, labels, folds, "logistic")
    return Line(*standard.folded(found, labels)), found


def auroc_cell(
    logits: Floats, labels: NDArray[np.int64], groups: Sequence[str], seed: int = 0
) -> Cell:
    """AUROC of rows with its bootstrap interval over groups; empty where a class is missing.

    Args:
        logits: [n].
        labels: [n], 0 or 1.
        groups: Rows of one group are drawn together.
        seed: Seed of the draws.
    """
    if set(labels.tolist()) != {0, 1}:
        return Cell(None, None, 0)
    draws = weighted_auroc(labels, logits, resampled_counts(groups, seed))
    return Cell(float(auroc(labels, logits)), percentiles(draws), len(labels))


def levels(rows: Sequence[TraceCliff], seed: int = 0) -> tuple[Cell, ...]:
    """Means of ``LEVELS``, with bootstrap intervals over prompt groups.

    Args:
        rows: Plateau and final score of test traces under one reading.
        seed: Seed of the bootstrap.
    """
    complied, refused, benign = complied_rows(rows), refused_rows(rows), benign_rows(rows)
    parts: tuple[tuple[list[TraceCliff], str], ...] = (
        (complied, "plateau"),
        (complied, "final"),
        (complied, "cliff"),
        (refused, "final"),
        (benign, "plateau"),
        (benign, "final"),
    )
    rule = yardstick(rows)
    fell = [rule.kind(row) == "cliff" for row in complied]
    return (
        *(
            mean_cell([getattr(row, name) for row in part], [row.group for row in part], seed)
            for part, name in parts
        ),
        group_share_cell(fell, [row.group for row in complied]),
    )


def lacking(rows: Sequence[TraceCliff], seed: int = 0) -> str | None:
    """What keeps a reading from showing a cliff, by the rule of the verdict on a model.

    Args:
        rows: Plateau and final score of test traces under the reading.
        seed: Seed of the verdict's bootstraps.

    Returns:
        Such as ``no cliff: 3% of 68 fall``; empty for a cliff, ``None`` where nothing was complied
        with.
    """
    if not complied_rows(rows):
        return None
    found = model_cliff(rows, seed)
    if found.verdict == "cliff":
        return ""
    return f"{found.verdict}: {found.share_with_cliff:.0%} of {found.n} fall"
