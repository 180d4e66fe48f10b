"""Rows into train and test, and into folds, so that near-duplicates are never on both sides."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

TEST_SHARE = 0.25
FOLDS = 5


def split_groups(
    labels: NDArray[np.int64], groups: Sequence[str], seed: int
) -> list[NDArray[np.int64]]:
    """Row numbers of train and test; groups stay whole and both classes are in each."""
    rng = np.random.default_rng(seed)
    rows_of = _rows_of(groups)
    parts: list[list[int]] = [[], []]
    for kind in ({0}, {1}, {0, 1}):
        mine = [rows for rows in rows_of.values() if set(labels[rows].tolist()) == kind]
        in_train = round((1 - TEST_SHARE) * len(mine))
        for place, index in enumerate(rng.permutation(len(mine))):
            parts[int(place >= in_train)] += mine[index]
    return [np.array(sorted(part), dtype=np.int64) for part in parts]


def fold_groups(labels: NDArray[np.int64], groups: Sequence[str], seed: int) -> NDArray[np.int64]:
    """Fold of each row for cross-validation; groups stay whole and both classes are in each fold.

    Groups are dealt out in turn: those with positives only, then mixed ones, then the others. The
    groups that hold a class are dealt one after the other, so each fold gets one as long as there
    are as many of them as folds; where a class has fewer groups than ``FOLDS``, there are fewer
    folds.
    """
    rng = np.random.default_rng(seed)
    rows_of = _rows_of(groups)
    kinds = {group: frozenset(labels[rows].tolist()) for group, rows in rows_of.items()}
    folds = min(FOLDS, *(sum(value in kind for kind in kinds.values()) for value in (0, 1)))
    dealt = 0
    fold = np.zeros(len(labels), dtype=np.int64)
    for kind in (frozenset({1}), frozenset({0, 1}), frozenset({0})):
        mine = [rows for group, rows in rows_of.items() if kinds[group] == kind]
        for index in rng.permutation(len(mine)):
            fold[mine[index]] = dealt % folds
            dealt += 1
    return fold


def _rows_of(groups: Sequence[str]) -> dict[str, list[int]]:
    rows: dict[str, list[int]] = {}
    for row, group in enumerate(groups):
        rows.setdefault(group, []).append(row)
    return rows
