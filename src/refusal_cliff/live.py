"""The terminal view of a run: a live table, or plain lines where there is no terminal."""

from __future__ import annotations

import codecs
import json
import logging
import math
import os
import sys
import time
import unicodedata
from collections import deque
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from contextvars import ContextVar
from dataclasses import dataclass, field
from io import TextIOWrapper
from typing import TYPE_CHECKING, Any, Literal

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from refusal_cliff.io import finite_json
from refusal_cliff.progress import heard_by
from refusal_cliff.sharded import Rank

if TYPE_CHECKING:  # slow to import, and an error is to be shown at once
    from refusal_cliff.cliff.verdict import ModelCliff
    from refusal_cliff.findings.wording import Finding
    from refusal_cliff.run.folder import Headline

Status = Literal["waiting", "running", "done", "kept"]

_MARK = {"waiting": "·", "running": "▸", "done": "✓", "kept": "="}
_STYLE = {"waiting": "dim", "running": "bold cyan", "done": "green", "kept": "blue"}
_REFRESH_PER_SECOND = 4
_SECONDS_BETWEEN_LINES = 30.0
_LINES_AROUND_TABLE = 6
_BAR_WIDTH = 12
_SECONDS_OF_PACE = 120.0
_SECONDS_TO_BEGIN = 1.0
_IN_ASCII = str.maketrans(
    {
        **{"→": "->", "·": "-", "×": "x", "±": "+-", "−": "-", "–": "-", "—": "-", "…": "..."},
        **{"“": '"', "”": '"', "’": "'", "‘": "'", "✓": "+", "✗": "x", "▸": ">", "κ": "kappa"},
        **{"≥": ">=", "≤": "<=", "•": "*"},
    }
)
_SHOWABLE = "refusal-cliff-showable"
_OF_PYTHON = frozenset({"strict", "surrogateescape", "backslashreplace"})
"""What Python opens its output with, by locale; any other handler is the user's choice."""


def write_what_can_be_shown() -> None:
    """Let standard output and error replace what their encoding lacks, instead of failing.

    A terminal with ``LC_ALL=C``, or a pipe in Latin-1, must not cost the answer.
    """
    codecs.register_error(_SHOWABLE, _showable)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper) and stream.errors in _OF_PYTHON:
            stream.reconfigure(errors=_SHOWABLE)


def _showable(error: UnicodeError) -> tuple[str | bytes, int]:
    """ASCII for what an encoding lacks: its meaning, its letters without accents, or ``?``."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return "".join(map(_in_ascii, error.object[error.start : error.end])), error.end


def _in_ascii(char: str) -> str:
    plain = unicodedata.normalize("NFKD", char.translate(_IN_ASCII))
    return "".join(c for c in plain if c.isascii()) or "?"


@dataclass(frozen=True, slots=True)
class Shown:
    """What a user wants to see of a command.

    Attributes:
        quiet: Nothing but errors, and the result with ``json``.
        verbose: What libraries say too, and where an error came from.
        json: The result as JSON on standard output, all else on standard error.
    """

    quiet: bool = False
    verbose: bool = False
    json: bool = False


_USUAL = Shown()
_shown: ContextVar[Shown] = ContextVar("shown", default=_USUAL)


def show_as(shown: Shown, called: str) -> None:
    """Begin a command: from now on `screen` and `result` show what the user wants.

    On a terminal something stands there at once: what a command imports takes seconds.
    """
    _shown.set(shown)
    if shown.verbose:
        logging.basicConfig(level=logging.INFO, format="%(name)s: %(message)s")
        os.environ["TRANSFORMERS_VERBOSITY"] = "info"
    errors = Console(stderr=True, quiet=shown.quiet)
    if errors.is_terminal:
        errors.print(f"{called}: loading …", style="dim", highlight=False)


def screen() -> Console:
    """Where a command shows what it does and found."""
    shown = _shown.get()
    return Console(stderr=shown.json, quiet=shown.quiet)


def is_verbose() -> bool:
    """Whether the user wants to know where an error came from."""
    return _shown.get().verbose


def wants_json() -> bool:
    """Whether the user wants the result as JSON."""
    return _shown.get().json


def result(value: Any) -> None:
    """The result of a command as JSON, where the user asked for it.

    Args:
        value: JSON values; numbers that are not finite become null.
    """
    if wants_json():
        text = json.dumps(finite_json(value), ensure_ascii=False, allow_nan=False)
        sys.stdout.write(text.encode(errors="replace").decode() + "\n")


@dataclass
class _Pace:
    """How fast work goes now: by the last two minutes, since what a run kept took no time."""

    told: deque[tuple[float, int]] = field(default_factory=deque[tuple[float, int]])
    begun: float = 0.0

    def tell(self, now: float, done: int) -> None:
        """So much is done; where it is less than before, another part of the work has begun."""
        if not self.told or done < self.told[-1][1]:
            self.told.clear()
            self.begun = now
        if now - self.begun < _SECONDS_TO_BEGIN:
            self.told.clear()  # what an earlier run kept is told at once
        elif len(self.told) > 1 and now - self.told[-2][0] < 1 / _REFRESH_PER_SECOND:
            self.told.pop()
        self.told.append((now, done))
        while len(self.told) > 2 and now - self.told[1][0] > _SECONDS_OF_PACE:
            self.told.popleft()

    def words(self, now: float, total: int | None) -> list[str]:
        """Rate and time left, as far as they are known."""
        told = list(self.told)  # another thread draws the table
        if len(told) < 2 or told[-1][1] == told[0][1]:
            return []
        (start, before), (last, done) = told[0], told[-1]
        rate = (done - before) / (last - start) if last > start else math.inf
        said = [_rate(rate)]
        if total is not None:
            said.append(f"{_duration(max(0.0, (total - done) / rate - (now - last)))} left")
        return said


@dataclass
class _Row:
    name: str
    status: Status = "waiting"
    started: float = 0.0
    seconds: float | None = None
    done: int = 0
    total: int | None = 0
    note: str = ""
    headline: Headline = field(default_factory=dict[str, bool | int | float | str])
    told: float = 0.0
    pace: _Pace = field(default_factory=_Pace)

    def words(self) -> str:
        """Where its work is: how much of it is done, how fast, the time left, a note."""
        of = "" if self.total is None else f" of {self.total:,}"
        counted = [f"{self.done:,}{of}", *self.pace.words(time.monotonic(), self.total)]
        said = [*(() if self.total == 0 else counted), self.note]  # 0: nothing was told yet
        return " · ".join(part for part in said if part)


class LiveView:
    """An observer that shows a run, or any long work. Use as a context manager.

    Of several processes of one launch only the first shows anything.

    Args:
        console: Where to show it.
        title: One line above the table.
    """

    def __init__(self, console: Console, title: str) -> None:
        self._console = console if Rank.here().first else Console(quiet=True)
        self._title = title
        self._rows: dict[str, _Row] = {}
        self._live: Live | None = None
        self._hearing = ExitStack()

    def __enter__(self) -> LiveView:
        self._hearing.enter_context(heard_by(self._meanwhile))
        if self._console.is_terminal:
            self._live = Live(
                get_renderable=self._render,
                console=self._console,
                refresh_per_second=_REFRESH_PER_SECOND,
            )
            self._live.start()
        else:
            say(self._console, self._title)
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self._hearing.close()
        if error is None:
            self._end(self._rows.values())
        if self._live:
            self._live.stop()

    def planned(self, names: Sequence[str]) -> None:
        """Show all stages as waiting."""
        self._rows |= {name: _Row(name) for name in names}

    def stage_started(self, name: str) -> None:
        """Show a stage as running, its clock ticking."""
        row = self._row(name)
        row.status, row.started = "running", time.monotonic()
        row.told = row.started
        if not self._live:
            say(self._console, f"{name} ...")

    def progress(self, name: str, done: int, total: int | None, note: str = "") -> None:
        """Move a running stage's bar; in a log, say where it is once in a while."""
        row, now = self._row(name), time.monotonic()
        if row.total is None and total is not None:
            row.pace = _Pace()  # it is known now: what came before was no work
        row.done, row.total, row.note = done, total, note
        row.pace.tell(now, done)
        self._log(row, now)

    def _meanwhile(self, note: str) -> None:
        """Show what the work that began last does between two steps of its progress."""
        running = [row for row in self._rows.values() if row.status == "running"]
        if running:
            row = max(running, key=lambda row: row.started)
            row.note = note
            self._log(row, time.monotonic())

    def _log(self, row: _Row, now: float) -> None:
        words = row.words()
        if words and not self._live and now - row.told >= _SECONDS_BETWEEN_LINES:
            row.told = now
            say(self._console, f"{row.name}: {words}")

    def stage_finished(self, name: str, seconds: float, headline: Headline) -> None:
        """Show a stage's time and key numbers."""
        self._close(name, "done", seconds, headline)

    def stage_skipped(self, name: str, headline: Headline) -> None:
        """Show that a stage's earlier results are kept."""
        self._close(name, "kept", None, headline)

    def step(self, name: str, done: int, total: int | None = None, note: str = "") -> None:
        """Follow work that is not a pipeline.

        Args:
            name: What is done: a row of the table.
            done: How much of it.
            total: Of how much; ``None`` where nobody knows.
            note: What else there is to say of it now.
        """
        row = self._row(name)
        if row.status != "running":
            self._end([row for row in self._rows.values() if row.total is None])
            self.stage_started(name)
        self.progress(name, done, total, note)
        if total is not None and done >= total:
            self.stage_finished(name, time.monotonic() - row.started, {})

    def _end(self, rows: Iterable[_Row]) -> None:
        """Work that nobody said the length of ends when other work begins, or the command ends."""
        for row in [row for row in rows if row.status == "running"]:
            last = row.pace.told[-1][0] if row.pace.told else time.monotonic()
            self._close(row.name, "done", last - row.started, {"done": row.done})

    def _close(self, name: str, status: Status, seconds: float | None, headline: Headline) -> None:
        row = self._row(name)
        row.status, row.seconds, row.headline = status, seconds, headline
        if not self._live:
            outcome = _time_of(row) or "kept from an earlier run;"
            say(self._console, f"{name}: {outcome} {headline_text(headline)}".rstrip())

    def _row(self, name: str) -> _Row:
        return self._rows.setdefault(name, _Row(name))

    def _render(self) -> RenderableType:
        rows = list(self._rows.values())
        shown = _window(rows, max(1, self._console.height - _LINES_AROUND_TABLE))
        if self._live and not self._live.is_started:
            shown = rows
        table = Table(box=None, pad_edge=False, expand=False)
        for heading in ("stage", "status", "time", "key numbers"):
            table.add_column(heading, header_style="dim", overflow="fold")
        for row in shown:
            table.add_row(*_cells(row))
        finished = sum(row.status in ("done", "kept") for row in rows)
        title = Text(f"{plain(self._title)}  {finished}/{len(rows)}", style="bold")
        return Group(title, table)


def say(console: Console, text: str) -> None:
    """Show text as it is: a line is never cut, and nothing in it is markup."""
    console.print(Text(plain(text)), soft_wrap=True)


def print_findings(console: Console, findings: Sequence[Finding]) -> None:
    """Show what a run has found as a table of questions and answers."""
    table = Table(title="Findings", title_justify="left", show_lines=False, pad_edge=False)
    table.add_column("question", style="bold")
    table.add_column("answer")
    table.add_column("", width=1)
    for finding in findings:
        mark, style = {True: ("✓", "green"), False: ("✗", "red"), None: (" ", "")}[finding.holds]
        words = Text(plain(finding.question)), Text(plain(finding.answer))
        table.add_row(*words, Text(mark, style=style))
    console.print(table)


def print_table(
    console: Console, heading: Sequence[str], rows: Sequence[Sequence[str]], title: str = ""
) -> None:
    """Show rows under a heading; the first column is text, the others are numbers."""
    table = Table(title=title or None, title_justify="left", title_style="bold", pad_edge=False)
    for at, column in enumerate(heading):
        table.add_column(column, justify="right" if at else "left")
    for row in rows:
        table.add_row(*(Text(plain(cell)) for cell in row))
    console.print(table)


def print_model_cliff(console: Console, found: ModelCliff) -> None:
    """Show the verdict on a model and the numbers it stands on."""
    table = Table(title=f"Verdict: {found.verdict}", title_justify="left", title_style="bold")
    for column in ("traces", "n", "plateau", "final", "drop"):
        table.add_column(column, justify="left" if column == "traces" else "right")
    name = "harmful, complied" if found.group == "complied" else "harmful"
    groups = {name: found, "harmful, refused": found.refused, "benign": found.benign}
    for name, level in groups.items():
        if level is not None:
            values = (level.plateau, level.final, level.plateau - level.final)
            table.add_row(name, f"{level.n:,}", *(f"{value:.2f}" for value in values))
    console.print(table)
    console.print(plain(found.reason), highlight=False, markup=False)
    low, high = found.cliff_ci
    console.print(
        f"Cliff {found.cliff:.2f} [{low:.2f}, {high:.2f}]; {found.share_with_cliff:.0%} of the "
        f"traces fall at the end of thinking, {found.share_argued_away:.0%} inside it.",
        highlight=False,
        markup=False,
    )


def print_error(console: Console, message: str) -> None:
    """Show one paragraph: in a red panel, or as it is where there is no terminal."""
    if console.is_terminal:
        console.print(Panel(Text(plain(message)), title="Error", border_style="red"))
    else:
        say(console, f"Error: {message}")


def plain(text: str) -> str:
    """Text without control characters: what a model wrote must not steer the terminal."""
    return "".join(char if char.isprintable() or char == "\n" else "�" for char in text)


def headline_text(headline: Headline) -> str:
    """Key numbers in one line: ``auroc 0.998 · layer 7``."""
    return " · ".join(f"{name} {_value_text(value)}" for name, value in headline.items())


def _value_text(value: bool | int | float | str) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.3g}" if isinstance(value, float) else value


def _cells(row: _Row) -> tuple[RenderableType, ...]:
    style = _STYLE[row.status]
    name = Text(f"{_MARK[row.status]} {plain(row.name)}", style=style)
    return name, Text(row.status, style=style), Text(_time_of(row)), _detail_of(row)


def _detail_of(row: _Row) -> RenderableType:
    if row.status != "running":
        return Text(plain(headline_text(row.headline)))
    words = Text(plain(row.words()), style="dim")
    if not row.total:
        return words
    line = Table.grid(padding=(0, 1))
    line.add_row(ProgressBar(total=row.total, completed=row.done, width=_BAR_WIDTH), words)
    return line


def _time_of(row: _Row) -> str:
    if row.status == "running":
        return f"{time.monotonic() - row.started:.0f} s"
    return "" if row.seconds is None else f"{row.seconds:.1f} s"


def _rate(rate: float) -> str:
    if rate >= 100:
        return f"{rate:,.0f}/s"
    return f"{rate:.3g}/s" if rate >= 1 else f"{60 * rate:.2g}/min"


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _window(rows: list[_Row], height: int) -> list[_Row]:
    """As many rows as fit, around the first that is not finished."""
    current = next(
        (i for i, row in enumerate(rows) if row.status in ("waiting", "running")), len(rows)
    )
    start = max(0, min(current - height // 2, len(rows) - height))
    return rows[start : start + height]
