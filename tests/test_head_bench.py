"""Rankings are scored by their definitions; baselines are what they say; the bench resumes."""

from __future__ import annotations

from itertools import permutations
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_families import BENIGN, HEADS, LAYERS, TRACES, family_subject, planted, probe

from refusal_cliff.heads.table import METHODS, measure_heads
from refusal_cliff.model.subject import Head
from refusal_cliff.organisms.orchard import PLANTINGS, orchard
from refusal_cliff.workflows import head_bench as head_bench
from refusal_cliff.workflows.head_bench import (
    attention_to_request,
    quality_of,
    random_quality,
    rankings,
    table_of,
    weight_only,
)

TRUTH = np.array([False, True, True, False, False])


def test_quality_by_hand() -> None:
    """Planted heads in places 1 and 3 of 5: average precision (1/1 + 2/3) / 2."""
    found = quality_of(np.array([0.5, 0.9, 0.4, 0.1, 0.2]), TRUTH)
    assert found.average_precision == pytest.approx((1 + 2 / 3) / 2)
    assert found.precision == 0.5
    assert found.recall_at_3_percent == found.recall_at_10_percent == 0.5
    best = quality_of(np.array([0.0, 2.0, 1.0, 0.0, 0.0]), TRUTH)
    assert (best.average_precision, best.precision) == (1.0, 1.0)


def test_random_is_the_mean_over_all_orders() -> None:
    exact = [
        quality_of(np.array(order, dtype=float), TRUTH).average_precision
        for order in permutations(range(5))
    ]
    found = random_quality(TRUTH)
    assert found.average_precision == pytest.approx(np.mean(exact), abs=0.05)
    assert found.precision == pytest.approx(0.4, abs=0.08)


def test_weight_only_is_the_length_of_the_projected_direction() -> None:
    subject, layer = family_subject("llama"), 2
    weight = torch.from_numpy(probe(layer).weight)
    found = weight_only(subject, probe(layer))
    columns = subject.projection(1).get_parameter("weight").unflatten(1, (HEADS, -1))
    for index in range(HEADS):
        expected = float((weight @ columns[:, index]).norm())
        assert found[Head(1, index)] == pytest.approx(expected, rel=1e-5)
        assert found[Head(LAYERS, index)] == 0  # after the probe


def test_attention_to_the_request_is_a_share_and_leaves_the_model_as_it_was() -> None:
    subject = family_subject("llama")
    before = subject.model.config._attn_implementation
    found = attention_to_request(subject, TRACES)
    assert subject.model.config._attn_implementation == before
    assert set(found) == set(subject.heads())
    assert all(0 < share < 1 for share in found.values())
    assert len(set(found.values())) == len(found)


def test_every_ranking_puts_a_planted_head_first() -> None:
    head = Head(3, 0)
    subject = planted(head)
    rows = measure_heads(subject, TRACES, [], BENIGN, probe())
    found = rankings(subject, rows, TRACES, probe())
    assert set(found) == {*METHODS, "greedy", "weight-only", "attention"}
    place = subject.heads().index(head)
    for name in (*METHODS, "greedy", "weight-only"):
        assert int(found[name].argmax()) == place, name


def test_the_organisms_differ() -> None:
    planned = orchard(Path("out"), 15)
    assert len({one.seed for one in planned}) == len({one.folder for one in planned}) == 15
    assert len(set(PLANTINGS)) == len(PLANTINGS) >= 10
    assert planned[len(PLANTINGS)].planting == PLANTINGS[0]


def test_the_table_begins_with_the_best() -> None:
    good, bad = quality_of(TRUTH * 1.0, TRUTH), quality_of(TRUTH * -1.0, TRUTH)
    table = table_of({"bad": [bad, bad], "mixed": [good, bad], "good": [good, good]})
    assert [row["ranking"] for row in table] == ["good", "mixed", "bad"]
    assert table[0]["average precision"] == "1.000 [1.000, 1.000]"
    assert head_bench.SHUFFLES >= 100
