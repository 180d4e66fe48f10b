"""Control sets are what they say; loops are found; half of an effect is counted by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_families import closed_trace
from tiny_heads import head_row

from refusal_cliff.answers.writing import LEAST, loops, thinking_length, writing_of
from refusal_cliff.data.types import Prompt
from refusal_cliff.findings.results import half_effect
from refusal_cliff.findings.summary import DoseSummary
from refusal_cliff.heads.table import METHODS, HeadRow, agreements
from refusal_cliff.heads.trials import (
    CONTROLS,
    WITH_FOUND,
    WITH_NONE,
    Trial,
    control_trials,
    dose_trials,
    sizes,
)
from refusal_cliff.model.subject import Head

ROWS: list[HeadRow] = [
    replace(head_row(0, causal=float(5 - 3 * layer + index)), layer=layer, index=index)
    for layer in (1, 2, 3)
    for index in range(8)
]
FOUND, SPARED = [Head(1, 7), Head(2, 0)], [Head(2, 1)]
ASKED = [Prompt("a", "?", "harmful")]


def test_control_sets_hold_as_many_other_heads() -> None:
    draws = {"random": 7, "same-layer": 6, "promoting": 5}
    none, same, *trials = control_trials(ROWS, FOUND, SPARED, draws, ASKED, seed=0)
    assert none == Trial(WITH_NONE, (), tuple(ASKED))
    assert same == Trial(WITH_FOUND, tuple(FOUND), tuple(ASKED))
    assert {kind: sum(t.kind == kind for t in trials) for kind in CONTROLS} == draws
    assert trials == control_trials(ROWS, FOUND, SPARED, draws, ASKED, seed=0)[2:]
    for trial in trials:
        assert len(set(trial.heads)) == len(FOUND)
        assert not set(trial.heads) & {*FOUND, *SPARED}
        assert trial.prompts == tuple(ASKED)
        if trial.kind == "same-layer":
            assert [head.layer for head in trial.heads] == [1, 2]
        if trial.kind == "promoting":
            assert all(head.layer == 3 and head.index < 4 for head in trial.heads)
    assert control_trials(ROWS, [], SPARED, draws, ASKED, seed=0) == []


def test_doses_are_tops_and_joint_sets_of_the_same_sizes() -> None:
    joint = [[Head(3, 0)], [Head(3, 0), Head(3, 1)]]
    trials = dose_trials(ROWS, ("causal",), joint, (0, 0.05, 0.1, 0.25), ASKED)
    assert [(t.kind, len(t.heads)) for t in trials] == [
        ("top-causal", 0),
        ("top-causal", 1),
        ("top-causal", 2),
        ("top-causal", 6),
        ("joint", 1),
        ("joint", 2),
    ]
    assert trials[2].heads == (Head(1, 7), Head(1, 6))
    assert sizes(1000, (0.1, 0, 0.005)) == [0, 5, 100]
    assert sizes(10, (0.005, 0.01)) == [1]


def test_rankings_agree_with_themselves_and_are_compared_in_pairs() -> None:
    rows = [replace(row, attribution=row.causal) for row in ROWS]
    found = {(one.first, one.second): one for one in agreements(rows)}
    assert len(found) == len(METHODS) * (len(METHODS) - 1) // 2
    same = found["causal", "attribution"]
    assert same.spearman == pytest.approx(1)
    assert set(same.overlap.values()) == {1.0}
    opposite = [
        replace(row, attribution=replace(row.causal, mean=-row.causal.mean)) for row in ROWS
    ]
    found = {(one.first, one.second): one for one in agreements(opposite)}
    assert found["causal", "attribution"].spearman == pytest.approx(-1)
    assert found["causal", "attribution"].overlap[0.10] == 0


@given(
    st.lists(st.integers(0, 9), max_size=40), st.lists(st.integers(0, 9), min_size=1, max_size=9)
)
def test_a_stretch_written_again_and_again_is_a_loop(start: list[int], stretch: list[int]) -> None:
    assert loops([*start, *(stretch * LEAST)])


def test_what_ends_is_no_loop() -> None:
    assert not loops(range(200))
    assert not loops([7] * (LEAST - 1))
    assert not loops([*[1, 2, 3] * 20, 99])
    assert not loops([])


def test_writing_counts_thinking_loops_and_truncations() -> None:
    traces = [closed_trace(3, n, 2, 4, seed=n) for n in (10, 20)]
    endless = replace(traces[0], token_ids=(1,) * 60, spans=None, complete=False)
    found = writing_of([*traces, endless])
    assert [thinking_length(t) for t in (*traces, endless)] == [10, 20, 60]
    assert found.thinking_tokens == 30
    assert (found.looping.count, found.truncated.count, found.looping.n) == (1, 1, 3)


def test_half_of_the_effect_by_hand() -> None:
    def dose(heads: int, asr: float) -> DoseSummary:
        return DoseSummary(
            heads=heads, asr=asr, asr_ci=(0, 1), benign_answered=None, perplexity_ratio=None
        )

    falling = [dose(0, 0.8), dose(1, 0.5), dose(2, 0.4), dose(3, 0.1)]
    assert half_effect(falling) == 2
    assert half_effect(falling[:2]) is None
    assert half_effect([dose(0, 0.0), dose(1, 0.0)]) is None
