"""What every result offers a notebook: a table, a chart, a data frame."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from html import escape
from typing import TYPE_CHECKING, Self, TypeAlias, TypeVar, overload

from refusal_cliff.errors import RefusalCliffError
from refusal_cliff.report.chart import Chart
from refusal_cliff.report.words import number, visible

if TYPE_CHECKING:
    import pandas

Cell: TypeAlias = object
T = TypeVar("T")
MOST_ROWS, MOST_CHARACTERS = 10, 160
"""What a notebook shows of a table; a data frame has all of it."""
WIDTH = 700.0
"""Of charts, in user units."""


class View:
    """A result that a notebook shows; texts of models and prompts are escaped there."""

    __slots__ = ()

    def table(self) -> list[dict[str, Cell]]:
        """Its rows, each by the names of the columns."""
        raise NotImplementedError

    def plot(self) -> Chart:
        """Its chart; ``.save('chart.svg')`` writes it."""
        raise NotImplementedError

    def to_pandas(self) -> pandas.DataFrame:
        """All rows of its table as a data frame.

        Raises:
            RefusalCliffError: pandas is not installed.
        """
        try:
            import pandas
        except ImportError as error:
            raise RefusalCliffError(
                "A data frame needs pandas, which is not installed. Install it (pip install "
                "pandas), or take the rows of .table()."
            ) from error
        return pandas.DataFrame(self.table())

    def _repr_html_(self) -> str:
        """Words, chart and the first rows of the table."""
        words = escape(visible(repr(self)))
        chart = self.plot().markup if self._drawable() else ""
        return f"<div><pre>{words}</pre>{chart}{_html_table(self.table())}</div>"

    def _drawable(self) -> bool:
        """Whether there is anything to draw."""
        return True


@dataclass(frozen=True, slots=True, repr=False)
class Rows(View, Sequence[T]):
    """A result that is a sequence, used like a list that nothing changes.

    Attributes:
        rows: What is in it.
    """

    rows: tuple[T, ...]

    @overload
    def __getitem__(self, place: int) -> T: ...
    @overload
    def __getitem__(self, place: slice) -> Self: ...
    def __getitem__(self, place: int | slice) -> T | Self:
        """One, or a part of them that is a result of the same kind."""
        if isinstance(place, slice):
            return replace(self, rows=self.rows[place])
        return self.rows[place]

    def __len__(self) -> int:
        return len(self.rows)


def ends(interval: tuple[float, float] | None) -> dict[str, Cell]:
    """The columns of an interval."""
    low, high = interval or (None, None)
    return {"low": low, "high": high}


def _html_table(rows: Sequence[Mapping[str, Cell]]) -> str:
    if not rows:
        return ""
    head = "".join(f"<th>{escape(visible(name))}</th>" for name in rows[0])
    body = "".join(
        f"<tr>{''.join(f'<td>{_cell(value)}</td>' for value in row.values())}</tr>"
        for row in rows[:MOST_ROWS]
    )
    left = len(rows) - MOST_ROWS
    more = f"<p>… and {left} more: .to_pandas() has all</p>" if left > 0 else ""
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>{more}"


def _cell(value: Cell) -> str:
    """A value as HTML, shortened and escaped."""
    if value is None:
        return ""
    text = number(value) if isinstance(value, float) else str(value)
    short = text if len(text) <= MOST_CHARACTERS else f"{text[:MOST_CHARACTERS]} …"
    return escape(visible(short))
