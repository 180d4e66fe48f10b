"""A chart that stands alone: shown by a notebook, or saved as a file that any browser opens."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path

from refusal_cliff.io import write_text
from refusal_cliff.report.palette import page_css

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
