"""Rates and changes as tables on the terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from refusal_cliff.answers.correction import Corrected, CorrectedOutcomes, JudgeError
from refusal_cliff.answers.outcomes import Change, Outcomes, Rate
from refusal_cliff.live import plain

_COLUMNS = {
    "attacks": "attack success",
    "refused": "refused",
    "over_refused": "over-refusal",
    "truncated": "truncated",
    "looping": "loops",
    "unscored": "unscored",
}
_SHOWN = ("attacks", "refused", "over_refused")


def print_outcomes(console: Console, outcomes: Sequence[Outcomes], judge: str) -> None:
    """One row a group; every rate with its interval. What went wrong is told for all together."""
    table = Table(title=Text(f"Judge: {plain(judge)}"), title_justify="left", pad_edge=False)
    table.add_column("prompts")
    table.add_column("n", justify="right")
    for key in _SHOWN:
        table.add_column(_COLUMNS[key], justify="right", no_wrap=True)
    for row in outcomes:
        name = " · ".join(filter(None, (row.source, row.category))) or "all"
        n = row.unscored.n if row.unscored is not None else 0
        cells = (_cell(getattr(row, key)) for key in _SHOWN)
        table.add_row(Text(plain(name)), f"{n:,}", *cells)
    console.print(table)
    whole = outcomes[0]
    told = (
        f"{_COLUMNS[key]} {_cell(getattr(whole, key))}" for key in _COLUMNS if key not in _SHOWN
    )
    console.print("; ".join(told), markup=False, highlight=False)
    for line in (*_about_attacks(judge), *_said(whole)):
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    if whole.harm is not None and whole.harm_interval is not None:
        low, high = whole.harm_interval
        console.print(
            f"degree of harm {whole.harm:.2f} [{low:.2f}, {high:.2f}]",
            markup=False,
            highlight=False,
        )


def _about_attacks(judge: str) -> list[str]:
    """What an attack is, where it is not what `audit` and `check` call so."""
    if judge in ("", "rules"):
        return []
    return [
        "ASR: harmful prompts whose answer this judge calls harmful; audit, check and repair count "
        "every answer that does not refuse"
    ]


def _said(whole: Outcomes) -> list[str]:
    """What is in no rate, kind by kind, and what was taken as whole without being told so."""
    lines = []
    if whole.unscored_kinds:
        kinds = (f"{kind} {count:,}" for kind, count in whole.unscored_kinds.items())
        lines.append(f"unscored, and in no rate: {'; '.join(kinds)}")
    if whole.untold:
        lines.append(
            f"{whole.untold:,} answers came without a reason for their end: taken as whole"
        )
    return lines


def print_corrected(
    console: Console, corrected: Sequence[CorrectedOutcomes], error: JudgeError | None
) -> None:
    """The rates again without the judge's error, or that it is not known."""
    if error is None:
        console.print(
            "How often this judge errs is not known, so no rate is corrected for it; measure it "
            "with judge calibrate, and give the file with evaluate --judge-error.",
            highlight=False,
        )
        return
    found, spared = error.sensitivity, error.specificity
    title = (
        f"Without the judge's error (finds {found.value:.3f} of what people call "
        f"{plain(error.verdict)}, n = {found.n:.0f}, and spares {spared.value:.3f} of the rest, "
        f"n = {spared.n:.0f}), if it errs here as there"
    )
    table = Table(title=Text(title), title_justify="left", pad_edge=False)
    table.add_column("prompts")
    for key in _SHOWN:
        table.add_column(_COLUMNS[key], justify="right", no_wrap=True)
    for row in corrected:
        name = " · ".join(filter(None, (row.source, row.category))) or "all"
        table.add_row(Text(plain(name)), *(_corrected_cell(getattr(row, key)) for key in _SHOWN))
    console.print(table)


def print_changes(console: Console, changes: Sequence[Change]) -> None:
    """One row a rate: before, after, difference with interval, McNemar's p."""
    table = Table(title="Change", title_justify="left", pad_edge=False)
    for heading in ("rate", "pairs", "before", "after", "difference", "McNemar p"):
        table.add_column(heading, justify="left" if heading == "rate" else "right")
    for row in changes:
        low, high = row.interval
        table.add_row(
            _COLUMNS[row.rate],
            f"{row.n:,}",
            f"{row.before:.3f}",
            f"{row.after:.3f}",
            f"{row.difference:+.3f} [{low:+.3f}, {high:+.3f}]",
            "–" if row.p is None else f"{row.p:.3g}",
        )
    console.print(table)


def _corrected_cell(rate: Corrected | None) -> str:
    if rate is None:
        return "–"
    low, high = rate.interval
    value = "?" if rate.value is None else f"{rate.value:.2f}"
    return f"{value} [{low:.2f}, {high:.2f}]"


def _cell(rate: Rate | None) -> str:
    if rate is None:
        return "–"
    low, high = rate.interval
    return f"{rate.value:.2f} [{low:.2f}, {high:.2f}]"
