"""Relative scores: what drifts for every trace alike is taken out, and nothing else."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from refusal_cliff.cliff.curves import cliffs_of
from refusal_cliff.cliff.scores import TraceScores
from refusal_cliff.cliff.verdict import model_cliff
from refusal_cliff.controls.second_reading import NEAR, TENTHS, places, relative
from refusal_cliff.data.types import Label, Verdict
from refusal_cliff.thinking import Spans

GROUPS: tuple[tuple[Label, Verdict, float, float], ...] = (
    ("harmful", "complied", 2.0, -2.0),
    ("harmful", "refused", 2.0, 2.0),
    ("benign", "complied", -2.0, -2.0),
)


def traces(seed: int, cliff: bool = True) -> list[TraceScores]:
    """30 of each group over 12 to 60 thinking tokens; those complied with fall at the end."""
    rng = np.random.default_rng(seed)
    made = []
    for label, verdict, high, low in GROUPS:
        for number in range(30):
            thinking = 4 + int(rng.integers(12, 60))
            spans = Spans(4, thinking, thinking + 3, thinking + 9)
            logits = np.full(spans.total, high if cliff or low == high else low)
            logits[spans.last_closing :] = low
            noisy = (logits + 0.2 * rng.normal(size=spans.total)).astype(np.float32)
            name = f"{label}-{verdict}-{number}"
            made.append(TraceScores(name, name, label, verdict, spans, noisy[None]))
    return made


def drifted(made: list[TraceScores], drift: np.ndarray, scale: np.ndarray) -> list[TraceScores]:
    """Every place moved and stretched as a probe does that was not fitted there."""
    found = []
    for trace in made:
        logits = trace.logits.astype(np.float64)
        here = slice(trace.spans.prompt, trace.spans.last_closing + 1)
        at = places(trace.spans)
        logits[0, here] = scale[at] * logits[0, here] + drift[at]
        found.append(replace(trace, logits=logits))
    return found


def values(made: list[TraceScores] | None) -> np.ndarray:
    assert made is not None
    return np.concatenate([trace.logits[0] for trace in made])


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 999))
def test_what_drifts_for_all_is_taken_out(seed: int) -> None:
    rng = np.random.default_rng(seed)
    made = traces(seed)
    drift, scale = 5 * rng.normal(size=NEAR + TENTHS), rng.uniform(0.8, 1.25, NEAR + TENTHS)
    plain, moved = (relative(rows, 0) for rows in (made, drifted(made, drift, scale)))
    np.testing.assert_allclose(values(plain), values(moved), atol=2e-4)


def test_zero_is_benign_one_is_refused_and_a_cliff_stays_one() -> None:
    found = relative(traces(0), 0)
    assert found is not None
    groups = {name: [t for t in found if (t.label, t.verdict) == name[:2]] for name in GROUPS}
    for (_, verdict, high, low), rows in groups.items():
        cliffs = cliffs_of(rows, 0)
        assert np.mean([row.plateau_logit for row in cliffs]) == pytest.approx(
            (high + 2) / 4, abs=0.1
        ), verdict
        assert np.mean([row.final_logit for row in cliffs]) == pytest.approx(
            (low + 2) / 4, abs=0.1
        ), verdict
    assert model_cliff(cliffs_of(found, 0)).verdict == "cliff"


def test_a_cliff_that_every_trace_has_is_none() -> None:
    drift = np.where(np.arange(NEAR + TENTHS) < 3, -9.0, 0.0)  # the closing tokens read low
    made = drifted(traces(1, cliff=False), drift, np.ones(NEAR + TENTHS))
    found = relative(made, 0)
    assert found is not None
    assert model_cliff(cliffs_of(found, 0)).verdict == "no cliff"


def test_without_both_groups_there_is_nothing_to_be_relative_to() -> None:
    made = traces(2)
    assert relative([t for t in made if t.label == "harmful"], 0) is None
    assert relative([t for t in made if t.verdict != "refused"], 0) is None
    upside_down = [replace(trace, logits=-trace.logits) for trace in made]
    assert relative(upside_down, 0) is None


@given(st.integers(1, 50), st.integers(0, 80), st.integers(1, 5))
def test_every_token_has_one_place(prompt: int, thinking: int, closing: int) -> None:
    spans = Spans(prompt, prompt + thinking, prompt + thinking + closing, prompt + thinking + 9)
    found = places(spans)
    assert len(found) == thinking + closing
    assert list(found[::-1][:NEAR]) == list(range(min(NEAR, len(found))))
    assert set(found[::-1][NEAR:]) <= set(range(NEAR, NEAR + TENTHS))
