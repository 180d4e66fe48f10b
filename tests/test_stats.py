"""Intervals hold what they promise, and near-duplicates do not make them narrower."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from refusal_cliff.stats import (
    bootstrap,
    bootstrap_mean,
    difference_interval,
    share_interval,
    spearman,
    wilson,
)


@st.composite
def shares(draw: st.DrawFn) -> tuple[int, int]:
    n = draw(st.integers(1, 5000))
    return draw(st.integers(0, n)), n


@given(shares())
def test_wilson_is_that_of_scipy(share: tuple[int, int]) -> None:
    count, n = share
    expected = binomtest(count, n).proportion_ci(method="wilson")
    assert wilson(count, n) == pytest.approx((expected.low, expected.high), abs=1e-12)


@given(shares())
def test_wilson_holds_the_share_and_stays_a_share(share: tuple[int, int]) -> None:
    count, n = share
    low, high = wilson(count, n)
    assert 0 <= low < high <= 1
    assert low - 1e-12 <= count / n <= high + 1e-12
    mirrored = wilson(n - count, n)
    assert (low, high) == pytest.approx((1 - mirrored[1], 1 - mirrored[0]), abs=1e-12)


def test_wilson_narrows_with_n() -> None:
    widths = [high - low for low, high in (wilson(n // 2, n) for n in (2, 20, 200, 2000))]
    assert all(narrow < wide for wide, narrow in pairwise(widths))


@pytest.mark.parametrize(("count", "n"), [(0, 0), (-1, 3), (4, 3), (1, -2)])
def test_what_is_no_share_is_refused(count: int, n: int) -> None:
    with pytest.raises(ValueError, match=f"{count} of {n} is not a share"):
        wilson(count, n)


@given(st.lists(st.booleans(), min_size=1, max_size=60))
def test_a_share_of_single_rows_has_wilsons_interval(hits: list[bool]) -> None:
    names = [str(at) for at in range(len(hits))]
    assert share_interval(hits, names) == wilson(sum(hits), len(hits))


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 9)), min_size=1, max_size=60))
def test_groups_never_narrow_the_interval_of_a_share(rows: list[tuple[bool, int]]) -> None:
    hits, groups = [hit for hit, _ in rows], [str(group) for _, group in rows]
    low, high = share_interval(hits, groups)
    alone = wilson(sum(hits), len(hits))
    assert 0 <= low <= alone[0] + 1e-9
    assert alone[1] - 1e-9 <= high <= 1


def test_copies_of_rows_leave_the_interval_of_a_share_as_it_is() -> None:
    hits, groups = [True] * 6 + [False] * 14, [str(at) for at in range(20)]
    four = share_interval(hits * 4, groups * 4)
    assert four == pytest.approx(wilson(6, 20), abs=0.02)
    assert share_interval([True] * 40, [str(at // 8) for at in range(40)]) == wilson(5, 5)


def test_the_interval_of_a_share_covers_it_where_answers_come_in_groups() -> None:
    """Each prompt has a rate of its own, 0.3 on average, and is answered four times."""
    rng = np.random.default_rng(4)
    names = [str(at // 4) for at in range(160)]
    covered, naive = [], []
    for _ in range(400):
        rates = np.repeat(rng.beta(0.6, 1.4, 40), 4)
        hits = (rng.random(160) < rates).tolist()
        low, high = share_interval(hits, names)
        covered.append(low <= 0.3 <= high)
        low, high = wilson(sum(hits), 160)
        naive.append(low <= 0.3 <= high)
    assert np.mean(covered) >= 0.92
    assert np.mean(naive) < 0.85


@pytest.mark.parametrize(("n", "before", "after"), [(12, 0.7, 0.1), (30, 0.5, 0.3), (15, 0.9, 0.9)])
def test_the_interval_of_a_paired_difference_covers_it(n: int, before: float, after: float) -> None:
    rng = np.random.default_rng(5)
    names = [str(at) for at in range(n)]
    covered = []
    for trial in range(300):
        drawn = rng.random(n)
        found = (drawn < after).astype(float) - (drawn < before)
        low, high = difference_interval(found, names, trial)
        covered.append(low <= after - before <= high)
    assert np.mean(covered) >= 0.92


def test_few_pairs_that_agree_have_an_interval_of_some_width() -> None:
    low, high = difference_interval([-1.0] * 8, [str(at) for at in range(8)])
    assert low == -1.0
    assert -1.0 < high < 0
    low, high = difference_interval([0.0] * 8, [str(at) for at in range(8)])
    assert low < 0 < high


def test_the_bootstrap_covers_the_mean_in_nineteen_of_twenty_samples() -> None:
    rng = np.random.default_rng(0)
    covered = []
    for trial in range(400):
        low, high = bootstrap_mean(rng.normal(1.0, 2.0, 80), seed=trial, resamples=500)
        covered.append(low <= 1.0 <= high)
    assert np.mean(covered) == pytest.approx(0.95, abs=0.04)


def test_the_bootstrap_covers_the_mean_of_grouped_rows() -> None:
    """Rows of one group share most of their noise: only whole groups are independent."""
    rng = np.random.default_rng(1)
    names = [f"g{row // 5}" for row in range(300)]
    grouped, alone = [], []
    for trial in range(300):
        values = np.repeat(rng.normal(0.0, 1.0, 60), 5) + rng.normal(0.0, 0.2, 300)
        for covered, groups in ((grouped, names), (alone, None)):
            low, high = bootstrap_mean(values, groups, seed=trial, resamples=400)
            covered.append(low <= 0.0 <= high)
    assert np.mean(grouped) == pytest.approx(0.95, abs=0.04)
    assert np.mean(alone) < 0.75


def test_copies_in_one_group_do_not_narrow_the_interval() -> None:
    values = np.random.default_rng(2).normal(0.0, 1.0, 50)
    names = [f"g{row:02d}" for row in range(50)]
    once = bootstrap_mean(values, names)
    four_times = bootstrap_mean(np.tile(values, 4), names * 4)
    as_if_new = bootstrap_mean(np.tile(values, 4))
    assert four_times == pytest.approx(once, abs=1e-12)
    assert as_if_new[1] - as_if_new[0] < 0.6 * (once[1] - once[0])


def test_a_seed_gives_one_interval() -> None:
    values = np.random.default_rng(3).normal(0.0, 1.0, 30)
    assert bootstrap_mean(values, seed=7) == bootstrap_mean(values, seed=7)
    assert bootstrap_mean(values, seed=7) != bootstrap_mean(values, seed=8)
    assert bootstrap_mean([0.25] * 9) == (0.25, 0.25)


def test_both_bootstraps_agree_on_a_mean() -> None:
    rng = np.random.default_rng(4)
    values = rng.normal(0.0, 1.0, 60)
    names = [f"g{group}" for group in rng.integers(0, 20, 60)]

    def mean(rows: np.ndarray) -> float:
        return float(values[rows].mean())

    slow = bootstrap(mean, names, seed=5)
    assert slow == pytest.approx(bootstrap_mean(values, names, seed=5), abs=1e-12)
    assert slow == pytest.approx(bootstrap_mean(values, names, seed=6), abs=0.1)


def test_draws_without_a_value_are_left_out() -> None:
    def second_half(rows: np.ndarray) -> float:
        return float("nan") if rows.min() < 4 else 2.0

    assert bootstrap(second_half, [str(row) for row in range(8)], seed=0) == (2.0, 2.0)


def test_rank_correlation_by_hand() -> None:
    # ranks 1, 2.5, 2.5, 4 against 1, 3, 2, 4: covariance 4.5 over the root of 4.5 · 5
    x, y = np.array([1.0, 2.0, 2.0, 9.0]), np.array([0.0, 5.0, 1.0, 7.0])
    assert spearman(x, y) == pytest.approx(4.5 / np.sqrt(4.5 * 5))
    assert spearman(x, -x) == pytest.approx(-1)
    assert np.isnan(spearman(x, np.ones(4)))
    assert np.isnan(spearman(x[:1], y[:1]))
