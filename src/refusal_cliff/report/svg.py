"""The few SVG parts that the charts are made of, and what the line charts share."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise
from typing import TypeGuard

from refusal_cliff.report.words import percent, visible

Point = tuple[float, float]


def tag(name: str, /, *content: str, **attributes: str | float) -> str:
    """An element; ``class_`` and ``stroke_width`` become ``class`` and ``stroke-width``.

    Attribute values are escaped; the content is markup already.
    """
    written = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{_value(value)}"'
        for key, value in attributes.items()
    )
    return f"<{name}{written}>{''.join(content)}</{name}>"


def _value(value: str | float) -> str:
    return escape(visible(value)) if isinstance(value, str) else short(value)


def short(value: float) -> str:
    """A length with at most one decimal."""
    return f"{value:.1f}".removesuffix(".0")


def text(x: float, y: float, words: str, class_: str = "", anchor: str = "start") -> str:
    """A line of text; the words are escaped."""
    content = escape(visible(words))
    return tag("text", content, x=x, y=y, class_=f"t {class_}".strip(), text_anchor=anchor)


def line(start: Point, end: Point, class_: str) -> str:
    """A straight line."""
    return tag("line", x1=start[0], y1=start[1], x2=end[0], y2=end[1], class_=class_)


def polyline(points: Iterable[Point], class_: str) -> str:
    """An open line through the points."""
    joined = " ".join(f"{short(x)},{short(y)}" for x, y in points)
    return tag("polyline", points=joined, class_=class_)


def band(upper: Sequence[Point], lower: Sequence[Point], class_: str) -> str:
    """The area between two lines."""
    joined = " ".join(f"{short(x)},{short(y)}" for x, y in [*upper, *reversed(lower)])
    return tag("polygon", points=joined, class_=class_)


def box(x: float, y: float, width: float, height: float, class_: str, tip: str = "") -> str:
    """A rectangle; ``tip`` is shown when it is pointed at, without a script."""
    return tag(
        "rect",
        tag("title", escape(visible(tip))) if tip else "",
        x=x,
        y=y,
        width=max(0.0, width),
        height=max(0.0, height),
        class_=class_,
    )


def dot(x: float, y: float, radius: float, class_: str) -> str:
    """A circle."""
    return tag("circle", cx=x, cy=y, r=radius, class_=class_)


def picture(name: str, size: Point, title: str, description: str, *body: str) -> str:
    """An inline SVG with a name and a description for those who do not see it.

    The name is no ``<title>``: browsers would show that wherever the pointer rests.

    Args:
        name: Unique on the page.
        size: Width and height in user units.
        title: What it is.
        description: What it shows, in words.
        body: Its parts.
    """
    return tag(
        "svg",
        tag("desc", escape(visible(description)), id=f"{name}-desc"),
        *body,
        viewBox=f"0 0 {short(size[0])} {short(size[1])}",
        role="img",
        aria_label=title,
        aria_describedby=f"{name}-desc",
        class_=f"chart {name}",
    )


@dataclass(frozen=True, slots=True)
class Scale:
    """A linear map from values to user units."""

    start: float
    end: float
    first: float
    last: float

    def __call__(self, value: float) -> float:
        """Place of a value."""
        span = self.end - self.start or 1.0
        return self.first + (value - self.start) / span * (self.last - self.first)


@dataclass(frozen=True, slots=True)
class Frame:
    """The plotting area of a chart with both axes."""

    x: Scale
    y: Scale

    def point(self, x: float, y: float) -> Point:
        """Place of a pair of values."""
        return self.x(x), self.y(y)

    @property
    def top(self) -> float:
        """Upper edge."""
        return min(self.y.first, self.y.last)

    @property
    def bottom(self) -> float:
        """Lower edge."""
        return max(self.y.first, self.y.last)


def frame(x: Point, y: Point, left: float, top: float, right: float, bottom: float) -> Frame:
    """A frame with these value ranges between these edges; y grows upwards."""
    return Frame(Scale(*x, left, right), Scale(*y, bottom, top))


def spread(places: Sequence[float], gap: float, last: float) -> list[float]:
    """Label places moved apart, so that neighbours are ``gap`` away and none is beyond ``last``."""
    order = sorted(range(len(places)), key=places.__getitem__)
    moved = list(places)
    for before, here in pairwise(order):
        moved[here] = max(moved[here], moved[before] + gap)
    ceiling = last
    for here in reversed(order):
        moved[here] = min(moved[here], ceiling)
        ceiling = moved[here] - gap
    return moved


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
