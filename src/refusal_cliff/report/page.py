"""A run as one HTML page that needs nothing but itself: no network, no font, one script by hash."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from refusal_cliff.controls.rollouts import BINS
from refusal_cliff.controls.table import ControlTable, headings, row_texts
from refusal_cliff.findings.summary import CliffSummary, Verdict
from refusal_cliff.io import write_text
from refusal_cliff.report import words
from refusal_cliff.report.bars import bar_chart
from refusal_cliff.report.cliff_chart import cliff_panel
from refusal_cliff.report.data import Bar, Curve, ExampleTrace, ReportData
from refusal_cliff.report.dose_chart import dose_chart
from refusal_cliff.report.lines import known
from refusal_cliff.report.maps import depth_map, head_chart
from refusal_cliff.report.palette import page_css
from refusal_cliff.report.reader import packed
from refusal_cliff.report.tokens import Token, tokens_of
from refusal_cliff.report.trace_chart import trace_line

_PAIR_WIDTH, _SINGLE_WIDTH = 524.0, 700.0


@dataclass(frozen=True, slots=True)
class _Panel:
    """The cliff picture of one model, and what it says."""

    subject: str
    verdict: Verdict | None
    reason: str
    picture: Markup


@dataclass(frozen=True, slots=True)
class _TraceView:
    trace: ExampleTrace
    picture: Markup
    tokens: list[Token]


def render_page(data: ReportData) -> str:
    """The page as HTML.

    Args:
        data: What to show. Parts that are None or empty are left out; texts may be hostile.

    Returns:
        A whole document without any reference to another file.
    """
    template = _environment().get_template("page.html.j2")
    return template.render(
        data=data,
        summary=data.summary,
        palette=Markup(page_css()),
        panels=_panels(data),
        reader=data.reader and packed(data.reader),
        **_pictures(data),
        traces=[
            _TraceView(trace, Markup(trace_line(f"trace-{i}", trace)), tokens_of(trace))
            for i, trace in enumerate(data.traces, 1)
        ],
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
    shown = [
        (name, verdict, Markup(cliff_panel(f"cliff-{at}", drawn, (), None, width=_SINGLE_WIDTH)))
        for at, (name, verdict, curves) in enumerate(panels)
        if (drawn := _drawable(curves))
    ]
    template = _environment().get_template("comparison.html.j2")
    return template.render(
        names=list(names), panels=shown, shown=tables, palette=Markup(page_css())
    )


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
        *(words.head_name, words.listing, words.count),
        *(words.visible, headings, row_texts),
    )
    environment.filters.update({function.__name__: function for function in named})
    environment.filters["kinds"] = _kinds
    environment.filters["calibration"] = _calibration
    return environment


def _finalize(value: Any) -> Any:
    """What every expression of the template goes through before it is escaped."""
    return value if isinstance(value, Markup) else words.visible(str(value))


def _kinds(parts: Iterable[Bar | Curve]) -> str:
    """How the intervals of these parts were made, each way once; empty where there is none."""
    made = (p.interval_kind for p in parts if not isinstance(p, Bar) or p.interval is not None)
    return words.listing(list(dict.fromkeys(made)))


def _calibration(table: ControlTable) -> Markup | None:
    """The calibration rows of a control as bars, dots where a calibrated score would stand."""
    bars = [
        Bar(name, value, cell.interval, cell.n or 0, "result", (BINS[name],), "", "bootstrap")
        for name, (cell, *_) in table.rows.items()
        if name in BINS and (value := cell.value) is not None
    ]
    if not bars:
        return None
    return Markup(bar_chart("calibration", "share that complied", bars, width=_SINGLE_WIDTH))


def _pictures(data: ReportData) -> dict[str, Markup | None]:
    """Each picture by the name that the template gives it; None where there is nothing to draw."""
    layer = data.summary.probe.layer
    pair = data.less_is_more.strategies if data.less_is_more else ()
    drawn = {
        "depth": data.heatmap and depth_map("depth", data.heatmap, data.closing, layer),
        "heads": data.head_map and head_chart("heads", data.head_map),
        "ablation": data.ablation
        and bar_chart("ablation", "attack success rate", data.ablation, width=_SINGLE_WIDTH),
        "ablated": len(data.ablated_curves) == 2
        and cliff_panel("ablated", data.ablated_curves, data.closing, None, width=_SINGLE_WIDTH),
        "dose": data.doses and dose_chart("dose", data.doses),
        "repair_asr": pair and _half_bars("repair-asr", "attack success rate", pair, "asr"),
        "repair_benign": pair
        and _half_bars("repair-benign", "benign prompts answered", pair, "benign_answered"),
    }
    return {name: Markup(svg) if svg else None for name, svg in drawn.items()}


def _half_bars(name: str, title: str, strategies: Sequence[Any], field: str) -> str:
    bars = [getattr(strategy, field) for strategy in strategies]
    return bar_chart(name, title, bars, width=_PAIR_WIDTH)


def _panels(data: ReportData) -> list[_Panel]:
    control = data.summary.control
    both = (
        ("cliff-model", _drawable(data.curves), data.summary.cliff),
        ("cliff-control", _drawable(data.control_curves), control),
    )
    shown = [(name, curves, cliff) for name, curves, cliff in both if curves]
    width = _PAIR_WIDTH if len(shown) == 2 else _SINGLE_WIDTH
    return [_panel(name, curves, cliff, data.closing, width) for name, curves, cliff in shown]


def _drawable(curves: Sequence[Curve]) -> list[Curve]:
    return [curve for curve in curves if any(known(mean) for mean in curve.mean)]


def _panel(
    name: str,
    curves: Sequence[Curve],
    cliff: CliffSummary | None,
    closing: Sequence[str],
    width: float,
) -> _Panel:
    return _Panel(
        subject=curves[0].subject,
        verdict=cliff.verdict if cliff else None,
        reason=cliff.reason if cliff else "",
        picture=Markup(cliff_panel(name, curves, closing, cliff, width=width)),
    )
