"""The cliff: mean refusal score aligned at the end of thinking."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from typing import TypeAlias

from refusal_cliff.cliff.verdict import ModelCliff
from refusal_cliff.findings.summary import CliffSummary
from refusal_cliff.report.data import Curve, Group
from refusal_cliff.report.svg import (
    Frame,
    band,
    box,
    dot,
    frame,
    known,
    line,
    line_of,
    picture,
    polyline,
    runs,
    share_axis,
    spread,
    tag,
    text,
)
from refusal_cliff.report.words import count, number, number_interval, offset_name, token_text

GROUP_WORDS: dict[Group, str] = {
    "complied": "harmful, complied",
    "refused": "harmful, refused",
    "benign": "benign",
}
_HEIGHT = 372.0
_LABEL_ROOM = 148.0
_LABEL_GAP = 34.0
_LABEL_WIDTH = 78.0  # of the cliff's number and its interval
_STEP = 12.0
_CLEAR = 5.0  # between that label and a curve
_SHORTEST_ARROW = 14.0
_SIGNS = " ↵⇥"
_CHARACTER = 6.2  # width of a letter of the closing tokens, in user units
Marks: TypeAlias = ModelCliff | CliffSummary
"""What a cliff is marked with: plateau, final score, cliff and its interval."""


def cliff_panel(
    name: str,
    curves: Sequence[Curve],
    closing: Sequence[str],
    cliff: Marks | None,
    *,
    width: float = 660.0,
) -> str:
    """Mean score of each group of traces, aligned at the last closing token.

    Args:
        name: Unique on the page.
        curves: Curves of one model, each with a measured point; at least one.
        closing: Text of the closing tokens.
        cliff: The numbers to mark, or None to mark none.
        width: Width in user units.

    Returns:
        An SVG.
    """
    longest = max((len(token_text(piece)) for piece in closing), default=0)  # below, upright
    first = min(curve.offsets[0] for curve in curves)
    right = width - _LABEL_ROOM
    place = frame((first, 0), (0, 1), 40, 30, right, _HEIGHT - 52)
    return picture(
        name,
        (width, _HEIGHT + _CHARACTER * longest),
        f"Refusal score of {curves[0].subject} towards the end of thinking",
        _describe(curves),
        _closing_band(place, closing),
        share_axis(place, 40, right),
        _offset_axis(place, first, closing),
        text(2, 14, "refusal score", "axis-name"),
        *(_interval(place, curve, f"area {curve.group}") for curve in curves),
        *(line_of(place, c.offsets, c.mean, f"curve {c.group}") for c in curves),
        _plateau(place, first, closing, cliff, curves) if cliff else "",
        _end_labels(place, curves, right),
        _pointer_columns(place, curves, closing),
    )


def _describe(curves: Sequence[Curve]) -> str:
    parts = (
        f"{_words(curve)}: from {_at(curve, 0)} at token {curve.offsets[0]} "
        f"to {_at(curve, -1)} at the last closing token, {count(curve.n[-1], 'trace')}"
        for curve in curves
    )
    return "; ".join(parts) + "."


def _at(curve: Curve, place: int) -> str:
    value = curve.mean[place]
    return number(value) if known(value) else "not measured"


def _interval(place: Frame, curve: Curve, class_: str) -> str:
    xs = curve.offsets
    return "".join(
        band(
            [place.point(xs[i], curve.high[i] or 0.0) for i in run],
            [place.point(xs[i], curve.low[i] or 0.0) for i in run],
            class_,
        )
        for run in runs(curve.mean)
    )


def _closing_band(place: Frame, closing: Sequence[str]) -> str:
    if not closing:
        return ""
    left, right = place.x(0.5 - len(closing)), place.x(0.5)
    width = right - left
    return (
        box(left, place.top, width, place.bottom - place.top, "band")
        + line((left, place.top), (right, place.top), "band-edge")
        + text((left + right) / 2, place.top - 8, "closing", "band-name", "middle")
        + "".join(
            _closing_token(place.x(i + 1 - len(closing)), place.bottom + 10, token_text(piece))
            for i, piece in enumerate(closing)
        )
    )


def _closing_token(x: float, y: float, words: str) -> str:
    """Its text turned upright; signs for white space are stacked, since turned they mislead."""
    if not words.strip(_SIGNS):
        signs = enumerate(words.replace(" ", ""))
        return "".join(text(x, y + 8 + 10 * i, sign, "token-name", "middle") for i, sign in signs)
    return tag(
        "text",
        escape(words),
        transform=f"translate({x + 3.5:.1f} {y:.1f}) rotate(-90)",
        text_anchor="end",
        class_="t token-name",
    )


def _offset_axis(place: Frame, first: float, closing: Sequence[str]) -> str:
    room = max(2, len(closing) + 1)
    ticks = [tick for tick in range(-100, 0, 5) if first <= tick <= -room]
    middle = (place.x(first) + place.x(-room)) / 2
    return "".join(
        line((place.x(t), place.bottom), (place.x(t), place.bottom + 4), "axis")
        + text(place.x(t), place.bottom + 19, number(t, 0), "tick", "middle")
        for t in ticks
    ) + text(middle, place.bottom + 42, "tokens before the answer", "axis-name", "middle")


def _plateau(
    place: Frame, first: float, closing: Sequence[str], cliff: Marks, curves: Sequence[Curve]
) -> str:
    """The plateau's height as a line, and how far the score moves from it: down, or up."""
    end = -max(1, len(closing)) - 0.5
    high, low = place.y(cliff.plateau), place.y(cliff.final)
    x = place.x(end) - 6
    gap = 22 if cliff.plateau > 0.7 else -10
    label = _clear_of(place, curves, (x - 10 - _LABEL_WIDTH, x - 10), (high + low) / 2)
    return (
        line((place.x(first), high), (place.x(end), high), "mark")
        + text(place.x(first) + 8, high + gap, f"plateau {number(cliff.plateau)}", "mark-name")
        + _arrow(x, place.x(0), high, low)
        + text(x - 10, label, f"cliff {number(cliff.cliff)}", "drop-name", "end")
        + text(x - 10, label + 17, number_interval(cliff.cliff_ci), "tick", "end")
    )


def _arrow(x: float, right: float, start: float, end: float) -> str:
    """From the plateau to the final score; nothing where they are too near for an arrow."""
    if abs(end - start) < _SHORTEST_ARROW:
        return ""
    back = math.copysign(1, start - end)
    head = [(x - 4, end + 9 * back), (x, end + 2 * back), (x + 4, end + 9 * back)]
    return (
        line((x, start - 2 * back), (x, end + 2 * back), "drop")
        + polyline(head, "drop")
        + line((x - 5, end), (right, end), "mark")
    )


def _clear_of(
    place: Frame, curves: Sequence[Curve], across: tuple[float, float], wanted: float
) -> float:
    """First line of a label of two, as near to a height as it goes without touching a curve."""
    left, right = across
    heights = [
        place.y(value)
        for curve in curves
        for offset, *ends in zip(curve.offsets, curve.mean, curve.low, curve.high, strict=True)
        if known(ends[0]) and left - _STEP <= place.x(offset) <= right + _STEP
        for value in ends
        if known(value)
    ]

    def free(y: float) -> bool:
        return all(not y - 13 - _CLEAR < height < y + 20 + _CLEAR for height in heights)

    tried = range(int(place.top) + 14, int(place.bottom) - 22)
    return min((y for y in tried if free(y)), key=lambda y: abs(y - wanted), default=wanted)


def _end_labels(place: Frame, curves: Sequence[Curve], right: float) -> str:
    ends = [next(v for v in reversed(curve.mean) if known(v)) for curve in curves]
    exact = [place.y(end) for end in ends]
    moved = spread(exact, _LABEL_GAP, place.bottom - 6)
    return "".join(
        dot(right, true, 3.6, f"end {curve.group}")
        + polyline([(right + 5, true), (right + 13, y)], f"leader {curve.group}")
        + text(right + 17, y, _words(curve), f"label {curve.group}")
        + text(right + 17, y + 14, f"{number(end)} · n = {curve.n[-1]}", "tick")
        for curve, end, true, y in zip(curves, ends, exact, moved, strict=True)
    )


def _pointer_columns(place: Frame, curves: Sequence[Curve], closing: Sequence[str]) -> str:
    offsets = max((curve.offsets for curve in curves), key=len)
    step = place.x(1) - place.x(0)
    return "".join(
        box(
            place.x(offset) - step / 2,
            place.top,
            step,
            place.bottom - place.top,
            "pointer",
            _column_tip(offset, curves, closing),
        )
        for offset in offsets
    )


def _column_tip(offset: int, curves: Sequence[Curve], closing: Sequence[str]) -> str:
    lines = [offset_name(offset, closing)]
    for curve in curves:
        points = zip(curve.offsets, curve.mean, curve.low, curve.high, curve.n, strict=True)
        lines += [
            f"{_words(curve)}: {number(mean)} {number_interval((low or 0.0, high or 0.0))}, n = {n}"
            for at, mean, low, high, n in points
            if at == offset and known(mean)
        ]
    return "\n".join(lines)


def _words(curve: Curve) -> str:
    return curve.words or GROUP_WORDS[curve.group]
