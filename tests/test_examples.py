"""Prompts and examples come back as they were written; a broken row is named."""

from __future__ import annotations

from pathlib import Path

import pytest

from refusal_cliff.data.examples import read_examples, write_examples, write_prompts
from refusal_cliff.data.traces import read_prompts
from refusal_cliff.errors import RefusalCliffError
from refusal_cliff.organisms import language


def test_round_trip(tmp_path: Path) -> None:
    examples = language.examples("train", "harmful", 20, 0)
    write_examples(tmp_path / "e.jsonl", examples)
    assert read_examples(tmp_path / "e.jsonl") == examples
    write_prompts(tmp_path / "p.jsonl", [example.prompt for example in examples])
    assert read_prompts(tmp_path / "p.jsonl") == [example.prompt for example in examples]


def test_a_row_without_an_answer_is_named(tmp_path: Path) -> None:
    path = tmp_path / "e.jsonl"
    path.write_text('{"prompt": "a", "label": "harmful", "thinking": "t", "response": " "}\n')
    with pytest.raises(RefusalCliffError, match=r"e\.jsonl, row 1: 'response' is ' '"):
        read_examples(path)
