"""The trace reader: true to its data, safe with hostile texts, honest about what it leaves out."""

from __future__ import annotations

import gzip
import json
import re
from base64 import b64decode, b64encode
from hashlib import sha256
from typing import Any

import numpy as np
import pytest
from hostile_page import ATTACK, hostile_page
from hypothesis import given
from hypothesis import strategies as st
from reader_example import (
    LAYERS,
    PIECES,
    example_reader,
    reader_trace,
    scores_of,
    shares_of,
)
from report_example import example
from transformers import AutoTokenizer

from refusal_cliff.cliff.curves import cliffs_of
from refusal_cliff.cliff.scores import TraceScores
from refusal_cliff.data.types import Prompt, Trace
from refusal_cliff.heads.at_tokens import AS_IT_IS, Pieces, TokenRow
from refusal_cliff.model.subject import Head
from refusal_cliff.organisms import embedded_path
from refusal_cliff.report import traces as chosen
from refusal_cliff.report.figures import figures_of
from refusal_cliff.report.page import render_page
from refusal_cliff.report.reader import (
    FULL,
    HEAD_STEPS,
    MISSING,
    packed,
    page_script,
    quantised,
    source_hash,
)
from refusal_cliff.thinking import Spans

INLINE = re.compile(r"<script>(.*?)</script>", re.S)
DATA = re.compile(r'<script type="application/gzip" (?:id|class)="([\w-]+)">([\w+/=]*)</script>')


def unpacked(text: str) -> bytes:
    return gzip.decompress(b64decode(text, validate=True))


def parts_of(page: str, kind: str) -> list[bytes]:
    """The data in a page of one kind."""
    return [unpacked(text) for name, text in DATA.findall(page) if name == kind]


def data_of(page: str) -> tuple[dict[str, Any], list[bytes]]:
    """The index and the levels in a page."""
    (index,) = parts_of(page, "reader-index")
    return json.loads(index), parts_of(page, "reader-scores")


@pytest.fixture(scope="module")
def page() -> str:
    return render_page(example(reader=example_reader()))


def test_the_one_script_is_allowed_by_its_hash_and_no_other(page: str) -> None:
    (script,) = INLINE.findall(page)
    digest = b64encode(sha256(script.encode()).digest()).decode()
    assert f"img-src data:; script-src 'sha256-{digest}'\">" in page
    figures = page.count('class="figure-numbers"')
    assert figures == len(figures_of(example())) > 8
    assert page.count("<script") == 2 + 2 * len(example_reader().traces) + figures
    assert "unsafe" not in page.replace("style-src 'unsafe-inline'", "")


def test_without_traces_the_script_is_the_same() -> None:
    page = render_page(example(reader=None))
    assert INLINE.findall(page) == [page_script()]
    assert source_hash(page_script()) in page
    assert 'id="reader' not in page.replace(page_script(), "")


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


def test_what_heads_add_and_the_other_side_come_back(page: str) -> None:
    more = [json.loads(part) for part in parts_of(page, "reader-more")]
    for place, found in enumerate(more[:10]):
        step, names = found["heads"]["step"], found["heads"]["names"]
        assert (names, found["heads"]["out"]) == (["4.1", "2.0"], ["4.1"])
        shares = shares_of(place)
        assert step == pytest.approx(np.abs(shares).max() / HEAD_STEPS)
        assert np.abs(np.array(found["heads"]["values"]) * step - shares).max() <= step / 2 + 1e-9
        assert found["after"]["verdict"] == "refused"
        assert found["after"]["pieces"][9] == f"Never{place}"
        assert bytes(found["after"]["levels"]) == quantised(scores_of(place + 1)[-1:])
    assert more[10] == {"heads": None, "after": None}


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
    by_id = {one.trace_id: one for one in scores}
    pieces = Pieces(AutoTokenizer.from_pretrained(embedded_path("tiny")))
    heads = (Head(10, 1), Head(3, 0))
    tokens = {
        trace.prompt.id: TokenRow(
            trace.prompt.id,
            AS_IT_IS,
            pieces.of(trace.token_ids),
            heads,
            rng.normal(size=(3, spans.total)).astype(np.float32),
        )
        for trace in traces
    }
    return chosen.Measured(
        *(traces, by_id, cliffs_of(scores, 3), range(10, 17), 3, tokens),
        after={t.prompt.id: t for t in traces[:5]},
        after_tokens={t.prompt.id: tokens[t.prompt.id] for t in traces[:5]},
        after_scores=dict(list(by_id.items())[:3]),
        out=heads[:1],
    )


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
    assert never.heads is None
    assert first.heads is not None
    assert (first.heads.heads, first.heads.out) == ((Head(10, 1), Head(3, 0)), [Head(10, 1)])
    told = run.tokens[first.id].values
    assert told is not None
    assert np.allclose(first.heads.values, told[:, 2:8])
    assert first.after is not None
    assert first.after.levels == quantised(1 / (1 + np.exp(-run.scores["p1"].logits[3:4, 2:8])))
    assert [trace.after is not None for trace in reader.traces[:7]] == [True] * 5 + [False] * 2
    expected = 1 / (1 + np.exp(-run.scores["p1"].logits[:, 2:8]))
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
