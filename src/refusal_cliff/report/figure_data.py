"""The numbers behind each chart, as rows of a CSV file."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence

from refusal_cliff.report.data import Bar, Curve, DoseCurve, ExampleTrace, HeadMap, Heatmap
from refusal_cliff.report.words import head_name, visible

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
    for at, (layer, scores) in enumerate(zip(heat.layers, heat.scores, strict=True)):
        cliff = None if heat.cliff is None else heat.cliff[at]
        auroc = None if heat.auroc is None else heat.auroc[at]
        points = zip(heat.offsets, scores, strict=True)
        rows += [(layer, offset, score, cliff, auroc, heat.n) for offset, score in points]
    return rows


def head_rows(heads: HeadMap) -> list[Row]:
    """A row for each head."""
    rows: list[Row] = [
        ("head", "causal effect", "direct contribution", "taken out", "planted", "n")
    ]
    for at, layer in enumerate(heads.layers):
        for index, effect in enumerate(heads.effect[at]):
            head = (layer, index)
            direct = None if heads.direct is None else heads.direct[at][index]
            planted = None if heads.planted is None else int(head in heads.planted)
            taken = int(head in heads.suppression)
            rows.append((head_name(head), effect, direct, taken, planted, heads.n))
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
