"""Colours of the page, light and dark: a few inks, one sequential and one diverging scale.

Both scales (after ColorBrewer's YlGnBu and PuOr) stay in order for every common form of colour
blindness, and so do the three colours of the groups, which also differ in dash.
"""

from __future__ import annotations

from collections.abc import Sequence

INKS: dict[str, tuple[str, str]] = {
    "paper": ("#fbfaf7", "#14161b"),
    "raised": ("#ffffff", "#1a1d24"),
    "sunken": ("#f1efe9", "#20242c"),
    "ink": ("#1c1e22", "#e9e7e1"),
    "soft": ("#5a5e66", "#a5a9b2"),
    "faint": ("#d9d6ce", "#343943"),
    "complied": ("#b8440a", "#ff9a5c"),
    "refused": ("#1f5fa8", "#7db7ff"),
    "benign": ("#666a72", "#9ba1ab"),
    "good": ("#1c6e5a", "#6fd0b2"),
    "bad": ("#a8323a", "#ff8f8f"),
    "band": ("#f6e7cf", "#33291a"),
}
"""Name → (light, dark)."""

_SEQUENTIAL = (
    ("#f4f1e8", "#cfe4d4", "#88c3bf", "#3f93b0", "#1f5f97", "#182c5e"),
    ("#20242c", "#1d3b56", "#1d6580", "#37989c", "#8bd0b0", "#f0f4c6"),
)
_DIVERGING = (
    ("#4a2b80", "#8a78b8", "#c9c2df", "#f1efe9", "#f7cd9b", "#dd8326", "#93450a"),
    ("#c3b0f5", "#8a76c4", "#4b4272", "#22262e", "#6e4a22", "#cf7f2c", "#ffc683"),
)
_DARK_INK, _LIGHT_INK = "#000000", "#ffffff"  # on some steps only pure ones reach 4.5 : 1

LEVELS = 21
"""Steps of each scale; an odd number, so that the diverging one has a middle."""


def level(share: float) -> int:
    """Step of a share in 0 … 1; what lies outside is clipped."""
    return round(min(1.0, max(0.0, share)) * (LEVELS - 1))


def sequential(score: float) -> str:
    """CSS class of a score."""
    return f"q{level(score)}"


def diverging(value: float, limit: float) -> str:
    """CSS class of a signed value on a scale from −limit to +limit."""
    return f"d{level(0.5 + value / (2 * limit))}"


def _channels(colour: str) -> tuple[int, int, int]:
    return int(colour[1:3], 16), int(colour[3:5], 16), int(colour[5:7], 16)


def _blend(stops: Sequence[str], share: float) -> str:
    place = share * (len(stops) - 1)
    left = min(int(place), len(stops) - 2)
    pairs = zip(_channels(stops[left]), _channels(stops[left + 1]), strict=True)
    return "#" + "".join(f"{round(a + (b - a) * (place - left)):02x}" for a, b in pairs)


def luminance(colour: str) -> float:
    """Relative luminance (WCAG 2.2) of ``#rrggbb``."""
    linear = [
        value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4
        for value in (channel / 255 for channel in _channels(colour))
    ]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    """Contrast ratio (WCAG 2.2) of two colours."""
    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def ink_on(colour: str) -> str:
    """Dark or light ink, whichever is read more easily on the colour."""
    return max((_DARK_INK, _LIGHT_INK), key=lambda ink: contrast(ink, colour))


def colours() -> dict[str, tuple[str, str]]:
    """All named colours, (light, dark): inks, both scales, and the ink to use on each step."""
    named = dict(INKS)
    for prefix, (light, dark) in (("q", _SEQUENTIAL), ("d", _DIVERGING)):
        for step in range(LEVELS):
            share = step / (LEVELS - 1)
            pair = (_blend(light, share), _blend(dark, share))
            named[f"{prefix}{step}"] = pair
            named[f"on-{prefix}{step}"] = (ink_on(pair[0]), ink_on(pair[1]))
    return named


def page_css(root: str = ":root") -> str:
    """Custom properties that follow the theme, and the classes of both scales.

    Args:
        root: Selector of the element that holds all that they are used in.
    """
    light, dark = (
        "".join(f"--{name}:{pair[theme]};" for name, pair in colours().items()) for theme in (0, 1)
    )
    names = (f"{prefix}{step}" for prefix in "qd" for step in range(LEVELS))
    steps = (f".{name}{{--c:var(--{name});--k:var(--on-{name})}}" for name in names)
    by_theme = (f"{root}{{{light}}}", f"@media (prefers-color-scheme:dark){{{root}{{{dark}}}}}")
    return "\n".join((*by_theme, *steps))
