"""Shares as bars with their intervals and the single results behind them."""

from __future__ import annotations

from collections.abc import Sequence

from refusal_cliff.report.data import Bar
from refusal_cliff.report.svg import Scale, box, dot, line, picture, text
from refusal_cliff.report.words import percent, percent_interval

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
    end = max(across(bar.value), across(bar.interval[1]) if bar.interval else 0.0)
    end = max(end, *(across(point) for point in bar.points), 0.0) if bar.points else end
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
    words = [percent_interval(bar.interval)] if bar.interval else []
    words.append(f"n = {bar.n}")
    if bar.detail:
        words.append(bar.detail)
    return " · ".join(words)


def _jitter(i: int) -> float:
    """Height of the i-th dot inside its bar, so that equal results do not cover each other."""
    return 3 + (i * 7) % int(_THICK - 5)


def _whisker(across: Scale, bar: Bar, y: float) -> str:
    if bar.interval is None:
        return ""
    left, right = (across(end) for end in bar.interval)
    caps = (line((x, y - 5), (x, y + 5), "whisker") for x in (left, right))
    return line((left, y), (right, y), "whisker") + "".join(caps)
