"""Charts as files for a paper, each with its numbers beside it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from refusal_cliff.errors import RefusalCliffError
from refusal_cliff.io import atomic_path, write_text
from refusal_cliff.report.figure_data import as_csv
from refusal_cliff.report.figures import Figure
from refusal_cliff.report.flat import flat

PIXELS = 4.0
"""Pixels of a PNG for each unit of a chart: some 300 an inch where it is as wide as a page."""
EXTRA = "figures"


def write_figures(out: Path, figures: Iterable[Figure], kind: str) -> list[Path]:
    """Write every chart, and a CSV file of its numbers.

    Args:
        out: A folder.
        figures: The charts.
        kind: ``svg``, ``png`` or ``pdf``.

    Returns:
        The files of the charts.

    Raises:
        RefusalCliffError: The extra ``figures`` is not installed, or the folder cannot be written.
    """
    make = _maker(kind)
    written: list[Path] = []
    for figure in figures:
        path = out / f"{figure.name}.{kind}"
        with atomic_path(path) as temporary:
            temporary.write_bytes(make(flat(figure.svg)))
        write_text(path.with_suffix(".csv"), as_csv(figure.rows))
        written.append(path)
    return written


def _maker(kind: str) -> Callable[[str], bytes]:
    if kind == "svg":
        return str.encode
    try:
        import vl_convert
    except ImportError as error:
        raise RefusalCliffError(
            f"Charts as {kind.upper()} need a package that is not installed. Install it: pip "
            f"install 'refusal-cliff[{EXTRA}]'; or write them as SVG (--format svg)."
        ) from error
    makers: Mapping[str, Callable[[str], bytes]] = {
        "png": lambda svg: vl_convert.svg_to_png(svg, scale=PIXELS),
        "pdf": vl_convert.svg_to_pdf,
    }
    return makers[kind]
