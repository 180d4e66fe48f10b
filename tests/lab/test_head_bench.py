"""Rankings are scored by their definitions; baselines are what they say; the bench resumes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_families import (
    BENIGN,
    HEADS,
    LAYERS,
    TRACES,
    WIDTH,
    closed_trace,
    family_subject,
    planted,
    probe,
)

from lab import baselines as baselines_module
from lab import head_bench
from lab.baselines import (
    attention_to_request,
    baselines,
    output_norms,
    shuffled_directions,
    sizes_along,
    weight_only,
)
from lab.head_bench import mean_quality, quality_of, rankings, table_of
from lab.orchard import HELD, KINDS, PLANTINGS, orchard
from refusal_cliff.heads.effects import direct_contributions
from refusal_cliff.heads.table import METHODS, measure_heads, ranked
from refusal_cliff.model.subject import Head, Subject

TRUTH = np.array([False, True, True, False, False])


def test_quality_by_hand() -> None:
    """Planted heads in places 1 and 3 of 5: average precision (1/1 + 2/3) / 2."""
    found = quality_of(np.array([0.5, 0.9, 0.4, 0.1, 0.2]), TRUTH)
    assert found.average_precision == pytest.approx((1 + 2 / 3) / 2)
    assert found.precision == 0.5
    assert found.recall_at_3_percent == found.recall_at_10_percent == 0.5
    best = quality_of(np.array([0.0, 2.0, 1.0, 0.0, 0.0]), TRUTH)
    assert (best.average_precision, best.precision) == (1.0, 1.0)


def test_several_draws_count_by_their_mean_quality() -> None:
    draws = np.array([[0.0, 2.0, 1.0, 0.0, 0.0], [2.0, 0.0, 0.0, 1.0, 1.0]])
    each = [quality_of(draw, TRUTH).average_precision for draw in draws]
    assert mean_quality(draws, TRUTH).average_precision == pytest.approx(np.mean(each))
    assert mean_quality(draws[:1], TRUTH) == quality_of(draws[0], TRUTH)


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_output_norms_are_those_of_what_a_silenced_head_takes_away(family: str) -> None:
    """In the last block, with its MLP silent, the state changes by what the head wrote."""
    subject = family_subject(family)
    directions = np.eye(WIDTH, dtype=np.float32)
    along = sizes_along(subject, TRACES[:1], directions, LAYERS)[:, -1]
    norms = output_norms(subject, TRACES[:1])[0, -1]
    np.testing.assert_allclose(norms, np.linalg.norm(along, axis=0), rtol=1e-4)
    assert norms.min() > 0


def test_a_random_direction_is_of_length_one_and_without_sign() -> None:
    subject, weight = family_subject("llama"), probe().weight
    found = sizes_along(subject, TRACES, np.stack([weight, -3 * weight]), LAYERS)
    direct = direct_contributions(subject, TRACES, probe()).closing.mean(0)
    np.testing.assert_allclose(found[0], np.abs(direct) / np.linalg.norm(weight), rtol=1e-4)
    np.testing.assert_allclose(found[0], found[1], rtol=1e-4)


def test_shuffled_labels_give_other_directions_than_the_labels() -> None:
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1], 30)
    states = rng.normal(size=(60, WIDTH)) + 6 * labels[:, None] * np.eye(WIDTH)[0]
    found = shuffled_directions(states, labels, 0.1, rng)
    assert found.shape == (baselines_module.DRAWS, WIDTH)
    along = found[:, 0] / np.linalg.norm(found, axis=1)
    assert abs(along.mean()) < 0.5  # one way or the other


def test_weight_only_is_the_length_of_the_projected_direction() -> None:
    subject, layer = family_subject("llama"), 2
    weight = torch.from_numpy(probe(layer).weight)
    found = weight_only(subject, probe(layer))
    columns = subject.projection(1).get_parameter("weight").unflatten(1, (HEADS, -1))
    for index in range(HEADS):
        expected = float((weight @ columns[:, index]).norm())
        assert found[0, index] == pytest.approx(expected, rel=1e-5)
    assert not found[LAYERS - 1].any()  # after the probe


def test_attention_to_the_request_is_a_share_and_leaves_the_model_as_it_was() -> None:
    subject = family_subject("llama")
    before = subject.model.config._attn_implementation
    found = attention_to_request(subject, TRACES)
    assert subject.model.config._attn_implementation == before
    assert found.shape == (LAYERS, HEADS)
    assert ((found > 0) & (found < 1)).all()
    assert len(np.unique(found)) == found.size


def all_baselines(subject: Subject) -> dict[str, np.ndarray]:
    rng, labels = np.random.default_rng(1), np.repeat([0, 1], 20)
    states = rng.normal(size=(40, WIDTH)) + labels[:, None]
    return baselines(subject, TRACES, probe(), states, labels)


def test_every_ranking_puts_a_planted_head_first() -> None:
    """And so does the norm of what it writes, which is why it is a baseline."""
    head = Head(3, 0)
    subject = planted(head)
    rows = measure_heads(subject, TRACES, [], BENIGN, probe())
    found = rankings(rows, [head], [])
    assert set(found) == {*METHODS, "joint", "default"}
    place = subject.heads().index(head)
    for name, scores in found.items():
        assert int(scores[0].argmax()) == place, name
    others = all_baselines(subject)
    names = {"norm", "random-direction", "random-label", "weight-only", "attention"}
    assert set(others) == names
    for name in ("norm", "weight-only"):
        assert int(others[name][0].argmax()) == place, name


def test_the_default_ranking_is_what_the_run_takes_out() -> None:
    traces = [closed_trace(5, 8, 3, 2, seed=seed) for seed in range(4)]
    rows = measure_heads(family_subject("llama"), traces, [], BENIGN, probe())
    by_ranking = rankings(rows, [], [])["default"][0]
    assert [rows[place].head for place in np.argsort(-by_ranking)] == ranked(rows)
    chosen = ranked(rows)[5:7]
    together = rankings(rows, [], chosen)["default"][0]
    order = [rows[place].head for place in np.argsort(-together)]
    assert order[:2] == chosen
    assert order[2:] == [head for head in ranked(rows) if head not in chosen]


def test_the_organisms_differ() -> None:
    for n in (1, 4, 15):
        planned = orchard(Path("out"), n)
        assert len({one.seed for one in planned}) == len(planned) == 2 * n
        assert len({one.folder for one in planned}) == 2 * n
        assert [one.kind for one in planned] == [kind for kind in KINDS for _ in range(n)]
    assert len(set(PLANTINGS)) == len(PLANTINGS) >= 10
    assert all(one.held and max(one.layers) <= 5 and len(one.layers) > 1 for one in HELD)
    assert not any(one.held for one in PLANTINGS)
    few, all_of_them = orchard(Path("out"), 4), orchard(Path("out"), 12)
    assert set(few) <= set(all_of_them)  # the same organism, however many are made
    assert len({one.planting for one in few if one.kind == "free"}) == 4


def test_the_table_begins_with_the_product_s_own_ranking() -> None:
    good, bad = quality_of(TRUTH * 1.0, TRUTH), quality_of(TRUTH * -1.0, TRUTH)
    of_kind = {"bad": [bad, bad], "mixed": [good, bad], "good": [good, good], "default": [bad]}
    table = table_of({"free": of_kind, "held": of_kind})
    assert [row["ranking"] for row in table] == ["default", "good", "mixed", "bad"]
    assert table[1]["free: average precision"] == "1.00 [1.00, 1.00]"
    assert head_bench.SHUFFLES >= 100
