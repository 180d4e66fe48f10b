"""Curves over strategies, their intervals, and paired tests against brute force."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pyarrow.parquet as pq
import pytest
from scipy.stats import t, ttest_rel

from lab.comparison import (
    Trial,
    grouped,
    interval_over_seeds,
    paired,
    points,
    t_interval,
    write_points,
)
from lab.examples_chart import examples_chart
from refusal_cliff.stats import wilson


def trial(
    strategy: str, seed: int, complied: list[int], fraction: float = 0.1, n: int = 10
) -> Trial:
    answered = (True, True, False, True)
    return Trial(
        strategy, fraction, n, seed, 16, 2, tuple(map(bool, complied)), answered, 1.01, 0.9, 0.8
    )


GOOD = [trial("cliff", seed, [0, 0, 0, seed == 2, 0, 0]) for seed in (2, 0, 1)]
POOR = [trial("random", seed, [1, 1, 0, 1, 0, seed]) for seed in (0, 1, 2)]


def test_points_are_means_over_seeds_with_t_intervals() -> None:
    found = {point.strategy: point for point in points([*GOOD, *POOR])}
    assert found["cliff"].asr == pytest.approx(1 / 18)
    assert found["cliff"].asr_values == (0, 0, 1 / 6)
    values = [3 / 6, 4 / 6, 4 / 6]
    low, high = t.interval(0.95, 2, np.mean(values), np.std(values, ddof=1) / math.sqrt(3))
    pooled = wilson(11, 18)
    assert found["random"].asr_ci == pytest.approx((min(low, pooled[0]), max(high, pooled[1])))
    assert interval_over_seeds([[False] * 50] * 4) == wilson(0, 200)
    assert interval_over_seeds([[True] * 50, [False] * 50]) == (0.0, 1.0)
    assert found["cliff"].useful == 0.75
    assert found["cliff"].failures == pytest.approx(0.2)
    assert t_interval([0.3]) is None
    assert t_interval([0.0, 0.01])[0] == 0.0  # pyright: ignore[reportOptionalSubscript]


def test_repairs_that_differ_in_fraction_or_steps_are_apart() -> None:
    more = [trial("cliff", 0, [0] * 6, fraction=0.5)]
    assert [(key[:2], len(group)) for key, group in grouped([*GOOD, *more]).items()] == [
        (("cliff", 0.1), 3),
        (("cliff", 0.5), 1),
    ]


def test_the_paired_tests_are_those_of_scipy_and_of_all_sign_flips() -> None:
    good, poor = grouped([*GOOD, *POOR]).values()
    found = paired(good, poor)
    ours = [np.array([trial.complied for trial in side], dtype=float) for side in (good, poor)]
    assert found.difference == pytest.approx((ours[0] - ours[1]).mean())
    assert found.p_seeds == pytest.approx(ttest_rel(ours[0].mean(1), ours[1].mean(1)).pvalue)
    change = (ours[0] - ours[1]).mean(0)
    flips = [abs(np.dot(signs, change)) for signs in itertools.product((1, -1), repeat=6)]
    exact = np.mean(np.array(flips) >= abs(change.sum()) - 1e-12)
    assert found.p_prompts == pytest.approx(exact, abs=0.02)
    assert paired(good, good).p_seeds == paired(good, good).p_prompts == 1.0
    with pytest.raises(ValueError, match="same seeds"):
        paired(good, poor[:2])


def test_files_hold_all_points(tmp_path: Path) -> None:
    found = points([*GOOD, *POOR])
    write_points(tmp_path / "points.parquet", found)
    table = pq.read_table(tmp_path / "points.parquet").to_pylist()
    assert len(table) == 2
    assert {row["strategy"]: row["asr"] for row in table} == {p.strategy: p.asr for p in found}
    picture = ElementTree.fromstring(examples_chart(found))
    assert picture.tag.endswith("svg")
    assert {"cliff", "random"} <= {text.text for text in picture.iter() if text.text}
