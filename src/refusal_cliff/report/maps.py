"""Matrices as colours: layers × tokens, layers × heads. Deep layers are at the top."""

from __future__ import annotations

from collections.abc import Sequence

from refusal_cliff.heads.table import HeadRow
from refusal_cliff.model.subject import Head
from refusal_cliff.report.data import HeadMap, Heatmap
from refusal_cliff.report.palette import LEVELS, diverging, sequential
from refusal_cliff.report.svg import Point, Scale, box, dot, known, picture, polyline, text
from refusal_cliff.report.words import listing, number, offset_name, signed

_LEFT = 46.0
_TOP = 34.0
_WIDTH = 960.0
_COLUMN = 78.0  # room of each of the two columns right of the heatmap
_SMALLEST_LABELLED = 11.0
_GAP = 1.0


def _row_height(rows: int, tallest: float, room: float) -> float:
    return max(6.0, min(tallest, room / rows))


def _layer_labels(layers: Sequence[int], height: float, chosen: int | None) -> str:
    """Every layer that has room; the probe's layer always, and marked."""
    step = max(1, round(_SMALLEST_LABELLED / height + 0.49))
    parts = []
    for row, layer in enumerate(reversed(layers)):
        y = _TOP + (row + 0.5) * height + 4
        near = chosen is not None and abs(layer - chosen) * height < _SMALLEST_LABELLED
        if layer == chosen:
            parts.append(text(_LEFT - 8, y, f"▸ {layer}", "tick strong", "end"))
        elif layer % step == 0 and not near:
            parts.append(text(_LEFT - 8, y, str(layer), "tick", "end"))
    return "".join(parts) + text(2, _TOP - 14, "layer", "axis-name")


def _colour_bar(x: float, y: float, prefix: str, ends: tuple[str, str], name: str) -> str:
    width = 8.0
    steps = "".join(
        box(x + i * width, y, width + 0.5, 9, f"cell {prefix}{i}") for i in range(LEVELS)
    )
    last = x + LEVELS * width
    return (
        steps
        + text(x - 7, y + 9, ends[0], "tick", "end")
        + text(last + 7, y + 9, ends[1], "tick")
        + text(last + 22 + 7 * len(ends[1]), y + 9, name, "axis-name")
    )


# --- layers × tokens -----------------------------------------------------------------------------


def depth_map(name: str, heat: Heatmap, closing: Sequence[str], chosen: int) -> str:
    """Mean score by layer and token, with each layer's cliff and AUROC beside it.

    Args:
        name: Unique on the page.
        heat: The scores.
        closing: Text of the closing tokens.
        chosen: The probe's layer.

    Returns:
        An SVG.
    """
    height = _row_height(len(heat.layers), 30, 460)
    bottom = _TOP + height * len(heat.layers)
    right = _WIDTH - 8 - 2 * _COLUMN
    step = (right - _LEFT) / len(heat.offsets)
    first_closing = right - step * len(closing)
    return picture(
        name,
        (_WIDTH, bottom + 78),
        "Mean refusal score by layer and token",
        _describe_heat(heat),
        _layer_labels(heat.layers, height, chosen),
        _heat_cells(heat, step, height, closing),
        _closing_bracket(first_closing, right, closing),
        _offset_labels(heat.offsets, step, bottom, len(closing)),
        _column(heat, heat.cliff, "cliff", right + 18, height),
        _column(heat, heat.auroc, "AUROC", right + 18 + _COLUMN, height),
        _colour_bar(_LEFT + 14, bottom + 58, "q", ("0", "1"), "refusal score"),
    )


def _describe_heat(heat: Heatmap) -> str:
    deepest = max(range(len(heat.cliff)), key=heat.cliff.__getitem__)
    return (
        f"{len(heat.layers)} layers by {len(heat.offsets)} tokens, mean of {heat.n} traces. "
        f"The cliff is largest at layer {heat.layers[deepest]}."
    )


def _heat_cells(heat: Heatmap, step: float, height: float, closing: Sequence[str]) -> str:
    parts = []
    rows = zip(reversed(heat.layers), reversed(heat.scores), strict=True)
    for row, (layer, scores) in enumerate(rows):
        for column, (offset, score) in enumerate(zip(heat.offsets, scores, strict=True)):
            class_, told = "missing", "not measured"
            if known(score):
                class_, told = sequential(score), f"score {number(score)}"
            tip = f"layer {layer}, {offset_name(offset, closing)}\n{told}"
            x, y = _LEFT + column * step, _TOP + row * height
            parts.append(box(x, y, step - _GAP, height - _GAP, f"cell {class_}", tip))
    return "".join(parts)


def _closing_bracket(left: float, right: float, closing: Sequence[str]) -> str:
    if not closing:
        return ""
    y = _TOP - 7
    bracket = [(left, y + 4), (left, y), (right - _GAP, y), (right - _GAP, y + 4)]
    words = text((left + right) / 2, y - 7, "closing", "band-name", "middle")
    return polyline(bracket, "band-edge") + words


def _offset_labels(offsets: Sequence[int], step: float, bottom: float, closing: int) -> str:
    ticks = [(i, o) for i, o in enumerate(offsets) if o % 5 == 0]
    middle = _LEFT + step * (len(offsets) - closing) / 2
    return "".join(
        text(_LEFT + (i + 0.5) * step, bottom + 16, number(offset, 0), "tick", "middle")
        for i, offset in ticks
    ) + text(middle, bottom + 38, "tokens before the answer", "axis-name", "middle")


def _column(heat: Heatmap, values: Sequence[float], words: str, left: float, height: float) -> str:
    """One value a layer as a bar from 0 on, to the left where it is negative."""
    across = Scale(min(0.0, *values), max(1.0, *values), left, left + _COLUMN - 44)
    thick = 0.4 * height
    parts = [text(left, _TOP - 14, words, "axis-name")]
    for row, value in enumerate(reversed(values)):
        y = _TOP + row * height
        tip = f"layer {heat.layers[-1 - row]}\n{words} {number(value)}"
        ends = sorted((across(0), across(value)))
        rod = "rod" if value >= 0 else "rod negative"
        parts.append(box(left, y + 0.25 * height, _COLUMN - 44, thick, "track"))
        parts.append(box(ends[0], y + 0.25 * height, ends[1] - ends[0], thick, rod))
        if height >= _SMALLEST_LABELLED:
            parts.append(text(left + _COLUMN - 38, y + height / 2 + 4, number(value), "tick"))
        parts.append(box(left, y, _COLUMN - 8, height, "pointer", tip))
    return "".join(parts)


# --- layers × heads ------------------------------------------------------------------------------


UNREACHED = "cannot reach the probe"


def head_chart(name: str, heads: HeadMap) -> str:
    """Causal effect of every head; the suppression heads dotted, the planted ones outlined.

    Args:
        name: Unique on the page.
        heads: The effects.

    Returns:
        An SVG.
    """
    columns = heads.columns
    side = min(38.0, (_WIDTH - _LEFT - 8) / columns)
    height = _row_height(len(heads.layers), side * 0.8, 560)
    bottom = _TOP + height * len(heads.layers)
    width = max(600.0, _LEFT + side * columns + 8)
    limit = max(abs(row.causal.mean) for row in heads.rows) or 1.0
    return picture(
        name,
        (width, bottom + 104),
        "Causal effect of every head on the final refusal score",
        _describe_heads(heads),
        _layer_labels(heads.layers, height, None),
        _head_cells(heads, side, height, limit),
        _head_marks(heads, side, height),
        _head_axis(columns, side, bottom),
        _colour_bar(
            _LEFT + 40, bottom + 48, "d", (number(-limit), signed(limit)), "effect, logits"
        ),
        _legend(_LEFT, bottom + 84, heads),
    )


def _describe_heads(heads: HeadMap) -> str:
    found = listing(list(map(str, heads.taken_out))) or "none"
    words = f"{len(heads.layers)} layers by {heads.columns} heads. Taken out: {found}."
    if heads.planted is None:
        return words
    return f"{words} Planted: {listing(list(map(str, heads.planted))) or 'none'}."


def _head_place(layers: Sequence[int], head: Head, side: float, height: float) -> Point:
    row = len(layers) - 1 - layers.index(head.layer)
    return _LEFT + head.index * side, _TOP + row * height


def _head_cells(heads: HeadMap, side: float, height: float, limit: float) -> str:
    parts, layers = [], heads.layers
    for row in heads.rows:
        x, y = _head_place(layers, row.head, side, height)
        class_ = diverging(row.causal.mean, limit) if row.acts else "missing"
        tip = _head_tip(heads, row)
        parts.append(box(x, y, side - _GAP, height - _GAP, f"cell {class_}", tip))
    return "".join(parts)


def _head_tip(heads: HeadMap, row: HeadRow) -> str:
    lines = [f"head {row.head}"]
    if row.acts:
        lines.append(f"effect of removing it {signed(row.causal.mean)}")
        lines.append(f"direct contribution {signed(row.direct.mean)}")
    else:
        lines.append(UNREACHED)
    if row.head in heads.taken_out:
        lines.append("taken out")
    if row.head in (heads.planted or ()):
        lines.append("planted")
    return "\n".join(lines)


def _head_marks(heads: HeadMap, side: float, height: float) -> str:
    parts, layers = [], heads.layers
    for head in heads.planted or ():
        x, y = _head_place(layers, head, side, height)
        parts.append(box(x - 1, y - 1, side + 1, height + 1, "planted"))
    for head in heads.taken_out:
        x, y = _head_place(layers, head, side, height)
        radius = max(2.2, min(5.0, 0.22 * min(side, height)))
        parts.append(dot(x + (side - _GAP) / 2, y + (height - _GAP) / 2, radius, "found"))
    return "".join(parts)


def _head_axis(columns: int, side: float, bottom: float) -> str:
    step = next(s for s in (1, 2, 4, 8, 16) if s * side >= 18 or s == 16)
    return "".join(
        text(_LEFT + (head + 0.5) * side, bottom + 16, str(head), "tick", "middle")
        for head in range(0, columns, step)
    ) + text(2, bottom + 16, "head", "axis-name")


def _legend(x: float, y: float, heads: HeadMap) -> str:
    parts: list[str] = []
    if heads.taken_out:
        parts += [dot(x + 6, y, 4.5, "found"), text(x + 18, y + 4, "taken out", "tick")]
    if heads.planted is not None:
        parts.append(box(x + 160, y - 7, 14, 14, "planted"))
        parts.append(text(x + 182, y + 4, "planted by the recipe", "tick"))
    if not all(row.acts for row in heads.rows):
        parts.append(box(x + 346, y - 7, 14, 14, "cell missing"))
        parts.append(text(x + 368, y + 4, UNREACHED, "tick"))
    return "".join(parts)
