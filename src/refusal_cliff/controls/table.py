"""A control as data: a question, a table of numbers with intervals, and what it says."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from refusal_cliff.cliff.curves import TraceCliff
from refusal_cliff.stats import Interval, Share, bootstrap_mean

EDGES = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
"""Ends of the bins of the final score in rows of a calibration."""
BINS = {
    f"complied, final score {low:g} to {high:g}": 1 - (low + high) / 2
    for low, high in pairwise(EDGES)
}
"""These rows, which a page shows as bars, and what each would be if the score were the chance of
refusing."""


@dataclass(frozen=True, slots=True)
class Cell:
    """A number of ``n`` things, with its 95 % interval where it has one.

    ``value`` is ``None`` where there was nothing to measure; what is not a finite number, such as a
    correlation with something constant, was not measured either.
    """

    value: float | None
    interval: Interval | None = None
    n: int | None = None

    def __post_init__(self) -> None:
        if self.value is not None and not math.isfinite(self.value):
            object.__setattr__(self, "value", None)
        measured = self.value is not None and self.interval is not None
        if not (measured and all(map(math.isfinite, self.interval or ()))):
            object.__setattr__(self, "interval", None)


@dataclass(frozen=True, slots=True)
class ControlTable:
    """One control, as ``control-NAME.json`` holds it.

    Attributes:
        question: The doubt.
        source: Who raised it, or which work it follows.
        columns: What the numbers of a row are.
        rows: By name, as many cells as there are columns.
        finding: What the numbers say, as a sentence made from them.
        notes: What a reader must know: how intervals were made, what was left out.
    """

    question: str
    source: str
    columns: tuple[str, ...]
    rows: Mapping[str, tuple[Cell, ...]]
    finding: str
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name, cells in self.rows.items():
            if len(cells) != len(self.columns):
                raise ValueError(f"{name}: {len(cells)} cells for {len(self.columns)} columns")


def share_cell(share: Share) -> Cell:
    """A share with its Wilson interval."""
    return Cell(share.value, share.interval, share.n)


def mean_cell(values: Sequence[float], groups: Sequence[str], seed: int = 0) -> Cell:
    """A mean with its bootstrap interval over groups; empty where there are no values."""
    if not len(values):
        return Cell(None, None, 0)
    mean = sum(map(float, values)) / len(values)
    return Cell(mean, bootstrap_mean(values, groups, seed=seed), len(values))


def level_cell(rows: Sequence[TraceCliff], name: str, seed: int) -> Cell:
    """Mean plateau, final score or cliff of some traces, with its bootstrap interval."""
    return mean_cell([getattr(row, name) for row in rows], [row.group for row in rows], seed)


def markdown(table: ControlTable) -> str:
    """The control as a section of Markdown, without a heading."""
    names = headings(table)
    lines = [
        f"*{table.question}* ({table.source})",
        "",
        f"| | {' | '.join(names)} |",
        "|---" * (len(names) + 1) + "|",
    ]
    for name, cells in table.rows.items():
        lines.append(f"| {name} | {' | '.join(row_texts(table, cells))} |")
    lines += ["", table.finding, *(f"\n{note}" for note in table.notes)]
    return "\n".join(lines)


def headings(table: ControlTable) -> list[str]:
    """The columns, each with its n where all its numbers are of as many and the rows' n differ.

    A last one is for the n of each row, where any has one.
    """
    counts = _column_counts(table)
    names = [
        name if n is None else f"{name} (n = {n})"
        for name, n in zip(table.columns, counts, strict=True)
    ]
    return [*names, "n"] if _rows_have_n(table) else names


def row_texts(table: ControlTable, cells: Sequence[Cell]) -> list[str]:
    """A row below `headings`: each number with its n unless the row's or the column's says it."""
    common = common_n(cells)
    texts = [
        cell_text(cell, alone=common is None and n is None)
        for cell, n in zip(cells, _column_counts(table), strict=True)
    ]
    return [*texts, str(common or "")] if _rows_have_n(table) else texts


def _rows_have_n(table: ControlTable) -> bool:
    return any(common_n(cells) is not None for cells in table.rows.values())


def _column_counts(table: ControlTable) -> list[int | None]:
    """The n that a heading says; none where each row has one of its own."""
    rows = list(table.rows.values())
    if all(common_n(cells) is not None for cells in rows):
        return [None] * len(table.columns)
    return [common_n([cells[place] for cells in rows]) for place in range(len(table.columns))]


def common_n(cells: Sequence[Cell]) -> int | None:
    """How many things each number is of, where that is the same for all."""
    counts = {cell.n for cell in cells if cell.value is not None}
    return counts.pop() if len(counts) == 1 else None


def cell_text(cell: Cell, *, alone: bool = True) -> str:
    """``0.93 [0.90, 0.96]``, with ``, n = 100`` where it stands alone; a dash for no value."""
    if cell.value is None:
        return "–"
    text = rounded(cell.value)
    if cell.interval is not None:
        text += f" [{rounded(cell.interval[0])}, {rounded(cell.interval[1])}]"
    return f"{text}, n = {cell.n}" if alone and cell.n is not None else text


def rounded(value: float) -> str:
    """Two decimals, without a negative zero."""
    return f"{round(value, 2) + 0.0:.2f}"
