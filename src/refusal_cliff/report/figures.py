"""Every chart of a page by its name: the picture, the numbers behind it, and both as files."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from refusal_cliff.controls.table import BINS, ControlTable
from refusal_cliff.errors import RefusalCliffError
from refusal_cliff.io import atomic_path, write_text
from refusal_cliff.report.chart import flat
from refusal_cliff.report.charts import bar_chart, dose_chart, trace_line
from refusal_cliff.report.cliff_chart import Marks, cliff_panel
from refusal_cliff.report.data import (
    Bar,
    Curve,
    DoseCurve,
    ExampleTrace,
    HeadMap,
    Heatmap,
    ReportData,
)
from refusal_cliff.report.maps import depth_map, head_chart
from refusal_cliff.report.svg import known
from refusal_cliff.report.words import visible

Cell = str | int | float | None
Row = Sequence[Cell]
_FORMULA = ("=", "+", "-", "@")
"""What a spreadsheet takes for the beginning of a formula: no text of a model may be one."""


def as_csv(rows: Iterable[Row]) -> str:
    """Rows as CSV, a heading first; empty where nothing was measured, numbers whole."""
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows([_safe(cell) for cell in row] for row in rows)
    return out.getvalue()


def _safe(cell: Cell) -> Cell:
    if not isinstance(cell, str):
        return cell
    text = visible(cell)
    return f"'{text}" if text.lstrip().startswith(_FORMULA) else text


def curve_rows(curves: Sequence[Curve]) -> list[Row]:
    """A row for each curve and token."""
    rows: list[Row] = [("model", "traces", "token", "mean", "low", "high", "n", "interval")]
    for one in curves:
        points = zip(one.offsets, one.mean, one.low, one.high, one.n, strict=True)
        name = one.words or one.group
        rows += [(one.subject, name, *point, one.interval_kind) for point in points]
    return rows


def heat_rows(heat: Heatmap) -> list[Row]:
    """A row for each layer and token."""
    rows: list[Row] = [("layer", "token", "score", "cliff of the layer", "AUROC of the layer", "n")]
    for layer, scores, *ends in zip(heat.layers, heat.scores, heat.cliff, heat.auroc, strict=True):
        points = zip(heat.offsets, scores, strict=True)
        rows += [(layer, *point, *ends, heat.n) for point in points]
    return rows


def head_rows(heads: HeadMap) -> list[Row]:
    """A row for each head."""
    rows: list[Row] = [
        ("head", "causal effect", "direct contribution", "taken out", "planted", "n")
    ]
    for row in heads.rows:
        planted = None if heads.planted is None else int(row.head in heads.planted)
        taken = int(row.head in heads.taken_out)
        rows.append((str(row.head), row.causal.mean, row.direct.mean, taken, planted, heads.n))
    return rows


def bar_rows(bars: Sequence[Bar]) -> list[Row]:
    """A row for each bar."""
    rows: list[Row] = [
        ("what", "share", "low", "high", "n", "interval", "detail", "single results")
    ]
    for one in bars:
        low, high = one.interval or (None, None)
        points = " ".join(f"{point:g}" for point in one.points)
        rows.append((one.label, one.value, low, high, one.n, one.interval_kind, one.detail, points))
    return rows


def dose_rows(doses: Sequence[DoseCurve]) -> list[Row]:
    """A row for each model and number of heads."""
    rows: list[Row] = [("model", "heads", "of", "attack success rate", "low", "high", "n")]
    for one in doses:
        points = zip(one.heads, one.asr, one.intervals, strict=True)
        rows += [(one.subject, k, one.total_heads, asr, *ends, one.n) for k, asr, ends in points]
    return rows


def trace_rows(trace: ExampleTrace) -> list[Row]:
    """A row for each token of the thinking and the closing tokens."""
    spans = trace.spans
    places = range(spans.prompt, spans.closing)
    rows: list[Row] = [("token", "text", "score")]
    return rows + [(i - spans.last_closing, trace.pieces[i], trace.scores[i]) for i in places]


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


def cliff_figures(
    name: str, curves: Sequence[Curve], closing: Sequence[str], marks: Marks | None, width: float
) -> Iterator[Figure]:
    """Curves of one model; no figure where no point was measured."""
    if drawn := drawable(curves):
        chart = cliff_panel(name, drawn, closing, marks, width=width)
        yield Figure(name, chart, curve_rows(drawn))


def drawable(curves: Sequence[Curve]) -> list[Curve]:
    """The curves with a measured point."""
    return [curve for curve in curves if any(map(known, curve.mean))]


def _bars(name: str, title: str, bars: Sequence[Bar], width: float) -> Iterator[Figure]:
    """Bars; no figure where there are none."""
    if bars:
        yield Figure(name, bar_chart(name, title, bars, width=width), bar_rows(bars))


def _calibration(table: ControlTable) -> list[Bar]:
    """The calibration rows of a control, dots where a calibrated score would stand."""
    return [
        Bar(row, value, cell.interval, cell.n or 0, "result", (BINS[row],), "", "bootstrap")
        for row, (cell, *_) in table.rows.items()
        if row in BINS and (value := cell.value) is not None
    ]


def _figures(data: ReportData) -> Iterator[Figure]:
    yield from _cliffs(data)
    if data.heatmap is not None:
        chart = depth_map("depth", data.heatmap, data.closing, data.summary.probe.layer)
        yield Figure("depth", chart, heat_rows(data.heatmap))
    if data.head_map is not None:
        yield Figure("heads", head_chart("heads", data.head_map), head_rows(data.head_map))
    yield from _bars("ablation", ASR, data.ablation, SINGLE_WIDTH)
    if len(data.ablated_curves) == 2:
        yield from cliff_figures("ablated", data.ablated_curves, data.closing, None, SINGLE_WIDTH)
    if data.doses:
        yield Figure("dose", dose_chart("dose", data.doses), dose_rows(data.doses))
    yield from _bars("repair-asr", ASR, [asr for asr, _ in data.repaired], PAIR_WIDTH)
    yield from _bars("repair-benign", ANSWERED, [bar for _, bar in data.repaired], PAIR_WIDTH)
    for at, (_, table) in enumerate(data.controls):
        bars = _calibration(table)
        yield from _bars(calibration_name(at), "share that complied", bars, SINGLE_WIDTH)
    for at, trace in enumerate(data.traces, 1):
        yield Figure(f"trace-{at}", trace_line(f"trace-{at}", trace), trace_rows(trace))


def calibration_name(at: int) -> str:
    """Name of the chart of a control, by its place among the controls."""
    return f"calibration-{at + 1}"


def _cliffs(data: ReportData) -> Iterator[Figure]:
    asked = (
        ("cliff-model", data.curves, data.summary.cliff),
        ("cliff-control", data.control_curves, data.summary.control),
    )
    both = all(drawable(curves) for _, curves, _ in asked)
    width = PAIR_WIDTH if both else SINGLE_WIDTH
    for name, curves, marks in asked:
        yield from cliff_figures(name, curves, data.closing, marks, width)


PIXELS = 4.0
"""Pixels of a PNG for each unit of a chart: some 300 an inch where it is as wide as a page."""
EXTRA = "figures"


def write_figures(out: Path, figures: Iterable[Figure], kind: str) -> list[Path]:
    """Write every chart, and a CSV file of its numbers.

    Args:
        out: A folder.
        figures: The charts.
        kind: ``svg``, ``png`` or ``pdf``.

    Returns:
        The files of the charts.

    Raises:
        RefusalCliffError: The extra ``figures`` is not installed, or the folder cannot be written.
    """
    make = _maker(kind)
    written: list[Path] = []
    for figure in figures:
        path = out / f"{figure.name}.{kind}"
        with atomic_path(path) as temporary:
            temporary.write_bytes(make(flat(figure.svg)))
        write_text(path.with_suffix(".csv"), as_csv(figure.rows))
        written.append(path)
    return written


def _maker(kind: str) -> Callable[[str], bytes]:
    if kind == "svg":
        return str.encode
    try:
        import vl_convert
    except ImportError as error:
        raise RefusalCliffError(
            f"Charts as {kind.upper()} need a package that is not installed. Install it: pip "
            f"install 'refusal-cliff[{EXTRA}]'; or write them as SVG (--format svg)."
        ) from error
    makers: Mapping[str, Callable[[str], bytes]] = {
        "png": lambda svg: vl_convert.svg_to_png(svg, scale=PIXELS),
        "pdf": vl_convert.svg_to_pdf,
    }
    return makers[kind]
