"""The page: whole, well-formed, offline, true to its data, and safe with hostile texts."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from dataclasses import fields, replace
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from report_example import (
    example,
    example_heads,
    example_heatmap,
    example_summary,
    example_trace,
)

from refusal_cliff.controls.table import BINS, Cell, ControlTable
from refusal_cliff.findings.wording import Finding
from refusal_cliff.report import palette, words
from refusal_cliff.report.data import Bar, Curve, ReportData
from refusal_cliff.report.page import MAX_TOKENS, render_page, tokens_of, write_page
from refusal_cliff.report.reader import page_script, source_hash
from refusal_cliff.report.svg import spread
from refusal_cliff.thinking import Spans

HOSTILE = '<script>alert(1)</script>" onmouseover="x\' ]]> &amp; --> \x1b[2J\x00\u202e\ud800\uffff'
VOID = {"meta", "br", "img", "hr", "link", "input"}
LEFT_OUT: dict[str, Any] = {
    "curves": (),
    "control_curves": (),
    "ablated_curves": (),
    "heatmap": None,
    "head_map": None,
    "ablation": (),
    "doses": (),
    "repaired": (),
    "controls": (),
    "traces": (),
    "reader": None,
    "next_step": None,
    "findings": (),
    "notes": (),
    "provenance": (),
}
SECTIONS = {
    "heatmap": "depth",
    "head_map": "heads",
    "ablation": "ablation",
    "doses": "dose",
    "repaired": "repair",
    "controls": "controls",
    "traces": "traces",
    "reader": "reader",
    "next_step": "next",
    "findings": "findings",
    "notes": "notes",
    "provenance": "provenance",
}


class Checker(HTMLParser):
    """Reads a page and remembers what matters; unbalanced tags fail."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.ids: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes += [(name, value or "") for name, value in attrs]
        self.ids += [value for name, value in attrs if name == "id" and value]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open.pop() == tag, f"</{tag}> closes something else"

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def check(html: str) -> Checker:
    checker = Checker()
    checker.feed(html)
    checker.close()
    assert checker.open == []
    assert len(checker.ids) == len(set(checker.ids))
    return checker


def without_scripts(html: str) -> str:
    """The page without its own script and without data, which can hold nothing but base64."""
    data = re.compile(r'<script type="application/gzip"( (id|class)="[\w-]+")+>[\w+/=]*</script>')
    return data.sub("", html.replace(f"<script>{page_script()}</script>", "", 1))


def pictures(html: str) -> list[str]:
    return re.findall(r"<svg.*?</svg>", html, re.S)


def hostile(value: Any) -> Any:
    """Every text of the data made hostile, and the numbers kept."""
    if isinstance(value, str):
        return HOSTILE
    if isinstance(value, tuple | list):
        return [hostile(item) for item in value]
    return value


def hostile_data() -> ReportData:
    data = example()

    def worse(part: Any, *names: str) -> Any:
        return replace(part, **{name: hostile(getattr(part, name)) for name in names})

    bars = [worse(bar, "label", "detail", "interval_kind") for bar in data.ablation]
    return replace(
        worse(data, "title", "headline", "closing", "notes"),
        curves=[worse(c, "subject", "interval_kind") for c in data.curves],
        control_curves=[worse(c, "subject") for c in data.control_curves],
        ablation=bars,
        doses=[worse(dose, "subject", "interval_kind") for dose in data.doses],
        traces=[
            worse(t, "title", "subject", "verdict", "prompt", "pieces", "id") for t in data.traces
        ],
        findings=[Finding(HOSTILE, HOSTILE, None, HOSTILE)],
        provenance=[(HOSTILE, HOSTILE)],
        summary=data.summary.model_copy(
            update={
                "model": HOSTILE,
                "cliff": data.summary.cliff.model_copy(update={"reason": HOSTILE}),
            }
        ),
    )


@pytest.fixture(scope="module")
def page() -> str:
    return render_page(example())


def test_the_page_is_well_formed(page: str) -> None:
    checker = check(page)
    assert page.startswith("<!DOCTYPE html>")
    assert {"h1", "h2", "table", "figure", "svg"} <= checker.tags
    assert "<script" not in without_scripts(page)


def test_pictures_are_xml_and_have_names(page: str) -> None:
    found = pictures(page)
    assert len(found) == 12  # 3 cliffs, depth, heads, ablation, dose, 2 repairs, 2 traces, reader
    for picture in found:
        root = ET.fromstring(picture)
        assert root.get("aria-label")
        assert root.find("desc") is not None


def test_nothing_is_loaded(page: str) -> None:
    checker = check(page)
    assert {"link", "img", "iframe", "object", "embed", "base"}.isdisjoint(checker.tags)
    links = [pair for pair in checker.attributes if pair[0] in ("src", "href", "xlink:href")]
    assert not [pair for pair in links if pair[0] != "href" or not pair[1].startswith("#")]
    assert "http://" not in page
    assert "https://" not in page
    assert "url(" not in page
    assert "@import" not in page
    policy = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
    assert (
        "content",
        f"{policy}; script-src {source_hash(page_script())}",
    ) in checker.attributes


def test_hostile_texts_are_escaped() -> None:
    html = without_scripts(render_page(hostile_data()))
    checker = check(html)
    assert "script" not in checker.tags
    assert not [name for name, _ in checker.attributes if name.startswith("on")]
    assert "<script" not in html
    assert "]]>" not in html
    assert not set(map(chr, range(32))) - {"\n"} & set(html)
    assert {"\u202e", "\ud800", "\uffff", "\x7f"}.isdisjoint(html)
    assert "&lt;script&gt;" in html
    for picture in pictures(html):
        ET.fromstring(picture)


def test_hostile_page_can_be_written(tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    write_page(path, hostile_data())
    assert path.read_text(encoding="utf-8") == render_page(hostile_data())
    assert [file.name for file in tmp_path.iterdir()] == ["report.html"]


@pytest.mark.parametrize("name", LEFT_OUT)
def test_a_part_that_is_missing_is_left_out(name: str) -> None:
    html = render_page(example(**{name: LEFT_OUT[name]}))
    ids = check(html).ids
    if name in SECTIONS:
        assert SECTIONS[name] not in ids
    assert set(SECTIONS.values()) - {SECTIONS.get(name)} <= set(ids)


def test_a_page_with_nothing_but_a_headline() -> None:
    bare = example_summary().model_copy(
        update=dict.fromkeys(
            ("control", "diffuse", "heads", "planted", "ablation", "proof", "selection")
        )
    )
    html = render_page(example(summary=bare, **LEFT_OUT))
    assert "section" not in check(html).tags
    assert "None" not in html


def test_left_out_covers_every_optional_part() -> None:
    needed = {"title", "headline", "summary", "closing"}
    assert {field.name for field in fields(ReportData)} - needed == set(LEFT_OUT)


def test_numbers_are_those_of_the_data(page: str) -> None:
    data = example()
    text = "".join(check(page).text)
    for bar in data.ablation:
        assert bar.interval is not None
        assert f"{bar.label}\n{words.percent(bar.value)}" in text
        assert words.percent_interval(bar.interval) in text
    for row in data.findings:
        assert row.answer in text
    assert data.heatmap is not None
    score = data.heatmap.scores[6][-1]
    assert score is not None
    assert f"layer 7, token 0 · ↵↵\nscore {words.number(score)}" in text
    assert data.head_map is not None
    assert "head 5.11\neffect of removing it +2.40" in text
    for curve in (*data.curves, *data.control_curves):
        assert f"{words.number(curve.mean[-1] or 0.0)} · n = {curve.n[-1]}" in text


def test_captions_say_n_and_kind_of_interval(page: str) -> None:
    captions = [re.sub(r"\s+", " ", c) for c in re.findall(r"<figcaption>(.*?)</fig", page, re.S)]
    assert len(captions) == 7
    for caption in captions:
        assert "n " in caption
        assert "interval" in caption
    assert "Whiskers: 95 % interval (Wilson and bootstrap over the random sets)." in captions[3]


def test_marks_of_findings(page: str) -> None:
    assert page.count('class="yes"') == 4
    assert page.count('class="no"') == 1
    assert page.count('class="open"') == 1


def test_each_token_has_its_score() -> None:
    trace = example_trace("t", "complied", "A prompt.", drops=True)
    tokens = tokens_of(trace)
    assert len(tokens) == len(trace.pieces) - trace.spans.prompt
    for token, score in zip(tokens, trace.scores[trace.spans.prompt :], strict=True):
        expected = "not fitted here" if score is None else f"score {words.number(score)}"
        assert token.tip.endswith(expected)
    assert [t.text for t in tokens if "closing" in t.class_] == ["↵", "</think>", "↵↵"]


def test_a_long_thought_keeps_its_end() -> None:
    short = example_trace("t", "complied", "A prompt.", drops=True)
    n = 3 * MAX_TOKENS
    trace = replace(
        short,
        pieces=[str(i) for i in range(n)],
        scores=[0.5] * n,
        spans=Spans(2, n - 2, n - 1, n),
    )
    shown = [token.text for token in tokens_of(trace)]
    assert len(shown) == MAX_TOKENS + 1 + 2
    assert shown[-1] == str(n - 1)
    assert "796 tokens left out" in "".join(shown)


def test_scores_that_were_not_measured() -> None:
    nan = float("nan")
    curve = Curve(
        (-2, -1, 0),
        (0.5, None, nan),
        (0.4, None, nan),
        (0.6, None, nan),
        (3, 0, 0),
        "m",
        "complied",
    )
    empty = Curve((-1, 0), (None, None), (None, None), (None, None), (0, 0), "m", "benign")
    html = render_page(example(curves=[curve, empty], control_curves=[empty]))
    check(html)
    assert not re.search(r"\bnan\b", html)
    assert html.count('class="panel"') == 3  # one cliff, two repairs


def test_large_models_and_missing_intervals() -> None:
    bare = [Bar("As it is", 0.0, None, 12, "baseline")]
    html = render_page(
        example(
            heatmap=example_heatmap(40),
            head_map=replace(example_heads(40, 32), planted=None),
            ablation=bare,
        )
    )
    check(html)
    assert "Outlined" not in html
    assert "n = 12" in html


def test_an_interval_says_how_it_was_made() -> None:
    with pytest.raises(ValueError, match="how its interval was made"):
        Bar("As it is", 0.5, (0.4, 0.6), 12, "baseline")


def test_colours_can_be_read() -> None:
    for theme in (0, 1):
        paper, raised = (palette.INKS[name][theme] for name in ("paper", "raised"))
        for name in ("ink", "soft", "complied", "refused", "benign", "good", "bad"):
            ink = palette.INKS[name][theme]
            assert min(palette.contrast(ink, paper), palette.contrast(ink, raised)) >= 4.5, name
    named = palette.colours()
    for step in (f"{scale}{i}" for scale in "qd" for i in range(palette.LEVELS)):
        for theme in (0, 1):
            assert palette.contrast(named[step][theme], named[f"on-{step}"][theme]) >= 4.5, step


def test_scale_is_clipped_and_ordered() -> None:
    assert [palette.sequential(v) for v in (-1, 0, 0.5, 1, 2)] == ["q0", "q0", "q10", "q20", "q20"]
    assert [palette.diverging(v, 2) for v in (-2, 0, 2)] == ["d0", "d10", "d20"]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\tb\n", "a\tb\n"),
        ("\x1b[31m\r", "␛[31m␍"),
        ("\u202e", "⟨U+202E⟩"),
        ("\ud800", "⟨U+D800⟩"),
        ("\ufffe", "⟨U+FFFE⟩"),
        ("نمی\u200cخواهم", "نمی\u200cخواهم"),
    ],
)
def test_hidden_characters_are_shown(text: str, shown: str) -> None:
    assert words.visible(text) == shown


def test_numbers_as_words() -> None:
    assert words.number(-0.001) == "0.00"
    assert words.number(-1.5, 1) == "−1.5"
    assert words.percent(0.046) == "4.6 %"
    assert words.percent(1.0) == "100 %"
    assert words.percent_interval((0.64, 0.985)) == "[64, 98.5] %"
    assert words.listing(["a", "b", "c"]) == "a, b and c"
    assert words.count(1, "head") == "1 head"
    assert words.count(4000, "head") == "4,000 heads"


def test_labels_do_not_overlap() -> None:
    moved = spread([10.0, 12.0, 95.0], 20.0, 100.0)
    assert moved == sorted(moved)
    assert all(b - a >= 20 for a, b in pairwise(moved))
    assert max(moved) <= 100


def test_calibration_is_drawn_where_a_control_has_it() -> None:
    rows = dict.fromkeys(BINS, (Cell(0.25, (0.1, 0.4), 8),))
    table = ControlTable("Graded?", "us", ("value",), rows, "So.")
    html = render_page(example(controls=[("Several answers", table)]))
    assert check(html)
    assert "Answers that complied, by their final score" in html
    assert "final score 0.8 to 1" in html
    assert "by their final score" not in render_page(example())
