"""No group is ever on two sides, and no side ever lacks a class."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from refusal_cliff.probe.fit import FOLDS, fold_groups, split_groups


@st.composite
def labelled_groups(draw: st.DrawFn) -> tuple[list[int], list[str]]:
    """Rows of groups that are positive, negative or both, enough of each class, in any order."""
    both = draw(st.integers(0, 16))
    kinds = [(0, 1)] * both
    for value in (0, 1):
        n = max(0, 12 - both) + draw(st.integers(0, 60))
        kinds += [(value,) * draw(st.integers(1, 3))] * n
    rows = [(value, f"g{group}") for group, kind in enumerate(kinds) for value in kind]
    draw(st.randoms(use_true_random=False)).shuffle(rows)
    return [value for value, _ in rows], [group for _, group in rows]


@settings(max_examples=150, deadline=None)
@given(labelled_groups(), st.integers(0, 5))
def test_a_split_keeps_groups_whole_and_both_classes_everywhere(
    rows: tuple[list[int], list[str]], seed: int
) -> None:
    labels, groups = np.array(rows[0]), rows[1]
    parts = split_groups(labels, groups, seed)
    assert sorted(np.concatenate(parts).tolist()) == list(range(len(labels)))
    owners = [{groups[row] for row in part} for part in parts]
    assert sum(map(len, owners)) == len(set(groups))
    assert [set(labels[part].tolist()) for part in parts] == [{0, 1}] * 2


def test_a_split_has_the_shares_it_says_and_a_seed() -> None:
    labels = np.arange(200) % 2
    groups = [f"g{i}" for i in range(200)]
    parts = split_groups(labels, groups, 0)
    assert [len(part) for part in parts] == [150, 50]
    assert [int(labels[part].sum()) for part in parts] == [75, 25]
    again, other = split_groups(labels, groups, 0), split_groups(labels, groups, 1)
    assert all(np.array_equal(a, b) for a, b in zip(parts, again, strict=True))
    assert not np.array_equal(parts[0], other[0])


@pytest.mark.parametrize("seed", range(5))
def test_groups_of_both_classes_are_shared_out_as_well(seed: int) -> None:
    """Where refusals only come beside a compliance, each part still gets its share of them."""
    rows = [(value, f"both{group}") for group in range(12) for value in (0, 1)]
    rows += [(0, f"zero{group}") for group in range(60)]
    labels = np.array([value for value, _ in rows])
    parts = split_groups(labels, [group for _, group in rows], seed)
    assert [int(labels[part].sum()) for part in parts] == [9, 3]


@settings(max_examples=150, deadline=None)
@given(labelled_groups(), st.integers(0, 5))
def test_folds_keep_groups_whole_and_both_classes_everywhere(
    rows: tuple[list[int], list[str]], seed: int
) -> None:
    labels, groups = np.array(rows[0]), rows[1]
    fold = fold_groups(labels, groups, seed)
    assert len(set(zip(groups, fold.tolist(), strict=True))) == len(set(groups))
    assert [set(labels[fold == part].tolist()) for part in range(FOLDS)] == [{0, 1}] * FOLDS


@pytest.mark.parametrize(("ones", "folds"), [(2, 2), (3, 3), (5, 5), (9, 5)])
def test_a_class_of_few_groups_makes_fewer_folds(ones: int, folds: int) -> None:
    labels = np.array([1] * ones + [0] * 40)
    fold = fold_groups(labels, [f"g{i}" for i in range(len(labels))], 0)
    assert sorted(set(fold.tolist())) == list(range(folds))
    assert set(np.bincount(fold[labels == 1]).tolist()) <= {ones // folds, -(-ones // folds)}
