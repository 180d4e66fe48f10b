"""A chart that stands alone: in a notebook, as a file that browsers open, or as one for a paper."""

from __future__ import annotations

import hashlib
import re
import xml.etree.ElementTree as ET
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path

from refusal_cliff.io import write_text
from refusal_cliff.report.palette import colours, page_css

_SCOPE = "refusal-cliff"
_FONTS = "--sans:ui-sans-serif,system-ui,sans-serif;--mono:ui-monospace,Menlo,Consolas,monospace"


@dataclass(frozen=True, slots=True, repr=False)
class Chart:
    """An SVG with its own style, which touches nothing around it; texts in it are escaped.

    Attributes:
        title: What it shows.
        markup: The whole SVG.
    """

    title: str
    markup: str

    @classmethod
    def of(cls, title: str, svg: str) -> Chart:
        """A picture of this package as a chart that stands alone.

        Args:
            title: What it shows.
            svg: What a function of `report` drew.
        """
        known = hashlib.sha256(svg.encode(errors="surrogatepass")).hexdigest()[:12]
        named = svg.replace('-desc"', f'-{known}"')  # ids are unique on a notebook's page
        styled = named.replace("<svg", '<svg xmlns="http://www.w3.org/2000/svg"', 1)
        styled = styled.replace('class="chart', f'class="{_SCOPE} chart', 1)
        return cls(title, styled.replace(">", f"><style>{_style()}</style>", 1))

    def save(self, path: Path | str) -> Path:
        """Write it as an SVG file, whole or not at all.

        Raises:
            RefusalCliffError: The file cannot be written.
        """
        write_text(Path(path), self.markup + "\n")
        return Path(path)

    def _repr_svg_(self) -> str:
        return self.markup

    def __repr__(self) -> str:
        return f"<chart: {self.title}; .save('chart.svg') writes it>"


@cache
def _style() -> str:
    """The page's style of charts, for what is inside a chart only."""
    rules = (files("refusal_cliff.report") / "charts.css").read_text(encoding="utf-8")
    steps = page_css(f".{_SCOPE}")
    scoped = "\n".join(map(_scoped, f"{steps}\n{rules}".splitlines()))
    return f".{_SCOPE}{{{_FONTS};background:var(--paper);max-width:960px}}\n{scoped}"


def _scoped(rule: str) -> str:
    """A rule on one line, each of its selectors only inside a chart."""
    if not rule or rule.startswith(("@", f".{_SCOPE}")):
        return rule
    selectors, brace, body = rule.partition("{")
    inside = (f".{_SCOPE} {one.strip()}" for one in selectors.split(","))
    # A chart's own kind, such as .dose, is a class of the chart itself.
    return f"{','.join(inside).replace(f'.{_SCOPE} .dose ', f'.{_SCOPE}.dose ')}{brace}{body}"


_NAMESPACE = "http://www.w3.org/2000/svg"
_FAMILIES = {
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
        parts: Classes of the element and of those around it, from the outside in.
        beside: Whether the one before the last is the element right before it.
        style: The declarations.
    """

    parts: Sequence[frozenset[str]]
    beside: bool
    style: Style


def flat(svg: str) -> str:
    """A chart of the page as an SVG file that stands alone, in light colours, for print.

    The page styles its charts by custom properties of CSS, which browsers alone know. Here they are
    resolved into every element, so that LaTeX, Inkscape and office programs show the same picture.

    Args:
        svg: What a function of `report` drew.
    """
    root = ET.fromstring(svg)
    _resolve(root, [], None, {})
    _, _, width, height = root.get("viewBox", "0 0 0 0").split()
    root.insert(0, ET.Element("rect", width=width, height=height, fill=_PAPER))
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
        known = own.get(f"--{name}") or _FAMILIES.get(name) or _named().get(name, "#000000")
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
        _Rule(_classes(selector), "+" in selector, _declared(body))
        for selectors, body in _RULE.findall(text)
        for selector in selectors.split(",")
        if ":" not in selector
    ]
    steps = [name for name in _named() if re.fullmatch(r"[qd]\d+", name)]
    rules += [_Rule([frozenset({step})], False, {"--c": f"var(--{step})"}) for step in steps]
    return sorted(rules, key=lambda rule: sum(map(len, rule.parts)))


def _classes(selector: str) -> list[frozenset[str]]:
    return [frozenset(part.split(".")) - {""} for part in selector.replace("+", " ").split()]


def _declared(body: str) -> Style:
    pairs = (one.partition(":") for one in body.split(";") if one.strip())
    found = {name.strip(): value.strip() for name, _, value in pairs}
    if font := _FONT.fullmatch(found.pop("font", "")):
        found |= {"font-size": font["size"], "font-family": font["family"]}
        found |= {"font-weight": font["weight"]} if font["weight"] else {}
    return found
