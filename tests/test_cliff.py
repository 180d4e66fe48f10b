"""Curves drawn by hand have the plateau, the cliff and the verdict that one reads off them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_cliffs import made_cliffs
from scipy.special import expit, logit

from refusal_cliff.cliff.curves import (
    LAST_THINKING,
    POOLS,
    cliff_of,
    cliffs_of,
    level,
    localisation,
    mean_curve,
    read_cliffs,
    write_cliffs,
)
from refusal_cliff.cliff.scores import TraceScores
from refusal_cliff.cliff.verdict import model_cliff
from refusal_cliff.data.types import Verdict
from refusal_cliff.errors import RefusalCliffError
from refusal_cliff.thinking import Spans

PROMPT, RESPONSE = [0.05] * 2, [0.05] * 3
CLOSING = [0.85, 0.5, 0.1]


def curve(
    thinking: Sequence[float],
    closing: Sequence[float] = CLOSING,
    *,
    name: str = "t",
    group: str = "",
    label: str = "harmful",
    verdict: Verdict = "complied",
) -> TraceScores:
    """A trace with these scores; a second layer has the mirrored ones."""
    scores = np.array([*PROMPT, *thinking, *closing, *RESPONSE])
    ends = np.cumsum([len(PROMPT), len(thinking), len(closing), len(RESPONSE)])
    logits = logit(scores).astype(np.float32)
    spans = Spans(*(int(end) for end in ends))
    return TraceScores(name, group or name, label, verdict, spans, np.stack([logits, -logits]))


def test_a_cliff() -> None:
    found = cliff_of(curve([0.1] * 10 + [0.9] * 10), 0)
    assert found.plateau == pytest.approx(0.9, abs=1e-6)
    assert found.final == pytest.approx(0.1, abs=1e-6)
    assert found.cliff == pytest.approx(0.8, abs=1e-6)
    assert found.plateau_logit == pytest.approx(logit(0.9), abs=1e-5)
    assert found.final_logit == pytest.approx(logit(0.1), abs=1e-5)
    assert found.drop_inside == pytest.approx(0.8, abs=1e-6)
    # The first closing token has 0.85, which is above 0.9 - 0.1 * 0.8; the last closing token is 0.
    assert found.drop_position == -2
    assert found.late
    assert (found.trace_id, found.group, found.label, found.verdict) == (
        "t",
        "t",
        "harmful",
        "complied",
    )


def test_the_layer_asked_for_is_measured() -> None:
    found = cliff_of(curve([0.1] * 10 + [0.9] * 10), 1)
    assert (found.plateau, found.final) == pytest.approx((0.1, 0.9), abs=1e-6)
    assert found.cliff == pytest.approx(-0.8, abs=1e-6)
    assert found.drop_inside == 0.0


def test_a_drop_in_the_last_thinking_tokens_is_a_cliff() -> None:
    found = cliff_of(curve([0.9] * 25 + [0.1] * LAST_THINKING, [0.1] * 3), 0)
    assert found.drop_position == -(LAST_THINKING + 3)
    assert found.drop_inside == pytest.approx(0.8, abs=1e-6)
    assert found.late


def test_a_score_argued_away_in_the_thinking_is_no_cliff() -> None:
    found = cliff_of(curve([0.9] * 24 + [0.1] * (LAST_THINKING + 1), [0.1] * 3), 0)
    assert found.cliff == pytest.approx(0.8, abs=1e-6)
    assert found.drop_position == -(LAST_THINKING + 4)
    assert found.drop_inside == pytest.approx(0.0, abs=1e-6)
    assert not found.late


def test_a_drop_that_falls_in_two_places_is_divided() -> None:
    found = cliff_of(curve([0.9] * 24 + [0.6] * 6, [0.6, 0.1]), 0)
    assert found.cliff == pytest.approx(0.8, abs=1e-6)
    assert found.drop_inside == pytest.approx(0.5, abs=1e-6)
    assert found.drop_position == -8
    assert found.late  # 0.6 is above half of the way from 0.9 to 0.1 in logits: it fell at the end


def test_a_rise_has_a_negative_cliff_and_no_drop() -> None:
    found = cliff_of(curve([0.2] * 20, [0.5, 0.95]), 0)
    assert found.cliff == pytest.approx(-0.75, abs=1e-6)
    assert (found.drop_inside, found.drop_position) == (0.0, 0)


def test_one_token_of_thinking_is_enough() -> None:
    found = cliff_of(curve([0.9]), 0)
    assert found.late
    assert found.drop_inside == pytest.approx(found.cliff) == pytest.approx(0.8, abs=1e-6)


def test_pools() -> None:
    trace = curve([0.5] + [0.1] * 4 + [0.2, 0.9, 0.3, 0.4, 0.8])
    plateau = {pool: cliff_of(trace, 0, pool).plateau for pool in POOLS}
    assert plateau == pytest.approx(
        {"late-median": 0.4, "max": 0.9, "q90": 0.81, "mean": 0.35}, abs=1e-6
    )


def test_traces_without_a_thought_are_left_out() -> None:
    traces = [curve([], name="empty"), curve([0.9], name="kept")]
    assert [row.trace_id for row in cliffs_of(traces, 0)] == ["kept"]


scores = st.floats(0.001, 0.999)


@given(
    st.lists(scores, min_size=1, max_size=30),
    st.lists(scores, min_size=1, max_size=5),
    st.sampled_from(sorted(POOLS)),
)
def test_measures_stay_within_what_they_say(
    thinking: list[float], closing: list[float], pool: str
) -> None:
    trace = curve(thinking, closing)
    found = cliff_of(trace, 0, pool)
    assert 0 <= found.drop_inside <= max(found.cliff, 0.0)
    assert min(thinking) - 1e-6 <= found.plateau <= max(thinking) + 1e-6
    assert found.cliff == found.plateau - found.final
    assert found.final == pytest.approx(closing[-1], abs=1e-6)
    assert -(len(thinking) + len(closing)) < found.drop_position <= 0
    # The last token to stand near the plateau: all later tokens are below.
    here = trace.spans.last_closing + found.drop_position
    held = found.plateau - 0.1 * max(found.cliff, 0.0)
    values = expit(trace.logits[0].astype(np.float64))
    assert values[here] >= held - 1e-9
    assert all(value < held + 1e-9 for value in values[here + 1 : trace.spans.closing])


@given(st.lists(scores, min_size=1, max_size=30))
def test_the_late_median_is_the_middle_of_the_second_half(thinking: list[float]) -> None:
    late = sorted(thinking[len(thinking) // 2 :])
    middle = len(late) // 2
    slow = late[middle] if len(late) % 2 else (late[middle - 1] + late[middle]) / 2
    assert cliff_of(curve(thinking), 0).plateau == pytest.approx(slow, abs=1e-6)


def test_localisation_is_the_share_of_the_summed_drop() -> None:
    inside = cliff_of(curve([0.9] * 20, [0.1]), 0)
    partly = cliff_of(curve([0.7] * 24 + [0.3] * 6, [0.1]), 0)
    assert localisation([partly]) == pytest.approx(0.2 / 0.6, abs=1e-6)
    assert localisation([inside, partly]) == pytest.approx(1.0 / 1.4, abs=1e-6)
    flat = cliff_of(curve([0.9] * 20, [0.9]), 0)
    assert localisation([inside, flat]) == localisation([inside])
    assert localisation([flat]) is None
    assert level([]) is None


def test_the_mean_curve_is_aligned_at_the_last_closing_token() -> None:
    traces = [
        curve([0.2, 0.9], [0.8, 0.1], name="a"),
        curve([0.3, 0.4, 0.7], [0.6, 0.3], name="b"),
        curve([0.5] * 6, [0.4, 0.2], name="c"),
    ]
    found = mean_curve(traces, 0, -6, min_n=2)
    assert found.offsets == (-6, -5, -4, -3, -2, -1, 0)
    assert found.n == (1, 1, 2, 3, 3, 3, 3)
    expected = [None, None, 0.4, 1.1 / 3, 2.1 / 3, 1.8 / 3, 0.6 / 3]
    assert found.mean[:2] == found.low[:2] == found.high[:2] == (None, None)
    assert found.mean[2:] == pytest.approx(expected[2:], abs=1e-6)
    assert mean_curve(traces, 1, 0).mean == pytest.approx((0.8,), abs=1e-6)


@given(
    st.lists(st.lists(scores, min_size=2, max_size=12), min_size=1, max_size=8),
    st.integers(-14, -1),
    st.integers(0, 4),
)
def test_the_mean_curve_equals_the_obvious_loop(
    curves: list[list[float]], first: int, min_n: int
) -> None:
    traces = [
        curve(values[:-1], values[-1:], name=f"t{i}", group=f"g{i // 2}")
        for i, values in enumerate(curves)
    ]
    found = mean_curve(traces, 0, first, min_n=min_n)
    assert len(found.offsets) == 1 - first
    for place, offset in enumerate(found.offsets):
        there = [values[offset - 1] for values in curves if len(values) >= 1 - offset]
        assert found.n[place] == len(there)
        if len(there) < max(1, min_n):
            assert found.mean[place] is None
            continue
        mean, low, high = found.mean[place], found.low[place], found.high[place]
        assert mean is not None
        assert low is not None
        assert high is not None
        assert mean == pytest.approx(np.mean(there), abs=1e-6)
        assert low - 1e-9 <= high
        assert min(there) - 1e-6 <= low
        assert high <= max(there) + 1e-6


def test_cliffs_come_back(tmp_path: Path) -> None:
    rows = [
        *made_cliffs(3, 0.85, 0.1),
        *made_cliffs(2, 1 / 3, 0.9, label="benign", verdict="refused"),
    ]
    path = tmp_path / "new" / "cliff.parquet"
    write_cliffs(path, rows)
    assert read_cliffs(path) == rows
    assert [file.name for file in path.parent.iterdir()] == ["cliff.parquet"]


def test_no_cliffs_come_back(tmp_path: Path) -> None:
    write_cliffs(tmp_path / "cliff.parquet", [])
    assert read_cliffs(tmp_path / "cliff.parquet") == []


def test_a_model_without_thinking_is_measured_over_the_template() -> None:
    spans = Spans(5, 5, 9, 12)
    logits = np.full((1, 12), -4.0, dtype=np.float32)
    logits[0, 5:8] = (3.0, 3.0, 2.0)
    trace = TraceScores("t", "t", "harmful", "complied", spans, logits)
    (row,) = cliffs_of([trace], 0)
    assert row.over == "template"
    assert row.plateau == pytest.approx(float((expit(3.0) + expit(2.0)) / 2))
    assert row.final == pytest.approx(float(expit(-4.0)))
    assert "No trace has any thinking" in model_cliff([row]).reason
    bare = replace(trace, spans=Spans(8, 8, 9, 12))
    assert cliffs_of([bare], 0) == []
    thoughtful = replace(trace, spans=Spans(2, 5, 9, 12))
    assert [found.over for found in cliffs_of([trace, thoughtful], 0)] == ["thinking"]


def test_another_file_is_not_a_table_of_cliffs(tmp_path: Path) -> None:
    pq.write_table(pa.table({"trace_id": ["a"], "score": [0.5]}), tmp_path / "cliff.parquet")
    with pytest.raises(
        RefusalCliffError, match=r"cliff\.parquet is not a table of cliffs .*row 1, group"
    ):
        read_cliffs(tmp_path / "cliff.parquet")
