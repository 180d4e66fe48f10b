"""Charts as files: the page's pictures without the page, their numbers, and what a user asks."""

from __future__ import annotations

import csv
import io
import json
import re
import sys
import xml.etree.ElementTree as ET
from dataclasses import replace
from pathlib import Path

import pytest
from report_example import example
from typer.testing import CliRunner

from refusal_cliff.cli import app
from refusal_cliff.errors import RefusalCliffError
from refusal_cliff.findings.summary import CliffSummary
from refusal_cliff.report.chart import flat
from refusal_cliff.report.cliff_chart import cliff_panel
from refusal_cliff.report.data import Curve
from refusal_cliff.report.figures import as_csv, bar_rows, curve_rows, figures_of, write_figures
from refusal_cliff.report.palette import colours
from refusal_cliff.report.svg import dot, text

RUNNER = CliRunner()
SVG = "{http://www.w3.org/2000/svg}"


def test_every_chart_stands_alone() -> None:
    for name, figure in figures_of(example()).items():
        picture = flat(figure.svg)
        root = ET.fromstring(picture)
        assert root.tag == f"{SVG}svg", name
        assert "var(" not in picture
        assert " class=" not in picture
        assert f"{SVG}title" not in {part.tag for part in root.iter()}
        assert root[0].attrib["fill"] == "#ffffff"
        for part in root.iter(f"{SVG}text"):
            assert re.fullmatch(r"[\d.]+px", part.attrib["font-size"]), name
            assert part.attrib["fill"].startswith("#")
        for part in root.iter(f"{SVG}polyline"):
            assert part.attrib["fill"] == "none" and part.attrib["stroke"].startswith("#"), name


def test_styles_are_those_of_the_page() -> None:
    named = {name: light for name, (light, _) in colours().items()}
    svg = f'<svg viewBox="0 0 9 9" class="chart dose">{dot(1, 1, 1, "end refused")}</svg>'
    root = ET.fromstring(flat(svg))
    assert root[1].attrib["fill"] == named["refused"]
    assert root[1].attrib["stroke"] == "#ffffff"
    beside = (
        text(0, 0, "cliff", "drop-name") + text(0, 9, "[0, 1]", "tick") + text(0, 9, "x", "tick")
    )
    root = ET.fromstring(flat(f'<svg viewBox="0 0 9 9">{beside}</svg>'))
    assert [part.get("paint-order") for part in root[1:]] == ["stroke", "stroke", None]
    cell = '<svg viewBox="0 0 9 9"><rect class="cell q7"></rect></svg>'
    assert ET.fromstring(flat(cell))[1].attrib["fill"] == named["q7"]
    lines = '<polyline class="curve benign"></polyline>'
    plain, dose = (
        ET.fromstring(flat(f'<svg viewBox="0 0 9 9" class="{name}">{lines}</svg>'))[1]
        for name in ("chart", "chart dose")
    )
    assert (plain.get("stroke-dasharray"), dose.get("stroke-dasharray")) == ("1.5 4.5", "6 4")


def test_numbers_are_those_of_the_charts() -> None:
    data = example()
    rows = list(csv.reader(io.StringIO(as_csv(curve_rows(data.curves)))))
    assert len(rows) == 1 + sum(len(curve.offsets) for curve in data.curves)
    first = data.curves[0]
    assert rows[1][:3] == [first.subject, first.group, str(first.offsets[0])]
    assert float(rows[1][3]) == first.mean[0]
    bars = list(csv.reader(io.StringIO(as_csv(bar_rows(data.ablation)))))
    assert [float(row[1]) for row in bars[1:]] == [bar.value for bar in data.ablation]


def test_no_text_is_a_formula() -> None:
    hostile = replace(example().ablation[0], label='=HYPERLINK("x")', detail=" +1\n-2")
    (_, row) = csv.reader(io.StringIO(as_csv(bar_rows([hostile]))))
    assert row[0] == '\'=HYPERLINK("x")'
    assert row[6] == "' +1\n-2"
    assert as_csv([(-0.5, None)]) == "-0.5,\n"


def cliff_curves(plateau: float, final: float, benign: float) -> list[Curve]:
    offsets = tuple(range(-20, 1))
    falling = tuple(plateau if o < -2 else final for o in offsets)
    groups = (("complied", falling), ("benign", (benign,) * len(offsets)))
    return [
        Curve(offsets, means, means, means, (9,) * len(offsets), "m", group)  # pyright: ignore
        for group, means in groups
    ]


def marks(plateau: float, final: float) -> CliffSummary:
    cliff = plateau - final
    interval = (cliff - 0.1, cliff + 0.1)
    return CliffSummary.model_construct(
        plateau=plateau, final=final, cliff=cliff, cliff_ci=interval
    )


@pytest.mark.parametrize(("plateau", "final"), [(0.8, 0.1), (0.8, 0.4), (0.3, 0.7), (0.5, 0.48)])
@pytest.mark.parametrize("benign", [0.05, 0.45, 0.5, 0.9])
def test_the_label_of_a_cliff_touches_no_curve(plateau: float, final: float, benign: float) -> None:
    curves = cliff_curves(plateau, final, benign)
    root = ET.fromstring(cliff_panel("c", curves, ["x", "y"], marks(plateau, final)))
    label = next(part for part in root.iter("text") if part.get("class") == "t drop-name")
    top = float(label.attrib["y"])
    right = float(label.attrib["x"])
    lines = [p for p in root.iter("polyline") if p.attrib["class"].startswith("curve")]
    points = [
        tuple(map(float, point.split(",")))
        for line in lines
        for point in line.attrib["points"].split()
    ]
    beside = [y for x, y in points if right - 78 <= x <= right]
    assert beside
    assert not [y for y in beside if top - 13 < y < top + 20]


@pytest.mark.parametrize(
    ("plateau", "final", "down"), [(0.8, 0.1, True), (0.2, 0.7, False), (0.5, 0.49, None)]
)
def test_an_arrow_points_where_the_score_goes(
    plateau: float, final: float, down: bool | None
) -> None:
    curves = cliff_curves(plateau, final, 0.05)
    root = ET.fromstring(cliff_panel("c", curves, ["x"], marks(plateau, final)))
    arrows = [part for part in root.iter("line") if part.attrib["class"] == "drop"]
    if down is None:
        assert arrows == []
    else:
        (arrow,) = arrows
        assert (float(arrow.attrib["y2"]) > float(arrow.attrib["y1"])) is down


@pytest.mark.parametrize(
    ("kind", "begins"), [("svg", b"<svg"), ("png", b"\x89PNG"), ("pdf", b"%PDF")]
)
def test_files_are_what_they_are_called(tmp_path: Path, kind: str, begins: bytes) -> None:
    if kind != "svg":
        pytest.importorskip("vl_convert")
    figures = list(figures_of(example()).values())[:2]
    written = write_figures(tmp_path, figures, kind)
    assert [path.name for path in written] == [f"{figure.name}.{kind}" for figure in figures]
    for path in written:
        assert path.read_bytes().startswith(begins)
        assert path.with_suffix(".csv").read_text(encoding="utf-8").count("\n") > 10


def test_a_missing_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vl_convert", None)
    with pytest.raises(RefusalCliffError, match=r"refusal-cliff\[figures\].*--format svg"):
        write_figures(tmp_path, figures_of(example()).values(), "pdf")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", ["report", "figures"])
def test_what_is_no_finished_run_is_refused(tmp_path: Path, command: str) -> None:
    run = tmp_path / "run"
    run.mkdir()
    nothing = RUNNER.invoke(app, [command, str(run)])
    assert nothing.exit_code == 1
    assert "is not a run folder" in " ".join(nothing.stderr.split())
    (run / "manifest.json").write_text(json.dumps({"format": 1}))
    early = RUNNER.invoke(app, [command, str(run)])
    assert early.exit_code == 1
    assert "has no page.json" in " ".join(early.stderr.split())
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_the_format_is_looked_at_first(tmp_path: Path) -> None:
    asked = RUNNER.invoke(app, ["figures", str(tmp_path), "--format", "gif"])
    assert asked.exit_code == 1
    assert "svg, png, pdf" in " ".join(asked.stderr.split())
