"""The door for all data, fuzzed: whatever a row or a file holds, it is used or listed, never more.

``REFUSAL_CLIFF_FUZZ_SECONDS=60 pytest tests/test_door.py`` goes on for a minute a test, with other
rows in each round; without it, each test draws the same hundred examples every time.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st
from tiny_chat import tiny_model, tiny_tokenizer

from refusal_cliff.answers.collect import answer_of_record
from refusal_cliff.cliff.source import read_trace
from refusal_cliff.data.reading import Reading, source_rows, usable
from refusal_cliff.data.records import row_of_record
from refusal_cliff.data.said import THINKING_FIELDS
from refusal_cliff.data.shapes import (
    CHAT_COLUMNS,
    PROMPT_COLUMNS,
    RESPONSE_COLUMNS,
    example_of_row,
    prompt_of_row,
    record_of_row,
)
from refusal_cliff.data.types import LeftOut, Record, Row
from refusal_cliff.errors import RefusalCliffError
from refusal_cliff.io import write_json_lines
from refusal_cliff.judges import RulesJudge
from refusal_cliff.model.subject import Subject, subject_of

SECONDS = float(os.environ.get("REFUSAL_CLIFF_FUZZ_SECONDS", "0"))
FILE = Path("rows.jsonl")
READING = Reading(label="harmful")
OURS = ("token_ids", "spans", "closed", "complete", "thinking_cut", "written", "finish", "tokens")
OTHERS = ("prompt_tokens", "verdict", "judge", "score", "reason", "custom_id", "error", "system")
FIELDS = (*PROMPT_COLUMNS, *RESPONSE_COLUMNS, *CHAT_COLUMNS, *THINKING_FIELDS, *OURS, *OTHERS)
NAMES = ("id", "label", "group", "category", "tags", "input", "body", "request", "choices")
KEYS = ("role", "content", "from", "value", "type", "text", "thinking", "refusal", "tool_calls")
MORE = ("prompt", "closing", "total", "body", "choices", "message", "messages", "finish_reason")
WORDS = ("user", "assistant", "system", "human", "gpt", "text", "stop", "length", "refused", "")
TEXTS = st.one_of(
    st.sampled_from((*WORDS, "harmful", "unsafe", "1", "true", "1e400", "nan", "\0", "\ud800")),
    st.sampled_from(
        ("<think>\nHm.\n</think>\n\nNo.", "<think>on", "</think>", "think\na\nanswer\nb")
    ),
    st.text(max_size=8),
)
NUMBERS = st.one_of(
    st.integers(-3, 400),
    st.sampled_from((2**31, 2**63, 10**400, -1, 0.5, 1.0, float("nan"), float("inf"), 1e308)),
)
VALUES: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | NUMBERS | TEXTS,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from((*KEYS, *MORE)), inner, max_size=4)
    ),
    max_leaves=8,
)
SPANS = st.fixed_dictionaries(
    {},
    optional={n: NUMBERS | TEXTS | st.none() for n in ("prompt", "thinking", "closing", "total")},
)
ROWS = st.fixed_dictionaries(
    {},
    optional={
        **dict.fromkeys((*FIELDS, *NAMES), VALUES | TEXTS),
        "token_ids": st.lists(NUMBERS, max_size=6) | VALUES,
        "spans": SPANS | VALUES,
    },
)
WHOLE = {"prompt": "Copy it", "thinking": "Hm.", "response": "No.", "label": "benign"}
ALMOST = st.builds(lambda some: {**WHOLE, **some}, ROWS)
"""Rows that would be used but for some of their fields: most of `ROWS` fail at the first."""


CHECKS = (HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large)
QUIET = settings(max_examples=100, deadline=None, database=None, suppress_health_check=CHECKS)


def fuzz(strategy: st.SearchStrategy[Any], check: Callable[[Any], None]) -> None:
    """Check a property for a hundred examples, or for as long as the environment says."""
    end = time.monotonic() + SECONDS
    for turn in range(1_000_000):
        seed(turn)(QUIET(given(strategy)(lambda value: check(value))))()
        if time.monotonic() >= end:
            return


@pytest.fixture(scope="module")
def subject() -> Subject:
    return subject_of("small", tiny_model(), tiny_tokenizer())


def readers(subject: Subject) -> dict[str, Callable[[int, Row], Any]]:
    return {
        "prompt": partial(prompt_of_row, FILE, reading=READING),
        "record": partial(record_of_row, FILE, reading=READING),
        "example": partial(example_of_row, FILE, reading=READING.of_model(subject.format)),
        "trace": partial(read_trace, FILE, subject=subject, reading=READING),
    }


@pytest.mark.parametrize("name", ["prompt", "record", "example", "trace"])
@pytest.mark.parametrize("rows", [ROWS, ALMOST], ids=["any", "almost"])
def test_every_row_is_used_or_listed(
    subject: Subject, name: str, rows: st.SearchStrategy[Any], tmp_path: Path
) -> None:
    make = readers(subject)[name]

    def check(row: Row) -> None:
        _, found = next(usable(FILE, [(1, row)], make))
        if isinstance(found, LeftOut):
            assert 0 < len(found.reason) < 40
            assert 0 < len(found.detail) < 400
            write_json_lines(tmp_path / "left-out.jsonl", [{"id": found.id, "why": found.why}])
        elif isinstance(found, Record):
            RulesJudge().judge([answer_of_record(found)])
            write_json_lines(tmp_path / "traces.jsonl", [row_of_record(found)])
            assert again(tmp_path / "traces.jsonl") == found

    fuzz(rows, check)


def again(path: Path) -> Record:
    """What was written, read once more."""
    [(_, found)] = usable(path, source_rows(path), partial(record_of_row, path, reading=READING))
    assert isinstance(found, Record), found
    return found


def damaged(whole: bytes, at: int, what: bytes, cut: int) -> bytes:
    """Bytes with some of them replaced, and the end cut off."""
    place = at % (len(whole) + 1)
    damage = whole[:place] + what + whole[place + len(what) :]
    return damage[: len(damage) - cut] if cut < len(damage) else damage


def files(folder: Path) -> Iterator[Path]:
    """A small file of every ending."""
    rows = [{**WHOLE, "id": f"r{n}", "score": n / 2, "tags": ["a"]} for n in range(6)]
    write_json_lines(folder / "rows.jsonl", rows)
    pq.write_table(pa.Table.from_pylist(rows), folder / "rows.parquet")
    lines = ["prompt,response,label", *['"a, b",no,benign', '"a ""b""\nc",no,harmful'] * 3]
    (folder / "rows.csv").write_text("\r\n".join(lines))
    yield from (folder / f"rows.{ending}" for ending in ("jsonl", "csv", "parquet"))


BYTES = st.binary(max_size=12) | st.sampled_from((b'"', b"\n", b"\r", b"\xff", b"\0", b"[" * 5000))
DAMAGE = st.tuples(st.integers(0, 4000), BYTES, st.just(0) | st.integers(0, 4000))


@pytest.mark.parametrize("ending", ["jsonl", "csv", "parquet"])
def test_any_bytes_are_rows_reasons_or_one_error(tmp_path: Path, ending: str) -> None:
    path = next(path for path in files(tmp_path) if path.suffix == f".{ending}")
    whole = path.read_bytes()

    def check(damage: tuple[int, bytes, int]) -> None:
        path.write_bytes(damaged(whole, *damage))
        try:
            found = list(usable(path, source_rows(path), partial(record_of_row, path)))
        except RefusalCliffError as error:
            assert str(path) in str(error)
        else:
            assert all(isinstance(made, Record | LeftOut) for _, made in found)

    fuzz(DAMAGE, check)


def test_rows_of_json_are_all_there(tmp_path: Path) -> None:
    """As many rows in and out as lines, whatever stands in them."""
    path = tmp_path / "rows.jsonl"

    def check(rows: list[Any]) -> None:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        found = dict(usable(path, source_rows(path), partial(record_of_row, path)))
        assert list(found) == [*range(1, len(rows) + 1)]

    fuzz(st.lists(ALMOST | VALUES, max_size=5), check)
