"""Every strategy takes what its name says, whatever the order of the pool."""

from __future__ import annotations

import random

import numpy as np
import pytest

from refusal_cliff.errors import RefusalCliffError
from refusal_cliff.select.strategies import (
    STRATEGIES,
    Candidate,
    Strategy,
    has_refusal_words,
    how_many,
    select,
)


def candidate(name: str, size: float, *, logits: float = 1.0, plateau: float = 0.9) -> Candidate:
    """A cliff that is ``size`` high in scores and ``logits`` high in logits."""
    return Candidate(name, "", 1, plateau, plateau - size, 2.0, 2.0 - logits, "refused")


def unscored(name: str) -> Candidate:
    return Candidate(name, verdict="refused")


POOL = [candidate(name, i / 10) for i, name in enumerate("abcdefghij")]


def names(strategy: Strategy, pool: list[Candidate], n: int, seed: int = 0) -> str:
    return "".join(found.id for found in select(strategy, pool, n, seed))


def test_the_largest_cliff_comes_first() -> None:
    sizes = {"a": 0.2, "b": -0.1, "c": 0.9, "d": 0.5}
    pool = [candidate(name, size) for name, size in sizes.items()]
    assert names("cliff", pool, 4) == "cdab"
    assert names("cliff", POOL, 3) == "jih"


def test_ties_go_by_logits_then_by_id() -> None:
    pool = [
        candidate("a", 0.9, logits=3.0),
        candidate("b", 0.9, logits=9.0),
        candidate("c", 0.9, logits=3.0),
        candidate("d", 0.95, logits=1.0),
    ]
    assert names("cliff", pool[::-1], 4) == "dbac"


def test_examples_without_a_cliff_come_last() -> None:
    pool = [unscored("a"), candidate("b", -0.5), unscored("c"), candidate("d", 0.0), unscored("e")]
    for strategy in ("cliff", "gated"):
        assert names(strategy, pool, 5) == "dbace"
    assert names("final", pool, 5)[2:] == "ace"


def test_final_ranks_by_the_last_score_alone() -> None:
    pool = [
        Candidate("high", "", 1, 0.9, 0.2, 2.0, -1.0),
        Candidate("low", "", 1, 0.1, 0.05, -2.0, -3.0),
    ]
    assert [c.id for c in select("final", pool, 2)] == ["low", "high"]
    assert [c.id for c in select("cliff", pool, 2)] == ["high", "low"]


def test_the_gate_lets_no_low_plateau_before_a_high_one() -> None:
    pool = [
        candidate("a", 0.45, plateau=0.49),
        candidate("b", 0.1, plateau=0.5),
        candidate("c", 0.3, plateau=0.6),
    ]
    assert names("gated", pool, 3) == "cba"
    assert names("cliff", pool, 3) == "acb"


def test_diversity_covers_the_categories_among_the_large_cliffs() -> None:
    sizes = [0.9, 0.89, 0.88, 0.87, 0.5, 0.4, 0.3, 0.2, 0.1, 0.0]
    topics = ["x"] * 4 + ["y", "y", "z", "z", "w", "w"]
    pool = [
        Candidate(f"{i}", topic, 1, 0.9, 0.9 - size, 2.0, 1.0)
        for i, (size, topic) in enumerate(zip(sizes, topics, strict=True))
    ]
    assert [c.id for c in select("diverse", pool, 2)] == ["0", "4"]
    assert [c.category for c in select("diverse", pool, 2)] == ["x", "y"], "z is no large cliff"
    assert names("cliff", pool, 3) == "012"


def test_diversity_without_categories_takes_the_farthest_states() -> None:
    places = {"a": [0.0, 0.0], "b": [0.1, 0.0], "c": [5.0, 0.0], "d": [0.0, 9.0], "e": [5.1, 0.1]}
    pool = [
        Candidate(
            name, "", 1, 0.9, 0.1 + i / 100, 2.0, 1.0, state=np.array(place, dtype=np.float32)
        )
        for i, (name, place) in enumerate(places.items())
    ]
    assert names("diverse", pool, 3) == "ade"
    assert len(set(names("diverse", pool, 5))) == 5
    with pytest.raises(RefusalCliffError, match="column 'category'"):
        select("diverse", POOL, 2)


def test_rule_and_judge_take_what_was_complied_with_first() -> None:
    pool = [
        Candidate(f"{i:02}", verdict="complied" if i % 4 == 0 else "refused", refusal_words=i < 10)
        for i in range(20)
    ]
    assert {int(c.id) % 4 for c in select("judge", pool, 5)} == {0}
    assert min(int(c.id) for c in select("rule", pool, 10)) == 10
    drawn = {names("judge", pool, 3, seed=seed) for seed in range(20)}
    assert len(drawn) > 5, "ties are drawn, not taken in order"
    with pytest.raises(RefusalCliffError, match="--thinking own"):
        select("judge", [Candidate("a")], 1)


def test_longest() -> None:
    pool = [Candidate(name, "", tokens) for name, tokens in zip("abcd", (5, 9, 9, 1), strict=True)]
    assert names("longest", pool, 3) == "bca"


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_no_choice_depends_on_the_order_of_the_pool(strategy: Strategy) -> None:
    rng = np.random.default_rng(0)
    pool = [
        Candidate(
            f"{i}",
            "",
            int(rng.integers(4)),
            float(rng.integers(4)) / 4,
            0.25,
            verdict="complied" if i % 3 else "refused",
            refusal_words=i % 3 == 0,
            state=rng.normal(size=3).astype(np.float32),
        )
        for i in range(30)
    ]
    expected = {c.id for c in select(strategy, pool, 7, seed=1)}
    for seed in range(5):
        shuffled = random.Random(seed).sample(pool, len(pool))
        assert {c.id for c in select(strategy, shuffled, 7, seed=1)} == expected


@pytest.mark.parametrize(
    ("pool", "n"), [(2000, 34), (1, 1), (10, 1), (100, 2), (1000, 17), (50_000, 850)]
)
def test_the_papers_share_of_a_pool(pool: int, n: int) -> None:
    assert how_many(pool) == n


def test_another_share_of_a_pool() -> None:
    assert how_many(200, 0.1) == 20
    assert how_many(200, 1.0) == 200


def test_random_has_a_seed_and_takes_nothing_twice() -> None:
    drawn = [names("random", POOL, 4, seed) for seed in range(200)]
    assert all(len(set(found)) == 4 for found in drawn)
    assert names("random", POOL, 4, 3) == drawn[3]
    assert drawn[0] != drawn[1]
    often = [sum(name in found for found in drawn) for name in "abcdefghij"]
    assert all(50 < count < 110 for count in often)


def test_full_takes_everything() -> None:
    for n in (2, 11):
        found = select("full", POOL, n)
        assert found == POOL
        assert found is not POOL


@pytest.mark.parametrize("strategy", ["cliff", "random"])
def test_more_than_the_pool_has_is_refused(strategy: Strategy) -> None:
    with pytest.raises(RefusalCliffError, match="has 10 examples; 11 were asked for"):
        select(strategy, POOL, 11)


def test_an_unknown_strategy_is_named() -> None:
    with pytest.raises(RefusalCliffError, match=r"'best'.* cliff, final, "):
        select("best", POOL, 1)  # pyright: ignore[reportArgumentType]


def test_the_keyword_rule_reads_the_beginning_of_an_answer() -> None:
    assert has_refusal_words("I’m SORRY, but I can’t.")
    assert not has_refusal_words("Sure. " + "x" * 128 + " sorry")
    assert not has_refusal_words("Here is a plan.")
