"""A run as one HTML page that needs nothing but itself: no network, no font, one script by hash."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from refusal_cliff.controls.table import ControlTable, headings, row_texts
from refusal_cliff.heads.at_tokens import SHOWN
from refusal_cliff.heads.proof import SMALLEST_SHARE
from refusal_cliff.io import write_text
from refusal_cliff.report import words
from refusal_cliff.report.data import Bar, Curve, ExampleTrace, ReportData
from refusal_cliff.report.figures import (
    SINGLE_WIDTH,
    Figure,
    as_csv,
    calibration_name,
    cliff_figures,
    figures_of,
)
from refusal_cliff.report.palette import page_css, sequential
from refusal_cliff.report.reader import (
    HEAD_STEPS,
    compressed,
    packed,
    page_script,
    source_hash,
)
from refusal_cliff.report.svg import known
from refusal_cliff.report.words import count, number, token_text
from refusal_cliff.settings import POOLS

MAX_TOKENS = 400
"""Thinking tokens shown; a longer thought loses its middle, because the cliff is at its end."""
_BEFORE_GAP = 80


@dataclass(frozen=True, slots=True)
class Token:
    """One token as it is shown.

    Attributes:
        text: What to write.
        class_: CSS classes; the colour of its score is one of them.
        tip: Its place and its score, in words.
    """

    text: str
    class_: str
    tip: str


def tokens_of(trace: ExampleTrace) -> list[Token]:
    """Thinking, closing and answer of a trace; the prompt is shown elsewhere."""
    tokens = [_token(trace, at) for at in range(trace.spans.prompt, len(trace.pieces))]
    left_out = trace.spans.thinking - trace.spans.prompt - MAX_TOKENS
    if left_out > 0:
        note = Token(f" ⋯ {count(left_out, 'token')} left out ⋯ ", "gap", "")
        tokens[_BEFORE_GAP : _BEFORE_GAP + left_out] = [note]
    return tokens


def _token(trace: ExampleTrace, at: int) -> Token:
    spans, score, piece = trace.spans, trace.scores[at], trace.pieces[at]
    closing = spans.thinking <= at < spans.closing
    if at >= spans.closing:
        return Token(piece, "answer", "answer · no score: the probe was not fitted here")
    place = f"token {number(at - spans.last_closing, 0)}"
    classes = ["closing"] if closing else []
    if not known(score):
        return Token(piece, " ".join(classes), f"{place} · not measured")
    text = token_text(piece) if closing else piece
    tip = f"{place} · score {number(score)}"
    return Token(text, " ".join(["scored", sequential(score), *classes]), tip)


TITLES = {
    "next": "What to do next",
    "findings": "What was found",
    "cliff": "The cliff",
    "depth": "Where in the depth",
    "heads": "Which heads",
    "ablation": "Are they the cause",
    "proof": "How sure that is",
    "dose": "How many heads",
    "repair": "Less is more",
    "controls": "Doubts, and what was measured about them",
    "traces": "Trace by trace",
    "reader": "Trace reader",
    "notes": "What to know before believing this",
    "provenance": "How this page was made",
}
"""Sections in their order."""


def render_page(data: ReportData) -> str:
    """The page as HTML.

    Args:
        data: What to show. Parts that are None or empty are left out; texts may be hostile.

    Returns:
        A whole document without any reference to another file.
    """
    figures = figures_of(data)
    template = _environment().get_template("page.html.j2")
    return template.render(
        data=data,
        summary=data.summary,
        plateau=POOLS.get(data.summary.cliff.pool, data.summary.cliff.pool),
        titles=TITLES,
        contents=_contents(data, figures),
        panels=_panels(data, figures),
        pictures={name: Markup(figure.svg) for name, figure in figures.items()},
        reader=data.reader and packed(data.reader),
        smallest=SMALLEST_SHARE,
        head_most=SHOWN,
        head_steps=HEAD_STEPS,
        **_common(figures.values()),
    )


def render_comparison(
    names: Sequence[str],
    panels: Sequence[tuple[str, str, Sequence[Curve]]],
    tables: Mapping[str, ControlTable],
) -> str:
    """Several runs beside each other as HTML.

    Args:
        names: Of the runs.
        panels: Of each run its name, its verdict and its mean curves.
        tables: By title.
    """
    figures = [
        (name, verdict, figure)
        for at, (name, verdict, curves) in enumerate(panels, 1)
        for figure in cliff_figures(f"cliff-{at}", curves, (), None, SINGLE_WIDTH)
    ]
    template = _environment().get_template("comparison.html.j2")
    return template.render(
        names=list(names),
        panels=[(name, verdict, Markup(figure.svg)) for name, verdict, figure in figures],
        shown=tables,
        **_common(figure for _, _, figure in figures),
    )


def _common(figures: Iterable[Figure]) -> dict[str, Any]:
    """What every page has: colours, its one script, and the numbers of its figures."""
    script = page_script()
    return {
        "palette": Markup(page_css()),
        "script": Markup(script),
        "policy": Markup(source_hash(script)),
        "numbers": {figure.name: compressed(as_csv(figure.rows).encode()) for figure in figures},
    }


def write_page(path: Path, data: ReportData) -> None:
    """Write `render_page` atomically."""
    write_text(path, render_page(data))


def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("refusal_cliff", "report"),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_finalize,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    named = (
        *(words.number, words.number_interval, words.percent, words.percent_interval),
        *(words.listing, words.count, words.visible),
        *(headings, row_texts, calibration_name, tokens_of),
    )
    environment.filters.update({function.__name__: function for function in named})
    environment.filters["kinds"] = _kinds
    return environment


def _finalize(value: Any) -> Any:
    """What every expression of the template goes through before it is escaped."""
    return value if isinstance(value, Markup) else words.visible(str(value))


def _kinds(parts: Iterable[Bar | Curve]) -> str:
    """How the intervals of these parts were made, each way once; empty where there is none."""
    made = (p.interval_kind for p in parts if not isinstance(p, Bar) or p.interval is not None)
    return words.listing(list(dict.fromkeys(made)))


def _contents(data: ReportData, figures: Mapping[str, Figure]) -> list[tuple[str, str]]:
    """Id and title of each section that the page has."""
    drawn = {name.partition("-")[0] for name in figures}
    told = {
        "next": data.next_step,
        "findings": data.findings,
        "proof": data.summary.proof,
        "controls": data.controls,
        "traces": data.traces,
        "reader": data.reader,
        "notes": data.notes,
        "provenance": data.provenance,
    }
    there = {*drawn, *(name for name, part in told.items() if part)}
    return [(name, title) for name, title in TITLES.items() if name in there]


def _panels(data: ReportData, figures: Mapping[str, Figure]) -> list[dict[str, Any]]:
    """The cliff picture of each model, and what it says."""
    both = (
        ("cliff-model", data.curves, data.summary.cliff),
        ("cliff-control", data.control_curves, data.summary.control),
    )
    return [
        {
            "subject": curves[0].subject,
            "verdict": cliff and cliff.verdict,
            "reason": cliff.reason if cliff else "",
            "picture": Markup(figures[name].svg),
        }
        for name, curves, cliff in both
        if name in figures
    ]
