"""Other ways to read a state than the tool's probe, traced and measured as the probe is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeAlias, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from refusal_cliff.cliff.curves import CLIFF_SIZE, CONTRAST, TraceCliff, complied_rows
from refusal_cliff.controls.table import Cell, mean_cell, rounded
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
)
"""What `levels` gives of any reading: what the verdict on a cliff looks at."""
A_CLIFF = (
    f"a cliff by its means (drop of at least {CLIFF_SIZE}, refused traces end and benign plateaus "
    f"stand at least {CONTRAST} away from complied ones)"
)


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
    harmful = [row for row in rows if row.label == "harmful"]
    complied = complied_rows(rows)
    refused = [row for row in harmful if row.verdict == "refused"]
    benign = [row for row in rows if row.label == "benign"]
    parts: tuple[tuple[list[TraceCliff], str], ...] = (
        (complied, "plateau"),
        (complied, "final"),
        (complied, "cliff"),
        (refused, "final"),
        (benign, "plateau"),
        (benign, "final"),
    )
    return tuple(
        mean_cell([getattr(row, name) for row in part], [row.group for row in part], seed)
        for part, name in parts
    )


def lacking(cells: Sequence[Cell]) -> str | None:
    """What keeps the means of a reading from being a cliff, as in the verdict on a model.

    Args:
        cells: As `levels` gives them.

    Returns:
        Such as ``drop 0.10``; empty for a cliff, ``None`` where nothing was complied with.
    """
    plateau, final, drop, refused, benign, _ = (cell.value for cell in cells)
    if plateau is None or final is None or drop is None:
        return None
    if drop < CLIFF_SIZE:
        return f"drop {rounded(drop)}"
    if refused is not None and refused - final < CONTRAST:
        return f"refused end at {rounded(refused)}, complied at {rounded(final)}"
    if benign is not None and plateau - benign < CONTRAST:
        return f"benign plateau {rounded(benign)}, complied {rounded(plateau)}"
    return ""
