"""What the line charts share: measured values, broken lines, the axis of shares."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypeGuard

from refusal_cliff.report.svg import Frame, line, polyline, text
from refusal_cliff.report.words import percent

_QUARTERS = (0.0, 0.25, 0.5, 0.75, 1.0)


def known(value: float | None) -> TypeGuard[float]:
    """Whether a score was measured."""
    return value is not None and not math.isnan(value)


def runs(values: Sequence[float | None]) -> list[list[int]]:
    """Positions of the measured values, cut where one is missing."""
    runs: list[list[int]] = [[]]
    for place, value in enumerate(values):
        if known(value):
            runs[-1].append(place)
        elif runs[-1]:
            runs.append([])
    return [run for run in runs if run]


def line_of(place: Frame, xs: Sequence[float], ys: Sequence[float | None], class_: str) -> str:
    """A line through the measured values, broken where one is missing."""
    return "".join(
        polyline([place.point(xs[i], ys[i] or 0.0) for i in run], class_) for run in runs(ys)
    )


def share_axis(place: Frame, left: float, right: float, *, as_percent: bool = False) -> str:
    """Grid lines and labels for shares on the y axis, between two edges."""
    return "".join(
        line((left, place.y(value)), (right, place.y(value)), "grid" if value else "axis")
        + text(left - 8, place.y(value) + 4, _tick(value, as_percent), "tick", "end")
        for value in _QUARTERS
    )


def _tick(value: float, as_percent: bool) -> str:
    return percent(value) if as_percent else f"{value:g}"
