"""A pool holds nothing twice and nothing of the evaluation; the largest cliffs come first."""

from __future__ import annotations

import random

import pytest

from refusal_cliff.cliff import TraceCliff
from refusal_cliff.errors import RefusalCliffError
from refusal_cliff.selection import Strategy, clean_pool, how_many, rank_by_cliff, select
from refusal_cliff.traces import Prompt, SafetyExample


def example(name: str, text: str = "") -> SafetyExample:
    return SafetyExample(Prompt(name, text or f"Do {name}", "harmful"), "Bad.", "No.")


def cliff(name: str, size: float, *, logits: float = 1.0) -> TraceCliff:
    """A cliff that is ``size`` high in scores and ``logits`` high in logits."""
    return TraceCliff(
        name,
        name,
        "harmful",
        "complied",
        0.9,
        0.9 - size,
        size,
        2.0,
        2.0 - logits,
        -2,
        size,
        "none",
    )


POOL = [example(name) for name in "abcdefghij"]


def names(examples: list[SafetyExample]) -> str:
    return "".join(example.prompt.id for example in examples)


def test_duplicates_and_questions_of_the_evaluation_are_dropped_and_counted() -> None:
    pool = clean_pool(
        [
            example("a", "Pick a lock"),
            example("b", "  pick A\n lock "),
            example("c", "Bake bread"),
            example("d", "PICK  a lock"),
            example("e", "bake\tBREAD"),
            example("f", "Pick a lock!"),
            example("g", "STRASSE"),
            example("h", "straße"),
        ],
        [Prompt("x", "Bake  Bread ", "benign"), Prompt("y", "Else", "harmful")],
    )
    assert names(list(pool.examples)) == "afg"
    assert (pool.duplicates, pool.contaminated) == (3, 2)
    assert pool.examples[0].prompt.text == "Pick a lock"


def test_an_empty_pool_stays_empty() -> None:
    pool = clean_pool([], [])
    assert (pool.examples, pool.duplicates, pool.contaminated) == ((), 0, 0)


def test_the_largest_cliff_comes_first() -> None:
    sizes = {"a": 0.2, "b": -0.1, "c": 0.9, "d": 0.5}
    cliffs = {name: cliff(name, size) for name, size in sizes.items()}
    assert names(rank_by_cliff(POOL[:4], cliffs)) == "cdab"


def test_ties_go_by_logits_then_by_id() -> None:
    cliffs = {
        "a": cliff("a", 0.9, logits=3.0),
        "b": cliff("b", 0.9, logits=9.0),
        "c": cliff("c", 0.9, logits=3.0),
        "d": cliff("d", 0.95, logits=1.0),
    }
    assert names(rank_by_cliff(POOL[3::-1], cliffs)) == "dbac"


def test_examples_without_a_cliff_come_last() -> None:
    cliffs = {"b": cliff("b", -0.5), "d": cliff("d", 0.0)}
    assert names(rank_by_cliff(POOL[4::-1], cliffs)) == "dbace"
    assert names(rank_by_cliff(POOL, {})) == "abcdefghij"


def test_the_ranking_does_not_depend_on_the_order_of_the_pool() -> None:
    cliffs = {name: cliff(name, round(i / 3) / 4) for i, name in enumerate("abcdefg")}
    expected = rank_by_cliff(POOL, cliffs)
    for seed in range(5):
        shuffled = random.Random(seed).sample(POOL, len(POOL))
        assert rank_by_cliff(shuffled, cliffs) == expected


@pytest.mark.parametrize(
    ("pool", "n"), [(2000, 34), (1, 1), (10, 1), (100, 2), (1000, 17), (50_000, 850)]
)
def test_the_papers_share_of_a_pool(pool: int, n: int) -> None:
    assert how_many(pool) == n


def test_another_share_of_a_pool() -> None:
    assert how_many(200, 0.1) == 20
    assert how_many(200, 1.0) == 200


def test_cliff_takes_the_head_of_the_ranking() -> None:
    cliffs = {name: cliff(name, i / 10) for i, name in enumerate("abcdefghij")}
    assert names(select("cliff", POOL, cliffs, 3, seed=0)) == "jih"


def test_random_has_a_seed_and_takes_nothing_twice() -> None:
    drawn = [select("random", POOL, {}, 4, seed=seed) for seed in range(200)]
    assert all(len(set(names(found))) == 4 for found in drawn)
    assert select("random", POOL, {}, 4, seed=3) == drawn[3]
    assert drawn[0] != drawn[1]
    often = [sum(name in names(found) for found in drawn) for name in "abcdefghij"]
    assert all(50 < count < 110 for count in often)


def test_full_takes_everything() -> None:
    for n in (2, 11):
        found = select("full", POOL, {}, n, seed=0)
        assert found == POOL
        assert found is not POOL


@pytest.mark.parametrize("strategy", ["cliff", "random"])
def test_more_than_the_pool_has_is_refused(strategy: Strategy) -> None:
    with pytest.raises(RefusalCliffError, match="has 10 examples; 11 were asked for"):
        select(strategy, POOL, {}, 11, seed=0)


def test_an_unknown_strategy_is_named() -> None:
    with pytest.raises(RefusalCliffError, match=r"'best'.* cliff, random, full"):
        select("best", POOL, {}, 1, seed=0)  # pyright: ignore[reportArgumentType]
