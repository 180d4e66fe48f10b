"""How the rows of a source are read, the same in every command; each row used or left out."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar

from refusal_cliff.data.fields import BadRow, shown
from refusal_cliff.data.rows import Found, read_rows
from refusal_cliff.data.types import Label, LeftOut, Row
from refusal_cliff.errors import RefusalCliffError
from refusal_cliff.thinking import ThinkingFormat
from refusal_cliff.thinking.formats import KNOWN, Markers

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Reading:
    """How the rows of a source are read; the same in every command.

    Attributes:
        label: Label of rows without one.
        columns: Which column holds a field, see ``FIELDS``; every row must have it.
        markers: What stands around a thought inside a text, the first that is found counts.
        split: Split of a data set that has several.
        prefix: What the options that say so begin with, in a command that reads several sources:
            ``prompts-`` for ``--prompts-column``.
    """

    label: Label | None = None
    columns: Mapping[str, str] = field(default_factory=dict)
    markers: tuple[Markers, ...] = KNOWN
    split: str = "train"
    prefix: str = field(default="", compare=False)

    def by_default(self, label: Label) -> Reading:
        """The same, with a label for rows without one where none was named."""
        return self if self.label is not None else replace(self, label=label)

    def described(self) -> dict[str, object]:
        """All that what is read depends on, as JSON."""
        named = [[m.opener, m.closer] for m in self.markers if m not in KNOWN]
        columns = dict(self.columns)
        return {"split": self.split, "label": self.label, "columns": columns, "markers": named}

    def remedy(self, text: str) -> str:
        """A message with the options as the command calls them for this source."""
        return re.sub(r"--(?=(?:column|label|split)\b)", f"--{self.prefix}", text)

    def of_model(self, fmt: ThinkingFormat) -> Reading:
        """The same, with the model's own markers before all others."""
        if not fmt.thinks:
            return self
        own = Markers(fmt.opener, fmt.closer, fmt.opening, fmt.closing, fmt.answer, fmt.ender)
        return replace(self, markers=(own, *self.markers))


DEFAULT = Reading()


def source_rows(source: str | Path, reading: Reading = DEFAULT) -> Iterator[Found]:
    """Rows of a source with their numbers, see `read_rows`; the second row of an id is a bad one.

    What memory grows with is some 100 bytes for every row with an id.

    Raises:
        RefusalCliffError: The source cannot be read at all.
    """
    first: dict[str, int] = {}
    for number, row in read_rows(source, reading.split):
        identity = "" if isinstance(row, str) else identity_of(row, reading)
        if identity and first.setdefault(identity, number) != number:
            used = f"the id {shown(identity)} is already used by row {first[identity]}"
            yield number, f"{used}. Remedy: give every row its own id, or drop the column."
        else:
            yield number, row


def usable(
    source: str | Path, rows: Iterable[Found], make: Callable[[int, Row], T]
) -> Iterator[tuple[int, T | LeftOut]]:
    """What is made of every row, or why it is left out; no row stops the others.

    Args:
        source: Names rows without an id.
        rows: See `source_rows`.
        make: One of the readers below; raises `RefusalCliffError` for a bad row.
    """
    for number, row in rows:
        yield number, _made(source, number, row, make)


def used_and_left_out(
    source: str | Path, rows: Iterable[Found], make: Callable[[int, Row], T]
) -> tuple[list[T], list[LeftOut]]:
    """What is made of the rows that can be used, and why the others cannot; see `usable`."""
    used, left_out = list[T](), list[LeftOut]()
    for _, found in usable(source, rows, make):
        if isinstance(found, LeftOut):
            left_out.append(found)
        else:
            used.append(found)
    return used, left_out


def _made(
    source: str | Path, number: int, row: Row | str, make: Callable[[int, Row], T]
) -> T | LeftOut:
    try:
        if isinstance(row, str):
            raise BadRow("not readable", row)
        return make(number, row)
    except RecursionError:
        return LeftOut(default_id(source, number), number, "not readable", "it is nested too deep")
    except RefusalCliffError as error:
        identity = "" if isinstance(row, str) else identity_of(row)
        reason = error.reason if isinstance(error, BadRow) else "other format"
        return LeftOut(identity or default_id(source, number), number, reason, str(error))


def every(source: str | Path, rows: Iterable[Found], make: Callable[[int, Row], T]) -> Iterator[T]:
    """What is made of every row, where each must be usable.

    Raises:
        RefusalCliffError: One is not; the message names file and row.
    """
    for number, found in usable(source, rows, make):
        if isinstance(found, LeftOut):
            raise RefusalCliffError(f"{source}, row {number}: {found.why.rstrip('.')}.")
        yield found


def identity_of(row: Row, reading: Reading = DEFAULT) -> str:
    """The id of a row as its source has it; empty without one that can be used."""
    value = row.get(reading.columns.get("id", "id"), row.get("custom_id"))
    if isinstance(value, bool) or not isinstance(value, str | int):
        return ""
    try:
        return str(value)
    except ValueError:  # an integer of 5,000 digits
        return ""


def default_id(source: str | Path, number: int) -> str:
    """The id of a row without one."""
    return f"{Path(source).stem}-{number}"
