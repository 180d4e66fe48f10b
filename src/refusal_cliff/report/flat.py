"""A chart as a file for a paper: its style resolved into every element, for light paper.

The page styles its charts by custom properties of CSS, which browsers alone know. Here they are
resolved, so that LaTeX, Inkscape and office programs show the same picture.
"""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

from refusal_cliff.report.palette import colours

_NAMESPACE = "http://www.w3.org/2000/svg"
_FONTS = {
    "sans": "Helvetica, Arial, 'Liberation Sans', 'DejaVu Sans', sans-serif",
    "mono": "Menlo, Consolas, 'DejaVu Sans Mono', monospace",
}
_PAPER = "#ffffff"
_KEPT = frozenset(
    {
        *("fill", "fill-opacity", "stroke", "stroke-width", "stroke-dasharray", "stroke-linejoin"),
        *("stroke-linecap", "opacity", "paint-order", "font-family", "font-size", "font-weight"),
    }
)
_RULE = re.compile(r"([^{}]+)\{([^{}]*)\}")
_VARIABLE = re.compile(r"var\(--([\w-]+)\)")
_FONT = re.compile(r"(?:(?P<weight>\d+) )?(?P<size>[\d.]+px) (?P<family>.+)")
Style = dict[str, str]


@dataclass(frozen=True, slots=True)
class _Rule:
    """Declarations for elements that a selector names.

    Attributes:
        parts: Classes of the element and of those around it, from the outside in; ``+`` in front of
            the last means that the one before is the element right before it.
        style: The declarations.
    """

    parts: Sequence[frozenset[str]]
    beside: bool
    style: Style

    @property
    def weight(self) -> int:
        return sum(map(len, self.parts))


def flat(svg: str) -> str:
    """A chart of the page as an SVG file that stands alone, in light colours, for print.

    Args:
        svg: What a function of `report` drew.
    """
    root = ET.fromstring(svg)
    _resolve(root, [], None, {})
    _, _, width, height = root.get("viewBox", "0 0 0 0").split()
    paper = ET.Element("rect", width=width, height=height, fill=_PAPER)
    root.insert(0, paper)
    root.attrib |= {"xmlns": _NAMESPACE, "width": width, "height": height}
    for name in ("class", "aria-describedby"):
        root.attrib.pop(name, None)
    return ET.tostring(root, encoding="unicode") + "\n"


def _resolve(
    element: ET.Element, around: list[frozenset[str]], before: frozenset[str] | None, given: Style
) -> None:
    """Write the style of an element and all inside it as attributes; drop what only pages need.

    Args:
        element: To be changed.
        around: Classes of the elements around it, from the outside in.
        before: Classes of the element right before it.
        given: Custom properties that it inherits.
    """
    classes = frozenset(element.get("class", "").split())
    found: Style = {}
    for rule in _rules():
        if _fits(rule, classes, around, before):
            found |= rule.style
    own = given | {name: value for name, value in found.items() if name.startswith("--")}
    for name, value in found.items():
        if name in _KEPT:
            element.set(name, _value(value, own))
    inside = [*around, classes]
    last: frozenset[str] | None = None
    for child in list(element):
        names = frozenset(child.get("class", "").split())
        if child.tag == "title" or "pointer" in names:
            element.remove(child)
            continue
        _resolve(child, inside, last, own)
        child.attrib.pop("class", None)
        last = names


def _fits(
    rule: _Rule,
    classes: frozenset[str],
    around: Sequence[frozenset[str]],
    before: frozenset[str] | None,
) -> bool:
    *outer, last = rule.parts
    if not last <= classes:
        return False
    if rule.beside:
        return before is not None and outer[-1] <= before
    return all(any(part <= names for names in around) for part in outer)


def _value(value: str, own: Mapping[str, str]) -> str:
    """A value with every custom property in it resolved."""
    while found := _VARIABLE.search(value):
        name = found[1]
        known = own.get(f"--{name}") or _FONTS.get(name) or _named().get(name, "#000000")
        value = value.replace(found[0], known)
    return value


@cache
def _named() -> dict[str, str]:
    return {name: light for name, (light, _) in colours().items()} | {"paper": _PAPER}


@cache
def _rules() -> list[_Rule]:
    """The rules of the page for charts, the weakest first."""
    text = (files("refusal_cliff.report") / "charts.css").read_text(encoding="utf-8")
    rules = [
        _rule(selector.strip(), _style(body))
        for selectors, body in _RULE.findall(text)
        for selector in selectors.split(",")
        if ":" not in selector
    ]
    steps = [name for name in _named() if re.fullmatch(r"[qd]\d+", name)]
    rules += [_Rule([frozenset({step})], False, {"--c": f"var(--{step})"}) for step in steps]
    return sorted(rules, key=lambda rule: rule.weight)


def _rule(selector: str, style: Style) -> _Rule:
    beside = "+" in selector
    parts = [frozenset(part.split(".")) - {""} for part in selector.replace("+", " ").split()]
    return _Rule(parts, beside, style)


def _style(body: str) -> Style:
    pairs = (one.partition(":") for one in body.split(";") if one.strip())
    found = {name.strip(): value.strip() for name, _, value in pairs}
    if font := _FONT.fullmatch(found.pop("font", "")):
        found |= {"font-size": font["size"], "font-family": font["family"]}
        found |= {"font-weight": font["weight"]} if font["weight"] else {}
    return found
