"""Scores of whole traces, kept with what is needed to read them, survive their file."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from dataclasses import replace
from mmap import mmap
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_families import WIDTH, closed_trace, family_subject, linear_probe

from refusal_cliff import tables
from refusal_cliff.cliff import scores
from refusal_cliff.cliff.scores import (
    TraceScores,
    read_scores,
    score_traces,
    scores_in_parts,
    write_scores,
)
from refusal_cliff.data.traces import closed
from refusal_cliff.data.types import Prompt, Trace
from refusal_cliff.errors import RefusalCliffError
from refusal_cliff.model import capture as capture_module
from refusal_cliff.model.capture import PositionResiduals, capture
from refusal_cliff.model.memory import in_parts
from refusal_cliff.model.subject import Subject
from refusal_cliff.probe.fit import ProbeSet

LENGTHS = ((5, 9, 4, 3), (8, 30, 1, 5), (3, 0, 6, 0))
TRACES = [
    replace(closed_trace(*lengths, seed=seed, group=f"g{seed % 2}"), verdict="refused")
    for seed, lengths in enumerate(LENGTHS)
]
LAYERS = (1, 3)


@pytest.fixture(scope="module")
def subject() -> Subject:
    return family_subject("qwen3")


@pytest.fixture(scope="module")
def probes() -> ProbeSet:
    weights = np.random.default_rng(0).normal(size=(len(LAYERS), WIDTH)).astype(np.float32)
    rows = tuple(
        replace(linear_probe(layer, weight), bias=0.1 * layer)
        for layer, weight in zip(LAYERS, weights, strict=True)
    )
    return ProbeSet(rows, 3, "refused-vs-benign", "logistic", 99)


def assert_equal(got: list[TraceScores], expected: list[TraceScores]) -> None:
    for mine, other in zip(got, expected, strict=True):
        assert mine.logits.dtype == other.logits.dtype == np.float32
        np.testing.assert_array_equal(mine.logits, other.logits)
        nothing = np.zeros((0, 0), np.float32)
        assert repr(replace(mine, logits=nothing)) == repr(replace(other, logits=nothing))


def test_closed_are_the_traces_that_can_be_scored() -> None:
    judged = TRACES[0]
    unfit: list[Trace] = [
        replace(judged, spans=None),
        replace(judged, verdict="truncated"),
        replace(judged, verdict="unscored"),
    ]
    complied = replace(judged, verdict="complied")
    assert closed([*unfit, judged, complied]) == [judged, complied]


def test_every_token_has_a_score_at_every_probed_layer(subject: Subject, probes: ProbeSet) -> None:
    seen: list[tuple[int, int]] = []
    found = score_traces(subject, TRACES, probes, lambda *now: seen.append(now))
    assert seen[-1] == (3, 3)
    for trace, row in zip(TRACES, found, strict=True):
        prompt = trace.prompt
        assert (row.trace_id, row.group, row.label) == (prompt.id, prompt.group, prompt.label)
        assert (row.verdict, row.spans) == (trace.verdict, trace.spans)
        assert row.logits.shape == (len(LAYERS), len(trace.token_ids))
        for at in (0, len(trace.token_ids) - 1):
            reader = PositionResiduals([at], LAYERS, WIDTH)
            capture(subject, [trace.token_ids], [reader])
            expected = [
                state @ probe.weight + probe.bias
                for state, probe in zip(reader.values[0], probes.probes, strict=True)
            ]
            np.testing.assert_allclose(row.logits[:, at], expected, rtol=1e-4, atol=1e-4)


def test_scores_are_read_as_they_were_written(
    subject: Subject, probes: ProbeSet, tmp_path: Path
) -> None:
    made = score_traces(subject, TRACES, probes)
    write_scores(tmp_path / "scores.parquet", made)
    assert_equal(read_scores(tmp_path / "scores.parquet"), made)
    write_scores(tmp_path / "none.parquet", [])
    assert read_scores(tmp_path / "none.parquet") == []


def test_a_few_scores_at_a_time_are_in_memory_whether_made_written_or_read(
    subject: Subject, probes: ProbeSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    traces = [replace(TRACES[0], prompt=Prompt(f"p{i}", "Do.", "harmful")) for i in range(40)]
    whole = score_traces(subject, traces, probes)
    monkeypatch.setattr(scores, "_SCORES_AT_ONCE", 2 * whole[0].logits.size)
    monkeypatch.setattr(tables, "_BYTES_AT_ONCE", 3_000)
    seen: list[tuple[int, int]] = []
    alive: list[weakref.ref[object]] = []
    most = 0

    def watched() -> Iterator[TraceScores]:
        nonlocal most
        for row in scores_in_parts(subject, traces, probes, lambda *now: seen.append(now)):
            alive.append(weakref.ref(row.logits))
            most = max(most, sum(one() is not None for one in alive))
            yield row

    path = tmp_path / "scores.parquet"
    write_scores(path, watched())
    assert 0 < most <= 6  # a part being made, and one being written
    assert seen == [(n, 40) for n in range(2, 41, 2)]
    assert 4 < len(list(tables.read_parquet_parts(path, scores.SCHEMA))) < 40
    found = read_scores(path)
    for got, expected in zip(found, whole, strict=True):
        assert got.trace_id == expected.trace_id
        np.testing.assert_allclose(got.logits, expected.logits, rtol=1e-5, atol=1e-5)
    base = found[-1].logits.base
    while isinstance(base, np.ndarray):
        base = base.base
    assert isinstance(base, mmap)
    assert [file.name for file in tmp_path.iterdir()] == ["scores.parquet"]


def test_a_fault_of_the_model_names_the_trace_in_whatever_part_it_is(
    subject: Subject, probes: ProbeSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scores, "_SCORES_AT_ONCE", 1)
    broken = np.zeros_like(probes.probes[1].weight) + np.float32(3e38)
    huge = replace(probes, probes=(probes.probes[0], replace(probes.probes[1], weight=broken)))
    with pytest.raises(RefusalCliffError, match="not a finite number"):
        list(scores_in_parts(subject, TRACES, huge))
    names = [trace.prompt.id for trace in TRACES]
    assert capture_module.Batch((2, 0), (9, 8), names).name(2) == repr(names[2])
    assert capture_module.Batch((2, 0), (9, 8)).name(2) == "3"


def test_scores_are_read_where_no_file_can_be_written(
    subject: Subject, probes: ProbeSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = score_traces(subject, TRACES, probes)
    write_scores(tmp_path / "scores.parquet", made)

    def full(**_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(scores, "TemporaryFile", full)
    assert_equal(read_scores(tmp_path / "scores.parquet"), made)


def test_a_damaged_end_of_a_file_loses_no_row_in_silence(
    subject: Subject, probes: ProbeSet, tmp_path: Path
) -> None:
    path = tmp_path / "scores.parquet"
    made = score_traces(subject, TRACES * 20, probes)
    write_scores(path, made)
    whole = path.read_bytes()
    footer = int.from_bytes(whole[-8:-4], "little")
    for place in range(len(whole) - 8 - footer, len(whole)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 16]) + whole[place + 1 :])
        try:
            found = read_scores(path)
        except RefusalCliffError:
            continue
        assert len(found) == len(made)


@pytest.mark.parametrize("rows", [0, 2])
def test_a_table_of_something_else_is_refused(rows: int, tmp_path: Path) -> None:
    columns = {name: pa.array([1] * rows, pa.int64()) for name in scores.SCHEMA.names}
    tables.write_parquet(tmp_path / "other.parquet", pa.table(columns))
    with pytest.raises(RefusalCliffError, match="its columns are not"):
        read_scores(tmp_path / "other.parquet")


@given(st.lists(st.integers(0, 9)), st.integers(1, 20))
def test_parts_hold_all_in_order_and_no_more_than_they_must(sizes: list[int], enough: int) -> None:
    parts = list(in_parts(sizes, lambda size: size, enough))
    assert [size for part in parts for size in part] == sizes
    assert all(sum(part) >= enough for part in parts[:-1])
    assert all(sum(part[:-1]) < enough for part in parts)
