"""Joint effects are those of whole passes; greedy and beam selection find what tops miss."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import Any, cast

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from tiny_families import FAMILIES, LAYERS, TRACES, family_subject, final_logit, probe

from refusal_cliff.data.types import Trace
from refusal_cliff.heads.joint import (
    Comparison,
    HeadSet,
    JointEffects,
    compare,
    enough_together,
    select_jointly,
)
from refusal_cliff.model.ablation import ablated
from refusal_cliff.model.subject import Head, Subject
from refusal_cliff.probe.fit import Probe

SETS: list[HeadSet] = [
    (),
    (Head(2, 1),),
    (Head(1, 0), Head(3, 3)),
    (Head(2, 0), Head(2, 3), Head(1, 1)),
    (Head(3, 2),),
]


def by_whole_pass(
    subject: Subject, trace: Trace, reading: Probe, heads: HeadSet, scale: float
) -> float:
    assert trace.spans is not None
    where = torch.arange(len(trace.token_ids))[None] >= trace.spans.thinking
    plain = final_logit(subject, trace, reading)
    with ablated(subject, heads, scale=scale, where=where):
        return final_logit(subject, trace, reading) - plain


@pytest.mark.parametrize("scale", [0.0, 2.0])
@pytest.mark.parametrize("family", FAMILIES)
def test_joint_effects_are_those_of_whole_forward_passes(family: str, scale: float) -> None:
    subject, reading = family_subject(family), probe(2)
    got = JointEffects(subject, TRACES, reading).of(SETS, scale)
    expected = np.array(
        [[by_whole_pass(subject, trace, reading, s, scale) for s in SETS] for trace in TRACES]
    )
    assert np.abs(expected).max() > 0.1
    np.testing.assert_allclose(got, expected, atol=2e-5 * np.abs(expected).max())
    assert not got[:, 0].any()
    assert not got[:, 4].any()  # after the probe


def test_small_batches_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    subject = family_subject("llama")
    whole = JointEffects(subject, TRACES, probe()).of(SETS)
    monkeypatch.setattr("refusal_cliff.heads.joint.ROWS_AT_ONCE", 7)
    np.testing.assert_allclose(JointEffects(subject, TRACES, probe()).of(SETS), whole, atol=1e-5)


class Table(JointEffects):
    """Made-up effects: two heads matter only together, one a little on its own."""

    def __init__(self) -> None:
        self.asked = 0

    def of(self, sets: Any, scale: float = 0.0) -> Any:
        self.asked += len(sets)
        return np.array([[self.value(frozenset(heads)) for heads in sets]] * 3, dtype=np.float32)

    def value(self, heads: frozenset[Head]) -> float:
        pair = {Head(1, 0), Head(2, 0)} <= heads
        alone = sum({Head(1, 0): 0.5, Head(3, 0): 1.0, Head(3, 1): 0.8}.get(h, 0.0) for h in heads)
        return alone + 5.0 * pair


CANDIDATES = [Head(layer, index) for layer in range(1, LAYERS + 1) for index in range(2)]


def test_a_beam_finds_the_pair_that_greedy_selection_misses() -> None:
    greedy = select_jointly(Table(), CANDIDATES, 2)
    assert greedy == [(Head(3, 0),), (Head(3, 0), Head(3, 1))]
    done: list[tuple[int, int]] = []
    beam = select_jointly(Table(), CANDIDATES, 3, beam=3, progress=lambda *now: done.append(now))
    assert set(beam[1]) == {Head(1, 0), Head(2, 0)}
    assert set(beam[2]) == {Head(1, 0), Head(2, 0), Head(3, 0)}
    assert done == [(1, 3), (2, 3), (3, 3)]


def test_a_beam_as_wide_as_all_sets_is_brute_force() -> None:
    subject = family_subject("qwen3")
    effects = JointEffects(subject, TRACES, probe())
    heads = subject.heads()
    found = select_jointly(effects, heads, 2, beam=len(heads))
    pairs = list(combinations(heads, 2))
    best = pairs[int(effects.of(pairs).mean(0).argmax())]
    assert set(found[1]) == set(best)


def test_no_set_is_asked_for_twice_and_none_is_larger_than_the_candidates() -> None:
    table = Table()
    found = select_jointly(table, CANDIDATES[:2], 9, beam=2)
    assert [len(heads) for heads in found] == [1, 2]
    assert table.asked == 2 + 1


def test_a_comparison_is_paired_and_has_an_interval() -> None:
    subject = family_subject("llama")
    effects = JointEffects(subject, TRACES, probe())
    joint, top = (Head(1, 0), Head(2, 1)), (Head(3, 3), Head(1, 2))
    found = compare(effects, [trace.prompt.group for trace in TRACES], joint, top)
    values = effects.of([joint, top]).astype(np.float64)
    assert found.difference == pytest.approx((values[:, 0] - values[:, 1]).mean(), rel=1e-5)
    assert found.low < found.difference < found.high
    assert (found.size, found.n) == (2, len(TRACES))
    same = compare(effects, ["a"] * len(TRACES), joint, joint)
    assert (same.difference, same.low, same.high) == pytest.approx((0, 0, 0), abs=1e-4)
    assert Comparison(2, 3.0, 1.0, 2.0, 0.5, 3.0, 9).beats


class MadeEffects:
    """Each head has an effect of its own; the first two have more together."""

    def __init__(self, alone: dict[int, float], bonus: float) -> None:
        self._alone, self._bonus = alone, bonus

    def of(self, sets: Sequence[Sequence[Head]], scale: float = 0.0) -> NDArray[np.float32]:
        assert scale == 0
        means = [
            sum(self._alone.get(head.index, 0.0) for head in heads)
            + self._bonus * ({0, 1} <= {head.index for head in heads})
            for heads in sets
        ]
        noise = np.random.default_rng(0).normal(0, 0.01, (20, 1))
        return (np.array(means)[None] + noise).astype(np.float32)


GROUPS = [str(row) for row in range(20)]
ORDER = tuple(Head(1, index) for index in (0, 1, 2, 3))


def decided(effects: MadeEffects) -> HeadSet | None:
    return enough_together(cast("JointEffects", effects), GROUPS, ORDER)


def test_a_joint_set_is_as_short_as_it_may_be() -> None:
    alone = {0: 0.5, 1: 0.5, 2: 0.01, 3: 0.01}
    assert decided(MadeEffects(alone, bonus=2.0)) == ORDER[:2]  # 3 of 3.02
    assert decided(MadeEffects({0: 0.98, 1: 0.02}, bonus=0.0)) == ORDER[:1]
    assert decided(MadeEffects({**alone, 2: 1.0}, bonus=2.0)) == ORDER[:3]


def test_a_set_that_does_not_raise_the_score_beyond_doubt_is_not_taken() -> None:
    assert decided(MadeEffects(dict.fromkeys(range(4), -1.0), bonus=0.0)) is None
    assert decided(MadeEffects({0: 1e-4}, bonus=0.0)) is None  # less than the noise of 20 traces
