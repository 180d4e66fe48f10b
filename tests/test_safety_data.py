"""Every published format gives the same example; any other row is left out with its reason."""

from __future__ import annotations

import json
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_chat import tiny_tokenizer

from refusal_cliff.data.reading import Reading, usable
from refusal_cliff.data.rows import Found
from refusal_cliff.data.shapes import example_of_row
from refusal_cliff.data.types import LeftOut, SafetyExample
from refusal_cliff.thinking import ThinkingFormat

FORMAT = ThinkingFormat.from_tokenizer(tiny_tokenizer())
SOURCE = Path("data.jsonl")
INLINE = "<think>\nIt harms.\n</think>\n\nSorry, no."
USER = {"role": "user", "content": "Copy it"}
STAR1 = Path(__file__).parents[2] / "shared" / "data" / "traces" / "star1.jsonl"

SAME: dict[str, dict[str, Any]] = {
    "messages": {"messages": [USER, {"role": "assistant", "content": INLINE}]},
    "messages, thinking apart": {
        "messages": [
            USER,
            {"role": "assistant", "content": "Sorry, no.", "reasoning_content": "It harms."},
        ]
    },
    "sharegpt": {
        "conversations": [{"from": "human", "value": "Copy it"}, {"from": "gpt", "value": INLINE}]
    },
    "prompt and completion": {"prompt": "Copy it", "completion": INLINE},
    "prompt and completion as messages": {
        "prompt": [USER],
        "completion": [{"role": "assistant", "content": INLINE}],
    },
    "alpaca": {"instruction": "Copy it", "input": "", "output": INLINE},
    "question and response": {"question": "Copy it", "response": INLINE, "category": ["a", "b"]},
    "opened by the template": {"question": "Copy it", "response": "It harms.</think>Sorry, no."},
    "own": {"prompt": "Copy it", "thinking": "It harms.", "response": "Sorry, no."},
}


def read(row: dict[str, Any]) -> SafetyExample | LeftOut:
    return read_all(SOURCE, [(3, row)])[0]


def read_all(source: Path, rows: Iterable[Found]) -> list[SafetyExample | LeftOut]:
    reading = Reading(label="harmful").of_model(FORMAT)
    make = partial(example_of_row, source, reading=reading)
    return [found for _, found in usable(source, rows, make)]


@pytest.mark.parametrize("row", SAME.values(), ids=SAME.keys())
def test_all_formats_say_the_same(row: dict[str, Any]) -> None:
    found = read(row)
    assert isinstance(found, SafetyExample)
    assert (found.prompt.text, found.thinking, found.response) == (
        "Copy it",
        "It harms.",
        "Sorry, no.",
    )
    assert (found.prompt.id, found.prompt.label) == ("data-3", "harmful")


def test_alpacas_input_is_part_of_the_request() -> None:
    found = read({"instruction": "Copy this:", "input": "a diary", "output": "No."})
    assert isinstance(found, SafetyExample)
    assert (found.prompt.text, found.thinking) == ("Copy this:\n\na diary", "")


LEFT_OUT: dict[str, tuple[dict[str, Any], str]] = {
    "other columns": ({"text_a": "x", "text_b": "y"}, "other format"),
    "no answer": ({"prompt": "x"}, "other format"),
    "a system turn": (
        {"messages": [{"role": "system", "content": "s"}, USER, USER]},
        "other format",
    ),
    "messages of parts": (
        {"messages": [{"role": "user", "content": [{"text": "x"}]}]},
        "other format",
    ),
    "messages as text": ({"messages": 7}, "other format"),
    "unknown label": ({"prompt": "x", "response": "y", "label": "bad"}, "other format"),
    "empty prompt": ({"prompt": " \n", "response": "y"}, "empty"),
    "empty answer": ({"prompt": "x", "response": ""}, "empty"),
    "thinking and no answer": ({"prompt": "x", "response": "<think>t</think> "}, "empty"),
    "open thinking": ({"prompt": "x", "response": "<think>on and on"}, "thinking never closes"),
}


@pytest.mark.parametrize(("row", "reason"), LEFT_OUT.values(), ids=LEFT_OUT.keys())
def test_other_rows_are_left_out_with_their_reason(row: dict[str, Any], reason: str) -> None:
    found = read(row)
    assert isinstance(found, LeftOut)
    assert found.reason == reason
    assert found.detail


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["role", "content", "from", "value"]), inner, max_size=3)
    ),
    max_leaves=6,
)
COLUMNS = ["prompt", "messages", "response", "instruction", "input", "output", "thinking", "id"]


@given(st.dictionaries(st.sampled_from([*COLUMNS, "category", "tags", "label"]), VALUES))
def test_no_row_stops_a_run(row: dict[str, Any]) -> None:
    found = read(row)
    if isinstance(found, SafetyExample):
        assert found.prompt.text.strip()
        assert found.response.strip()
    else:
        assert found.reason


def test_a_published_data_set_is_read_whole() -> None:
    if not STAR1.is_file():
        pytest.skip("the shared data set STAR-1 is not on this machine")
    rows = [json.loads(line) for line in STAR1.read_text(encoding="utf-8").splitlines()]
    found = read_all(STAR1, enumerate(rows, start=1))
    examples = [e for e in found if isinstance(e, SafetyExample)]
    assert len(examples) == len(rows) == 1000
    for row, e in zip(rows, examples, strict=True):
        assert "<think>" not in e.thinking and "</think>" not in e.response
        assert row["response_raw"].startswith(f"<think>\n{e.thinking[:40]}".rstrip())
        assert row["response_raw"].endswith(e.response)
        assert e.prompt.category
