"""Attack success rate by number of heads ablated."""

from __future__ import annotations

from collections.abc import Sequence

from refusal_cliff.report.data import DoseCurve
from refusal_cliff.report.lines import share_axis
from refusal_cliff.report.svg import (
    Frame,
    Point,
    band,
    box,
    dot,
    frame,
    line,
    picture,
    polyline,
    spread,
    text,
)
from refusal_cliff.report.words import percent

_LABEL_GAP = 34.0


def dose_chart(name: str, doses: Sequence[DoseCurve]) -> str:
    """ASR against the share of heads ablated, one line a model."""
    most = max(100 * dose.heads[-1] / dose.total_heads for dose in doses)
    place = frame((0, most), (0, 1), 52, 26, 500, 250)
    parts = [
        f"{d.subject}: {percent(d.asr[0])} with none, {percent(d.asr[-1])} with {d.heads[-1]} "
        f"of {d.total_heads} heads ablated"
        for d in doses
    ]
    return picture(
        name,
        (660.0, 300.0),
        "Attack success rate by share of heads ablated",
        "; ".join(parts) + ".",
        share_axis(place, 52, 500, as_percent=True),
        text(2, 12, "attack success rate", "axis-name"),
        _dose_axis(place, most),
        *(_doseline_of(place, dose) for dose in doses),
        _dose_labels(place, doses),
    )


def _dose_axis(place: Frame, most: float) -> str:
    step = next(s for s in (0.5, 1, 2, 5, 10, 20, 50) if most / s <= 8)
    ticks = [i * step for i in range(int(most / step) + 1)]
    return "".join(
        line((place.x(t), place.bottom), (place.x(t), place.bottom + 4), "axis")
        + text(place.x(t), place.bottom + 19, f"{t:g} %", "tick", "middle")
        for t in ticks
    ) + text(276, place.bottom + 42, "heads ablated, in the order found", "axis-name", "middle")


def _dose_points(place: Frame, dose: DoseCurve, values: Sequence[float]) -> list[Point]:
    shares = [100 * n / dose.total_heads for n in dose.heads]
    return [place.point(x, y) for x, y in zip(shares, values, strict=True)]


def _doseline_of(place: Frame, dose: DoseCurve) -> str:
    colour = "refused" if dose.role == "result" else "benign"
    low, high = zip(*dose.intervals, strict=True)
    points = _dose_points(place, dose, dose.asr)
    tips = [_dose_tip(dose, at) for at in range(len(points))]
    return (
        band(_dose_points(place, dose, high), _dose_points(place, dose, low), f"area {colour}")
        + polyline(points, f"curve {colour}")
        + "".join(dot(x, y, 3.2, f"end {colour}") for x, y in points)
        + "".join(
            box(x - 9, y - 9, 18, 18, "pointer", tip)
            for (x, y), tip in zip(points, tips, strict=True)
        )
    )


def _dose_tip(dose: DoseCurve, at: int) -> str:
    return (
        f"{dose.subject}: {dose.heads[at]} of {dose.total_heads} heads ablated\n"
        f"ASR {percent(dose.asr[at])}, interval {percent(dose.intervals[at][0])} "
        f"to {percent(dose.intervals[at][1])}, n = {dose.n}"
    )


def _dose_labels(place: Frame, doses: Sequence[DoseCurve]) -> str:
    ends = [_dose_points(place, dose, dose.asr)[-1] for dose in doses]
    moved = spread([y for _, y in ends], _LABEL_GAP, place.bottom - 6)
    return "".join(
        text(end[0] + 10, y, dose.subject, f"label {_dose_class(dose)}")
        + text(end[0] + 10, y + 14, f"n = {dose.n}", "tick")
        for dose, end, y in zip(doses, ends, moved, strict=True)
    )


def _dose_class(dose: DoseCurve) -> str:
    return "refused" if dose.role == "result" else "benign"
