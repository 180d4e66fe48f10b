"""Small charts: shares as bars, attack success by number of heads, the score along one trace."""

from __future__ import annotations

from collections.abc import Sequence

from refusal_cliff.report.data import Bar, DoseCurve, ExampleTrace
from refusal_cliff.report.svg import (
    Frame,
    Point,
    Scale,
    band,
    box,
    dot,
    frame,
    known,
    line,
    line_of,
    picture,
    polyline,
    share_axis,
    spread,
    text,
)
from refusal_cliff.report.words import count, number, percent, percent_interval

_ROW = 58.0
_TOP = 30.0
_THICK = 20.0


def bar_chart(name: str, title: str, bars: Sequence[Bar], *, width: float = 960.0) -> str:
    """Horizontal bars of shares, labels above them.

    Args:
        name: Unique on the page.
        title: What the shares are shares of, in words.
        bars: The bars, from top to bottom.
        width: Width in user units.

    Returns:
        An SVG.
    """
    across = Scale(0, 1, 2, width - 64)
    bottom = _TOP + _ROW * len(bars)
    described = "; ".join(f"{bar.label}: {_value_words(bar)}" for bar in bars)
    return picture(
        name,
        (width, bottom + 24),
        title,
        f"{described}.",
        text(2, 12, title, "axis-name"),
        *(_grid(across, share, bottom) for share in (0.0, 0.25, 0.5, 0.75, 1.0)),
        *(_bar(across, bar, _TOP + _ROW * row) for row, bar in enumerate(bars)),
    )


def _value_words(bar: Bar) -> str:
    interval = f" {percent_interval(bar.interval)}" if bar.interval else ""
    return f"{percent(bar.value)}{interval}, n = {bar.n}"


def _grid(across: Scale, share: float, bottom: float) -> str:
    x = across(share)
    anchor = "start" if share == 0 else "middle"
    return line((x, _TOP - 4), (x, bottom), "grid" if share else "axis") + text(
        x, bottom + 17, percent(share), "tick", anchor
    )


def _bar(across: Scale, bar: Bar, top: float) -> str:
    y = top + 26
    tip = f"{bar.label}\n{_value_words(bar)}" + (f"\n{bar.detail}" if bar.detail else "")
    end = max(map(across, (bar.value, *(bar.interval or ()), *bar.points)))
    return "".join(
        (
            text(8, top + 18, bar.label, "bar-name"),
            text(across(1) + 60, top + 18, _small_print(bar), "tick small-print", "end"),
            box(2, y, across(bar.value) - 2, _THICK, f"bar {bar.role}"),
            *(dot(across(p), y + _jitter(i), 1.9, "single") for i, p in enumerate(bar.points)),
            _whisker(across, bar, y + _THICK / 2),
            text(end + 9, y + 15, percent(bar.value), "bar-value"),
            box(0, top + 4, across(1) + 60, _ROW - 8, "pointer plain", tip),
        )
    )


def _small_print(bar: Bar) -> str:
    interval = percent_interval(bar.interval) if bar.interval else ""
    return " · ".join(filter(None, (interval, f"n = {bar.n}", bar.detail)))


def _jitter(i: int) -> float:
    """Height of the i-th dot inside its bar, so that equal results do not cover each other."""
    return 3 + (i * 7) % int(_THICK - 5)


def _whisker(across: Scale, bar: Bar, y: float) -> str:
    if bar.interval is None:
        return ""
    left, right = (across(end) for end in bar.interval)
    caps = (line((x, y - 5), (x, y + 5), "whisker") for x in (left, right))
    return line((left, y), (right, y), "whisker") + "".join(caps)


_LABEL_GAP = 34.0


def dose_chart(name: str, doses: Sequence[DoseCurve]) -> str:
    """ASR against the share of heads ablated, one line a model."""
    most = max(100 * dose.heads[-1] / dose.total_heads for dose in doses)
    place = frame((0, most), (0, 1), 52, 26, 500, 250)
    described = "; ".join(
        f"{d.subject}: {percent(d.asr[0])} with none, {percent(d.asr[-1])} with {d.heads[-1]} "
        f"of {d.total_heads} heads ablated"
        for d in doses
    )
    return picture(
        name,
        (660.0, 300.0),
        "Attack success rate by share of heads ablated",
        f"{described}.",
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
    colour = _dose_class(dose)
    low, high = zip(*dose.intervals, strict=True)
    points = _dose_points(place, dose, dose.asr)
    return (
        band(_dose_points(place, dose, high), _dose_points(place, dose, low), f"area {colour}")
        + polyline(points, f"curve {colour}")
        + "".join(dot(x, y, 3.2, f"end {colour}") for x, y in points)
        + "".join(
            box(x - 9, y - 9, 18, 18, "pointer", _dose_tip(dose, at))
            for at, (x, y) in enumerate(points)
        )
    )


def _dose_tip(dose: DoseCurve, at: int) -> str:
    return (
        f"{dose.subject}: {dose.heads[at]} of {dose.total_heads} heads ablated\n"
        f"ASR {percent(dose.asr[at])}, interval {percent(dose.intervals[at][0])} "
        f"to {percent(dose.intervals[at][1])}, n = {dose.n}"
    )


def _dose_labels(place: Frame, doses: Sequence[DoseCurve]) -> str:
    xs, ys = zip(*(_dose_points(place, dose, dose.asr)[-1] for dose in doses), strict=True)
    moved = spread(ys, _LABEL_GAP, place.bottom - 6)
    return "".join(
        text(x + 10, y, dose.subject, f"label {_dose_class(dose)}")
        + text(x + 10, y + 14, f"n = {dose.n}", "tick")
        for dose, x, y in zip(doses, xs, moved, strict=True)
    )


def _dose_class(dose: DoseCurve) -> str:
    return "refused" if dose.role == "result" else "benign"


def trace_line(name: str, trace: ExampleTrace) -> str:
    """The score along the thinking and closing tokens of one trace."""
    start, end = trace.spans.prompt, trace.spans.closing
    scores = trace.scores[start:end]
    place = frame((0, max(1, len(scores) - 1)), (0, 1), 30, 8, 652, 82)
    left = place.x(trace.spans.thinking - start - 0.5)
    measured = [score for score in scores if known(score)]
    ends = f"from {number(measured[0])} to {number(measured[-1])}" if measured else "not measured"
    return picture(
        name,
        (660.0, 92.0),
        f"Refusal score along the trace: {trace.title}",
        f"{count(len(scores), 'token')} of thinking and closing, {ends}.",
        box(left, place.top, place.x(len(scores) - 1) - left + 6, 74, "band"),
        *(
            line((30, place.y(v)), (652, place.y(v)), "grid")
            + text(22, place.y(v) + 4, f"{v:g}", "tick", "end")
            for v in (0.0, 0.5, 1.0)
        ),
        line_of(place, range(len(scores)), scores, "curve trace"),
    )
