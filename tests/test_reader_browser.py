"""The page in a browser: it filters, sorts, searches, links, saves, and runs nothing of a trace."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from hostile_page import ATTACK, hostile_page
from reader_example import (
    PIECES,
    SPANS,
    example_reader,
    listed,
    scores_of,
    seen,
    shares_of,
    text_of,
    tokens,
)
from report_example import example

from refusal_cliff.report.data import ReaderTrace
from refusal_cliff.report.page import write_page
from refusal_cliff.report.palette import LEVELS
from refusal_cliff.report.reader import HEAD_STEPS, page_script, source_hash


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("reader") / "report.html"
    write_page(path, example(reader=example_reader()))
    return path


def ids(*keep: ReaderTrace) -> list[str]:
    return [trace.id for trace in keep]


def test_browser_the_first_trace_is_open_at_the_chosen_layer(file: Path) -> None:
    dom = seen(file, layer="4")
    assert listed(dom) == ids(*example_reader().traces)
    assert text_of(dom, "prompt") == "Request 0 & more"
    assert 'id="reader-body" class="wide reader">' in dom
    assert text_of(dom, "layer-name") == "4 (chosen)"
    check_colours(dom, 0, 2)


def test_browser_unpacks_nothing_until_the_reader_is_seen(file: Path) -> None:
    dom = seen(file)
    assert listed(dom) == []
    assert "unpacked when this part of the page is seen" in text_of(dom, "state")


def check_colours(dom: str, place: int, row: int) -> None:
    found = tokens(dom)
    assert len(found) == len(PIECES)
    for at, (name, _) in enumerate(found):
        if SPANS.prompt <= at < SPANS.closing:
            step = round(scores_of(place)[row, at - SPANS.prompt] * (LEVELS - 1))
            assert name.startswith(f"scored q{step}")
            assert ("closing" in name) is (at >= SPANS.thinking)
        else:
            assert name == "answer"


def test_browser_filters_sorts_and_searches(file: Path) -> None:
    every = example_reader().traces
    dom = seen(file, verdict="complied", label="harmful", source="one", sort="down")
    kept = [t for t in every if (t.verdict, t.label, t.source) == ("complied", "harmful", "one")]
    kept.sort(key=lambda trace: -(trace.cliff or 0))
    assert len(kept) > 1
    assert listed(dom) == ids(*kept)
    assert f"{len(kept)} of 11 traces" in text_of(dom, "count")
    up = listed(seen(file, sort="up"))
    assert up[-1] == "prompt 10"  # what has no cliff comes last
    scored = [trace for trace in every if trace.cliff is not None]
    assert up[:-1] == ids(*sorted(scored, key=lambda trace: trace.cliff or 0))
    dom = seen(file, q="ANSWER7")
    assert listed(dom) == ["prompt 7"]
    assert text_of(dom, "prompt") == "Request 7 & more"
    assert listed(seen(file, q="request 3 &")) == ["prompt 3"]
    assert listed(seen(file, kind="fell off the cliff")) == ids(
        *(t for t in every if t.kind.startswith("fell"))
    )


def test_browser_opens_a_link_at_its_layer(file: Path) -> None:
    dom = seen(file, trace="prompt 4", layer="2", q="lock is")
    assert text_of(dom, "prompt") == "Request 4 & more"
    assert text_of(dom, "layer-name") == "2"
    check_colours(dom, 4, 1)
    assert [text for name, text in tokens(dom) if "hit" in name] == [" lock", " is"]
    assert 'href="#trace=prompt+4"' in dom
    gone = seen(file, trace="no such")
    assert "not in the page" in text_of(gone, "count")
    never = seen(file, trace="prompt 10")
    assert {name for name, _ in tokens(never)} == {"answer"}


DRIVER = """
setTimeout(async () => {
  const at = (name) => document.getElementById(`reader-${name}`);
  const wait = () => new Promise((done) => setTimeout(done, 200));
  at("layer").value = 0;
  at("layer").dispatchEvent(new Event("input"));
  at("layer").dispatchEvent(new Event("change"));
  await wait();
  at("list").children[5].firstChild.click();
  await wait();
  const token = at("text").querySelector("[data-place='4']");
  token.dispatchEvent(new Event("pointerover", {bubbles: true}));
  at("q").value = "request 5";
  at("q").dispatchEvent(new Event("input"));
  await wait();
  document.title = location.hash;
}, 1000);
"""


def driven_by(driver: str, file: Path, folder: Path) -> Path:
    """The page with more script at the end of its own, which its policy allows."""
    page, script = file.read_text(encoding="utf-8"), page_script()
    driven = folder / "driven.html"
    page = page.replace(script, script + driver)
    page = page.replace(source_hash(script), source_hash(script + driver))
    driven.write_text(page, encoding="utf-8")
    return driven


def test_browser_slider_row_token_and_search_box(file: Path, tmp_path: Path) -> None:
    dom = seen(driven_by(DRIVER, file, tmp_path), layer="4")
    assert "<title>#layer=1&amp;trace=prompt+5&amp;q=request+5</title>" in dom
    assert listed(dom) == ["prompt 5"]
    check_colours(dom, 5, 0)
    score = scores_of(5)[0, 4 - SPANS.prompt]
    assert text_of(dom, "token") == (
        f"“ lock” · token 5 of 11 · thinking, −4 from the last closing token · score {score:.2f}"
    )
    step = np.abs(shares_of(5)).max() / HEAD_STEPS
    added = [round(value / step) * step for value in shares_of(5)[:, 1]]
    names = ("head 4.1, taken out", "head 2.0", "all other heads")
    told = [f"{value:+.2f}".replace("-", "−") for value in added]
    assert head_rows(dom) == list(zip(names, told, strict=True))
    assert "at this token, layer 4" in text_of(dom, "heads-name")


def head_rows(dom: str) -> list[tuple[str, str]]:
    """What heads add, as it is shown."""
    return re.findall(
        r'<span class="name[^"]*">([^<]*)</span>.*?<span class="value">([^<]*)</span>', dom
    )


def test_browser_the_other_side_stands_beside_it(file: Path) -> None:
    dom = seen(file, trace="prompt 4", layer="2")
    assert 'id="reader-after-side">' in dom
    assert "With the heads out |refused" in text_of(dom, "after-name")
    found = re.findall(r'<span class="([^"]*)" data-after="([^"]*)">([^<]*)</span>', dom)
    assert [text for _, _, text in found][9] == "Never4"
    expected = scores_of(5)[-1]
    for at, (name, told, _) in enumerate(found):
        if SPANS.prompt <= at < SPANS.closing:
            score = expected[at - SPANS.prompt]
            assert told == f"score {score:.2f}"
            assert name.startswith(f"scored q{round(score * (LEVELS - 1))}")
        else:
            assert (name, told) == ("answer", "no score")
    assert 'id="reader-after-side" hidden="">' in seen(file, trace="prompt 10")


TABLES = """
setTimeout(async () => {
  const [table] = [...document.querySelectorAll("table")].filter(
    (one) => one.caption?.textContent.startsWith("What each number of heads"));
  const heads = () => [...table.tBodies[0].rows].map((row) => row.cells[1].textContent).join(" ");
  const button = table.tHead.querySelectorAll(".sort")[1];
  button.click();
  const up = heads();
  button.click();
  const saved = [];
  HTMLAnchorElement.prototype.click = function () { saved.push(this.download); };
  for (const one of document.querySelector(".take").querySelectorAll("button")) one.click();
  while (saved.length < 3) await new Promise((done) => setTimeout(done, 50));
  document.title = `${up}|${heads()}|${saved.sort().join(" ")}`;
}, 500);
"""


def test_browser_tables_sort_and_figures_are_saved(file: Path, tmp_path: Path) -> None:
    dom = seen(driven_by(TABLES, file, tmp_path))
    title = re.search(r"<title>([^<]*)</title>", dom)
    assert title
    up, down, saved = title[1].split("|")
    numbers = [int(text) for text in up.split()]
    assert numbers == sorted(numbers)
    assert len(set(numbers)) > 1
    assert [int(text) for text in down.split()] == sorted(numbers, reverse=True)
    assert saved == "cliff-model.csv cliff-model.png cliff-model.svg"


def test_browser_runs_nothing_of_a_hostile_trace(tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    path.write_text(hostile_page(), encoding="utf-8")
    dom = seen(path, layer="4")
    assert "<title>broken" not in dom
    assert "<img" not in dom
    assert text_of(dom, "prompt") == ATTACK
    assert text_of(dom, "after-name") == f"With the heads out |{ATTACK}|"
    assert dom.count("&lt;img src=x onerror") > 2 * len(PIECES)
    assert "‮" not in dom
    assert "⟨U+202E⟩evil" in seen(path, sort="up")
