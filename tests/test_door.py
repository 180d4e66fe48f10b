"""The doors for all data, fuzzed for a moment each; `python -m bench.fuzz` goes on for longer.

``REFUSAL_CLIFF_FUZZ_SECONDS`` says for how many seconds each reader is fuzzed. The seeds are fixed.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

import pytest

from bench.fuzz.__main__ import fuzz
from bench.fuzz.inputs import changed, damaged
from bench.fuzz.readers import NAMES, Reader, readers
from refusal_cliff.model.subject import load_subject

SECONDS = float(os.environ.get("REFUSAL_CLIFF_FUZZ_SECONDS", "0.7"))
pytestmark = pytest.mark.fuzz


@pytest.fixture(scope="module")
def every(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Reader]:
    return readers(tmp_path_factory.mktemp("fuzz"), load_subject("tiny", device="cpu"))


def test_every_reader_has_its_name(every: Mapping[str, Reader]) -> None:
    assert tuple(every) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_whatever_is_read_is_used_listed_or_refused(every: Mapping[str, Reader], name: str) -> None:
    assert fuzz(every[name], SECONDS) > 0


def test_damage_is_what_it_is_called() -> None:
    assert damaged(b"abcdef", (1, b"XY", 2)) == b"aXYd"
    whole = {"a": {"b": [1, 2]}, "c": 3}
    assert changed(whole, [([0, 0, 1], "missing")]) == {"a": {"b": [1]}, "c": 3}
    assert changed(whole, [([1], 7), ([0], None)]) == {"a": None, "c": 7}
    assert whole == {"a": {"b": [1, 2]}, "c": 3}
