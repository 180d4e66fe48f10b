"""Attack success rate and over-refusal by number of training examples, one line a strategy."""

from __future__ import annotations

import math
from collections.abc import Sequence

from lab.comparison import Point as Repairs
from refusal_cliff.report.svg import (
    Frame,
    dot,
    frame,
    line,
    picture,
    polyline,
    share_axis,
    spread,
    tag,
    text,
)

_WIDTH, _HEIGHT, _GAP = 980.0, 400.0, 13.0
_COLOURS = {
    "cliff": "#b8440a",
    "gated": "#e08a3c",
    "diverse": "#93691f",
    "final": "#a8323a",
    "judge": "#1f5fa8",
    "rule": "#4f9bd9",
    "longest": "#7a4fa3",
    "random": "#666a72",
    "full": "#1c6e5a",
}
_STYLE = (
    "text{font:12px system-ui,sans-serif;fill:#3a3d44}.axis{stroke:#8a8d94}.grid{stroke:#e3e0d8}"
    "polyline{fill:none;stroke-width:2}.axis-name{font-weight:600}"
)


def examples_chart(points: Sequence[Repairs]) -> str:
    """A whole SVG file: two panels over a logarithmic number of examples, intervals as bars."""
    sizes = sorted({point.n for point in points})
    ticks = [math.log10(size) for size in sizes]
    ends = (min(ticks) - 0.05, max(ticks) + 0.05)
    panels = [
        _panel(points, ends, left, name, useful=useful)
        for left, name, useful in (
            (50.0, "attack success rate", False),
            (540.0, "over-refusal", True),
        )
    ]
    svg = picture(
        "examples",
        (_WIDTH, _HEIGHT),
        "Attack success rate and over-refusal by number of training examples",
        "; ".join(f"{p.strategy}, {p.n:.0f} examples: ASR {p.asr:.0%}" for p in points) + ".",
        tag("style", _STYLE + "".join(_colour(name) for name in _COLOURS)),
        tag("rect", width=_WIDTH, height=_HEIGHT, fill="#ffffff"),
        *panels,
    )
    return svg.replace("<svg", '<svg xmlns="http://www.w3.org/2000/svg"', 1) + "\n"


def _colour(name: str) -> str:
    ink = _COLOURS[name]
    return f".s-{name}{{stroke:{ink}}}.f-{name}{{fill:{ink}}}"


def _panel(
    points: Sequence[Repairs], ends: tuple[float, float], left: float, name: str, *, useful: bool
) -> str:
    place = frame(ends, (0, 1), left, 40, left + 320, _HEIGHT - 60)
    series: dict[str, list[Repairs]] = {}
    for point in sorted(points, key=lambda point: point.n):
        series.setdefault(_name(point), []).append(point)
    last = [place.y(_value(group[-1], useful)) for group in series.values()]
    moved = spread(last, _GAP, place.bottom)
    return (
        share_axis(place, left, left + 320)
        + text(left - 42, 18, name, "axis-name")
        + _size_axis(place, sorted({point.n for point in points}))
        + "".join(_series(place, group, useful) for group in series.values())
        + "".join(
            text(left + 328, y + 4, key, f"f-{group[0].strategy}")
            for (key, group), y in zip(series.items(), moved, strict=True)
        )
    )


def _name(point: Repairs) -> str:
    return f"{point.strategy}, {point.steps} steps" if point.strategy == "full" else point.strategy


def _value(point: Repairs, useful: bool) -> float:
    return 1 - point.useful if useful else point.asr


def _size_axis(place: Frame, sizes: Sequence[float]) -> str:
    return "".join(
        line(
            (place.x(math.log10(n)), place.bottom),
            (place.x(math.log10(n)), place.bottom + 4),
            "axis",
        )
        + text(place.x(math.log10(n)), place.bottom + 18, f"{n:.0f}", "tick", "middle")
        for n in sizes
    ) + text(place.x.first, place.bottom + 38, "training examples (logarithmic)", "axis-name")


def _series(place: Frame, group: Sequence[Repairs], useful: bool) -> str:
    name = group[0].strategy
    dots = [place.point(math.log10(point.n), _value(point, useful)) for point in group]
    bars = "".join(
        line((x, place.y(low)), (x, place.y(high)), f"s-{name}")
        for (x, _), (low, high) in zip(dots, (_interval(p, useful) for p in group), strict=True)
    )
    circles = "".join(dot(x, y, 3.2, f"f-{name}") for x, y in dots)
    return bars + polyline(dots, f"s-{name}") + circles


def _interval(point: Repairs, useful: bool) -> tuple[float, float]:
    found = point.useful_ci if useful else point.asr_ci
    return (1 - found[1], 1 - found[0]) if useful else found
