"""The trace reader: true to its data, safe with hostile texts, honest about what it leaves out."""

from __future__ import annotations

import gzip
import json
import re
from base64 import b64decode, b64encode
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from reader_example import (
    LAYERS,
    PIECES,
    SPANS,
    example_reader,
    listed,
    reader_trace,
    scores_of,
    seen,
    text_of,
    tokens,
)
from report_example import example
from transformers import AutoTokenizer

from refusal_cliff.cliff.curves import cliffs_of
from refusal_cliff.cliff.scores import TraceScores
from refusal_cliff.data.traces import Prompt, Trace
from refusal_cliff.organisms import embedded_path
from refusal_cliff.report import traces as chosen
from refusal_cliff.report.data import ReaderTrace
from refusal_cliff.report.page import render_page, write_page
from refusal_cliff.report.palette import LEVELS
from refusal_cliff.report.pieces import Pieces
from refusal_cliff.report.reader import FULL, MISSING, packed, quantised
from refusal_cliff.thinking import Spans

ATTACK = (
    "</script><img src=x onerror=document.title='broken'><script>document.title='broken'</script>"
)
BIDI = "\u202eevil\u2066 \u2028line \ud800 \x00"
INLINE = re.compile(r"<script>(.*?)</script>", re.S)
DATA = re.compile(r'<script type="application/gzip" (?:id|class)="([\w-]+)">([\w+/=]*)</script>')


def unpacked(text: str) -> bytes:
    return gzip.decompress(b64decode(text, validate=True))


def data_of(page: str) -> tuple[dict[str, Any], list[bytes]]:
    """The index and the levels in a page."""
    (_, index), *scores = DATA.findall(page)
    return json.loads(unpacked(index)), [unpacked(text) for _, text in scores]


@pytest.fixture(scope="module")
def page() -> str:
    return render_page(example(reader=example_reader()))


def test_the_one_script_is_allowed_by_its_hash_and_no_other(page: str) -> None:
    (script,) = INLINE.findall(page)
    digest = b64encode(sha256(script.encode()).digest()).decode()
    assert f"img-src data:; script-src 'sha256-{digest}'\">" in page
    assert page.count("<script") == 2 + len(example_reader().traces)
    assert "unsafe" not in page.replace("style-src 'unsafe-inline'", "")


def test_without_traces_no_script_is_allowed() -> None:
    page = render_page(example(reader=None))
    assert "script-src" not in page
    assert "<script" not in page


def test_the_script_puts_text_on_the_page_as_text_alone(page: str) -> None:
    (script,) = INLINE.findall(page)
    code = re.sub(r"//.*", "", script)
    for name in (
        "innerHTML",
        "outerHTML",
        "insertAdjacentHTML",
        "document.write",
        "eval(",
        "fetch(",
    ):
        assert name not in code
    assert "<!--" not in script


def test_data_come_back_as_they_were(page: str) -> None:
    reader = example_reader()
    index, levels = data_of(page)
    assert index["layers"] == list(LAYERS)
    assert index["layer"] == 4
    for trace, entry, found in zip(reader.traces, index["traces"], levels, strict=True):
        assert (entry["id"], entry["prompt"], entry["kind"]) == (trace.id, trace.prompt, trace.kind)
        assert entry["scored"] is bool(trace.levels)
        assert found == trace.levels
    assert index["traces"][0]["pieces"][:9] == [*PIECES[:6], "↵", "</think>", "↵"]
    assert index["traces"][10]["spans"] is None
    assert packed(reader) == packed(reader)


@given(st.lists(st.one_of(st.floats(0, 1), st.just(float("nan"))), min_size=1))
def test_a_byte_is_as_near_to_a_score_as_a_byte_can_be(scores: list[float]) -> None:
    for score, byte in zip(scores, quantised(np.array([scores])), strict=True):
        if np.isnan(score):
            assert byte == MISSING
        else:
            assert abs(byte / FULL - score) <= 0.5 / FULL + 1e-12


@given(st.text())
def test_no_text_gets_out_of_the_data(text: str) -> None:
    trace = reader_trace(0, id=text, prompt=text, category=text, source=text, pieces=[text] * 11)
    found = packed(example_reader([trace]))
    assert re.fullmatch(r"[\w+/=]*", found.index)
    assert "<" not in "".join(found.scores)


def test_levels_must_fit() -> None:
    with pytest.raises(ValueError, match="do not fit"):
        example_reader([reader_trace(0, levels=b"12")])


def hostile_page() -> str:
    names = ("id", "prompt", "label", "verdict", "kind", "source", "category")
    traces = [
        reader_trace(place, **dict.fromkeys(names, text), pieces=[text] * 11)
        for place, text in enumerate((ATTACK, BIDI))
    ]
    return render_page(example(reader=example_reader(traces)))


def test_hostile_traces_stay_in_their_data() -> None:
    page = hostile_page()
    assert "onerror" not in page
    assert "broken" not in page
    assert "\u202e" not in page
    index, _ = data_of(page)
    assert index["traces"][0]["prompt"] == ATTACK
    assert index["traces"][1]["pieces"][0] == "⟨U+202E⟩evil⟨U+2066⟩ ⟨U+2028⟩line ⟨U+D800⟩ ␀"


def made(n: int, thinking: int = 4) -> chosen.Measured:
    """A run of ``n`` traces; the first of them was never closed."""
    rng = np.random.default_rng(0)
    spans = Spans(2, 2 + thinking, 4 + thinking, 6 + thinking)
    traces = [
        Trace(
            prompt=Prompt(
                f"p{i}", "Do.", "benign" if i % 4 == 3 else "harmful", tags=("from:here",)
            ),
            token_ids=tuple(range(5, 5 + spans.total)),
            spans=spans if i else None,
            thinking="",
            response="",
            complete=True,
            verdict="refused" if i % 4 == 2 else "complied" if i else "truncated",
        )
        for i in range(n)
    ]
    scores = [
        TraceScores(
            *(trace.prompt.id, trace.prompt.id, trace.prompt.label, trace.verdict, spans),
            rng.normal(size=(7, spans.total)).astype(np.float32),
        )
        for trace in traces[1:]
    ]
    pieces = Pieces(AutoTokenizer.from_pretrained(embedded_path("tiny")))
    return chosen.Measured(traces, scores, cliffs_of(scores, 3), range(10, 17), 3, pieces)


def test_every_trace_is_there_scored_or_not() -> None:
    run = made(40)
    reader = chosen.reader_of(run)
    assert reader is not None
    assert [trace.id for trace in reader.traces] == [trace.prompt.id for trace in run.traces]
    assert (reader.total, list(reader.layers), reader.probed, reader.layer) == (
        40,
        list(run.layers),
        7,
        13,
    )
    never, first = reader.traces[:2]
    assert (never.cliff, never.spans, never.levels) == (None, None, b"")
    assert never.kind == "truncated or unscored"
    assert first.source == "here"
    expected = 1 / (1 + np.exp(-run.scores[0].logits[:, 2:8]))
    assert np.abs(np.frombuffer(first.levels, np.uint8) / FULL - expected.ravel()).max() < 0.0051
    assert "All 40 test traces of the run, at all 7 probed layers." in render_page(
        example(reader=reader)
    )


def test_what_a_page_cannot_hold_is_thinned_evenly_and_said(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(chosen, "MOST_TRACES", 20)
    monkeypatch.setattr(chosen, "MOST_SCORES", 20 * 6 * 3)
    run = made(80)
    reader = chosen.reader_of(run)
    assert reader is not None
    assert len(reader.traces) == 20
    assert list(reader.layers) == [10, 13, 16]
    assert 13 in reader.layers
    shares = {v: sum(t.verdict == v for t in reader.traces) / 20 for v in ("refused", "complied")}
    assert shares["refused"] == pytest.approx(0.25, abs=0.06)
    cliffs = [t.cliff for t in reader.traces if t.cliff is not None]
    assert max(cliffs) - min(cliffs) > 0.4
    page = render_page(example(reader=reader))
    assert "20 of 80 test traces: a page holds no more." in page
    assert "at 3 of 7 probed layers, evenly spaced." in page


def test_long_traces_are_fewer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chosen, "MOST_TOKENS", 1000)
    reader = chosen.reader_of(made(30, thinking=94))
    assert reader is not None
    assert sum(len(trace.pieces) for trace in reader.traces) <= 1000
    assert len(reader.traces) == 10


def test_nothing_to_read() -> None:
    assert chosen.reader_of(made(0)) is None


def test_typical_traces_are_those_in_the_middle_of_their_group() -> None:
    run = made(60)
    shown = chosen.typical_traces(run, "m")
    assert [trace.verdict for trace in shown] == ["complied", "refused", "complied"]
    for trace in shown:
        own = run.cliff[trace.id]
        group = [c.cliff for c in run.cliffs if (c.label, c.verdict) == (own.label, own.verdict)]
        nearest = min(abs(cliff - np.median(group)) for cliff in group)
        assert abs(own.cliff - np.median(group)) == pytest.approx(nearest)
    reader = chosen.reader_of(run)
    assert reader is not None
    assert reader.first == shown[0].id


# ---- in a browser


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


def test_browser_slider_row_token_and_search_box(file: Path, tmp_path: Path) -> None:
    page = file.read_text(encoding="utf-8")
    (script,) = INLINE.findall(page)
    old, new = (
        b64encode(sha256(text.encode()).digest()).decode() for text in (script, script + DRIVER)
    )
    driven = tmp_path / "driven.html"
    page = page.replace(script, script + DRIVER).replace(old, new)
    driven.write_text(page, encoding="utf-8")
    dom = seen(driven, layer="4")
    assert "<title>#layer=1&amp;trace=prompt+5&amp;q=request+5</title>" in dom
    assert listed(dom) == ["prompt 5"]
    check_colours(dom, 5, 0)
    score = scores_of(5)[0, 4 - SPANS.prompt]
    assert text_of(dom, "token") == (
        f"“ lock” · token 5 of 11 · thinking, −4 from the last closing token · score {score:.2f}"
    )


def test_browser_runs_nothing_of_a_hostile_trace(tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    path.write_text(hostile_page(), encoding="utf-8")
    dom = seen(path, layer="4")
    assert "<title>broken" not in dom
    assert "<img" not in dom
    assert text_of(dom, "prompt") == ATTACK
    assert "‮" not in dom
    assert "⟨U+202E⟩evil" in seen(path, sort="up")
