"""A proof of single heads: its error over all heads is as said, and planted heads are found."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.stats import binom
from tiny_families import BENIGN, closed_trace, family_subject, logits_of, planted, probe
from tiny_families import TRACES as MADE

from refusal_cliff.heads import effects as effects_module
from refusal_cliff.heads import proof as proof_module
from refusal_cliff.heads.effects import causal_effects, falls
from refusal_cliff.heads.proof import NOTHING, SMALLEST_SHARE, prove
from refusal_cliff.heads.table import METHODS, measure_heads, select_heads
from refusal_cliff.model.subject import Head

Doubles = NDArray[np.float64]
TRACES, HEADS, TABLES = 40, 128, 200
RNG = np.random.default_rng


def names(n: int) -> list[str]:
    return [f"g{place:03d}" for place in range(n)]


def noise(rng: np.random.Generator, kind: str) -> Doubles:
    """Effects of mean zero: sizes with permuted signs, alike or of all heads together."""
    shape = (TRACES, HEADS)
    if kind == "heavy":
        return rng.choice([-1, 1], shape) * rng.lognormal(0, 1.2, shape)
    if kind == "common":
        size = np.abs(rng.normal(size=(TRACES, 1)) + rng.normal(size=shape) / 2)
        return rng.choice([-1, 1], (TRACES, 1)) * size * rng.lognormal(0, 1, (1, HEADS))
    return rng.choice([-1, 1], shape) * np.abs(rng.normal(size=shape))


@pytest.mark.parametrize("kind", ["permuted", "heavy", "common"])
def test_of_tables_without_a_head_that_matters_few_name_any(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The hardest null: every head undoes just the smallest share on average, and no more."""
    monkeypatch.setattr(proof_module, "RESAMPLES", 400)
    wrong = 0
    for table in range(TABLES):
        rng = RNG(table)
        falls = rng.gamma(8, 1, TRACES)
        effects = SMALLEST_SHARE * falls[:, None] + 0.3 * noise(rng, kind)
        wrong += any(one.proven for one in prove(effects, falls, names(TRACES), table))
    assert wrong <= binom.ppf(0.99, TABLES, 0.05)


def made(rng: np.random.Generator, shares: dict[int, float]) -> tuple[Doubles, Doubles]:
    falls = rng.gamma(8, 1, TRACES)
    effects = 0.1 * noise(rng, "permuted")
    for head, share in shares.items():
        effects[:, head] += share * falls
    return effects, falls


def test_planted_effects_are_found_and_small_ones_are_not() -> None:
    effects, falls = made(RNG(0), {3: 0.5, 70: 0.15, 9: 0.03, 11: -0.4})
    found = prove(effects, falls, names(TRACES))
    assert [head for head, one in enumerate(found) if one.proven] == [3, 70]
    assert found[3].share == pytest.approx(0.5, abs=0.02)
    above_zero = effects[:, 9].mean() / (effects[:, 9].std() / np.sqrt(TRACES))
    assert above_zero > 3  # beyond doubt on its own, and of no interest
    assert found[9].p > 0.5
    assert found == prove(effects, falls, names(TRACES))


@settings(max_examples=20, deadline=None)
@given(scale=st.floats(1e-3, 1e3), seed=st.integers(0, 5))
def test_the_scale_of_the_probe_changes_nothing(scale: float, seed: int) -> None:
    effects, falls = made(RNG(seed), {1: 0.3, 2: 0.06})
    plain, scaled = (prove(k * effects, k * falls, names(TRACES)) for k in (1.0, scale))
    assert [one.proven for one in plain] == [one.proven for one in scaled]
    for one, other in zip(plain, scaled, strict=True):
        assert one.low == pytest.approx(other.low, rel=1e-6, abs=1e-9)


def test_bound_and_p_say_the_same() -> None:
    effects, falls = made(RNG(4), {place: place / 400 for place in range(60)})
    for one in prove(effects, falls, names(TRACES)):
        assert one.proven == (one.p <= 0.05)


@pytest.mark.parametrize("falls", [np.zeros(TRACES), np.full(TRACES, -3.0), RNG(0).normal(size=40)])
def test_where_nothing_falls_there_is_nothing_to_explain(falls: Doubles) -> None:
    effects, _ = made(RNG(1), {5: 2.0})
    assert prove(effects + 5, falls, names(TRACES)) == [NOTHING] * HEADS


def test_traces_without_a_plateau_are_left_out_and_one_prompt_proves_nothing() -> None:
    effects, falls = made(RNG(2), {5: 0.4})
    more = np.vstack([effects, np.full((3, HEADS), 99.0)])
    holes = np.append(falls, [np.nan] * 3)
    assert prove(more, holes, names(TRACES + 3)) == prove(effects, falls, names(TRACES))
    assert not any(one.proven for one in prove(effects, falls, ["same"] * TRACES))
    assert not any(one.proven for one in prove(effects[:2], falls[:2], names(2)))


def test_near_duplicates_count_once() -> None:
    effects, falls = made(RNG(3), {5: 0.08})
    few = slice(0, 8)
    once = prove(effects[few], falls[few], names(8))
    groups = list(np.repeat(names(8), 30))
    many = prove(np.repeat(effects[few], 30, axis=0), np.repeat(falls[few], 30), groups)
    assert [one.proven for one in many] == [one.proven for one in once]
    assert [one.low for one in many] == pytest.approx([one.low for one in once])


def test_a_head_after_the_probe_is_no_hypothesis() -> None:
    effects, falls = made(RNG(5), {5: 0.4})
    effects[:, 64:] = 0
    found = prove(effects, falls, names(TRACES))
    assert all(one.p == 1 and not one.proven for one in found[64:])
    assert found[:64] == prove(effects[:, :64], falls, names(TRACES))


def test_a_planted_head_is_proven_where_traces_fall(monkeypatch: pytest.MonkeyPatch) -> None:
    """It writes over the thinking too, so the fall that it explains has to be made up."""
    subject, head = planted(Head(3, 0)), Head(3, 0)
    traces = [closed_trace(5, 6 + seed, 4, 2, seed=seed) for seed in range(14)]
    undone = causal_effects(subject, traces, probe())[:, head.layer - 1, head.index]
    monkeypatch.setattr(effects_module, "_falls", lambda *_: 2 * undone)
    rows = measure_heads(subject, traces, [], BENIGN, probe())
    (proven,) = (row for row in rows if row.proof.proven)
    assert proven.head == head
    assert proven.proof.share == pytest.approx(0.5)
    for method in METHODS:
        assert select_heads(rows, method=method) == [head]


def test_a_fall_is_from_the_late_median_to_the_last_closing_token() -> None:
    subject = family_subject("qwen3")
    found = falls(subject, MADE, probe())
    for trace, fall in zip(MADE, found, strict=True):
        assert trace.spans is not None
        logits, spans = logits_of(subject, trace, probe()), trace.spans
        start, end = spans.prompt, spans.thinking
        if start == end:  # no thinking: the closing tokens before the last
            start, end = spans.thinking, spans.last_closing
        plateau = np.median(logits[start:end][(end - start) // 2 :])
        assert fall == pytest.approx(plateau - logits[spans.last_closing], abs=1e-4)
    bare = closed_trace(5, 0, 1, 2)
    assert np.isnan(falls(subject, [bare], probe())).all()
