"""Every chart of a page by its name: the picture, what it shows, and the numbers behind it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from refusal_cliff.controls.table import BINS, ControlTable
from refusal_cliff.report.bars import bar_chart
from refusal_cliff.report.cliff_chart import Marks, cliff_panel
from refusal_cliff.report.data import Bar, Curve, LessIsMore, ReportData
from refusal_cliff.report.dose_chart import dose_chart
from refusal_cliff.report.figure_data import (
    Row,
    bar_rows,
    curve_rows,
    dose_rows,
    head_rows,
    heat_rows,
    trace_rows,
)
from refusal_cliff.report.lines import known
from refusal_cliff.report.maps import depth_map, head_chart
from refusal_cliff.report.trace_chart import trace_line

PAIR_WIDTH, SINGLE_WIDTH = 524.0, 700.0
ASR, ANSWERED = "attack success rate", "benign prompts answered"


@dataclass(frozen=True, slots=True)
class Figure:
    """One chart.

    Attributes:
        name: Unique on the page; names its file.
        svg: The picture, styled by the page.
        rows: Its numbers, a heading first.
    """

    name: str
    svg: str
    rows: Sequence[Row]


def figures_of(data: ReportData) -> dict[str, Figure]:
    """Every chart that there is something to draw for, by name, in the order of the page."""
    return {figure.name: figure for figure in _figures(data)}


def cliff_figure(
    name: str, curves: Sequence[Curve], closing: Sequence[str], marks: Marks | None, width: float
) -> Figure | None:
    """Curves of one model; None where no point was measured."""
    drawn = drawable(curves)
    if not drawn:
        return None
    return Figure(name, cliff_panel(name, drawn, closing, marks, width=width), curve_rows(drawn))


def drawable(curves: Sequence[Curve]) -> list[Curve]:
    """The curves with a measured point."""
    return [curve for curve in curves if any(known(mean) for mean in curve.mean)]


def calibration_figure(name: str, table: ControlTable) -> Figure | None:
    """The calibration rows of a control as bars, dots where a calibrated score would stand."""
    bars = [
        Bar(row, value, cell.interval, cell.n or 0, "result", (BINS[row],), "", "bootstrap")
        for row, (cell, *_) in table.rows.items()
        if row in BINS and (value := cell.value) is not None
    ]
    if not bars:
        return None
    chart = bar_chart(name, "share that complied", bars, width=SINGLE_WIDTH)
    return Figure(name, chart, bar_rows(bars))


def _figures(data: ReportData) -> Iterator[Figure]:
    yield from _cliffs(data)
    if data.heatmap is not None:
        layer = data.summary.probe.layer
        yield Figure(
            "depth",
            depth_map("depth", data.heatmap, data.closing, layer),
            heat_rows(data.heatmap),
        )
    if data.head_map is not None:
        yield Figure("heads", head_chart("heads", data.head_map), head_rows(data.head_map))
    if data.ablation:
        chart = bar_chart("ablation", ASR, data.ablation, width=SINGLE_WIDTH)
        yield Figure("ablation", chart, bar_rows(data.ablation))
    if len(data.ablated_curves) == 2:
        ablated = cliff_figure("ablated", data.ablated_curves, data.closing, None, SINGLE_WIDTH)
        yield from [ablated] if ablated else []
    if data.doses:
        yield Figure("dose", dose_chart("dose", data.doses), dose_rows(data.doses))
    if data.less_is_more:
        yield from _repairs(data.less_is_more)
    for at, (_, table) in enumerate(data.controls):
        found = calibration_figure(calibration_name(at), table)
        yield from [found] if found else []
    for at, trace in enumerate(data.traces, 1):
        yield Figure(f"trace-{at}", trace_line(f"trace-{at}", trace), trace_rows(trace))


def calibration_name(at: int) -> str:
    """Name of the chart of a control, by its place among the controls."""
    return f"calibration-{at + 1}"


def _cliffs(data: ReportData) -> list[Figure]:
    asked = (
        ("cliff-model", data.curves, data.summary.cliff),
        ("cliff-control", data.control_curves, data.summary.control),
    )
    both = all(drawable(curves) for _, curves, _ in asked)
    width = PAIR_WIDTH if both else SINGLE_WIDTH
    found = [cliff_figure(name, curves, data.closing, m, width) for name, curves, m in asked]
    return [figure for figure in found if figure]


def _repairs(found: LessIsMore) -> Iterator[Figure]:
    for name, title, bars in (
        ("repair-asr", ASR, [one.asr for one in found.strategies]),
        ("repair-benign", ANSWERED, [one.benign_answered for one in found.strategies]),
    ):
        yield Figure(name, bar_chart(name, title, bars, width=PAIR_WIDTH), bar_rows(bars))
