"""Rankings of heads by the answer's shift, compared by hand with those by the probe."""

from __future__ import annotations

import numpy as np
import pytest
from tiny_heads import head_row

from refusal_cliff.controls.second_opinion import CONTRAST, GROUP, SHIFT, second_opinion
from refusal_cliff.controls.table import Cell
from refusal_cliff.model.subject import Head

ROWS = [
    head_row(0, causal=4.0, direct=-4.0),
    head_row(1, causal=1.0, direct=-2.0),
    head_row(2, causal=-3.0, direct=1.0),
    head_row(3, causal=-2.0, direct=3.0),
]
HARMFUL = np.array([[9.0, 1.0, 6.0, 4.0], [9.0, 2.0, 6.0, 2.0]])
BENIGN = np.array([[0.0, 0.0, 6.0, 0.0]])


def table(planted: list[Head]) -> dict[str, dict[str, Cell]]:
    found = second_opinion(
        ROWS, (HARMFUL, ["a", "b"]), (BENIGN, ["c"]), [Head(1, 3), Head(1, 0)], planted
    )
    return {
        name: dict(zip(found.columns, cells, strict=True)) for name, cells in found.rows.items()
    }


def test_rankings_are_compared_by_hand() -> None:
    rows = table([Head(1, 0), Head(1, 2)])
    shift = {name: cell.value for name, cell in rows[SHIFT].items()}
    # ranks of the mean shifts 9, 1.5, 6, 3: 4 1 3 2; of −direct: 4 3 2 1; of causal: 4 3 1 2
    assert shift["rank correlation with direct"] == pytest.approx(0.4)
    assert shift["rank correlation with causal"] == pytest.approx(0.2)
    assert shift["rank correlation with causal, unsigned"] == pytest.approx(1.0)
    assert shift["shared with direct"] == 1.0
    assert shift["planted found"] == 1.0
    assert rows[CONTRAST]["planted found"].value == 0.5  # 9, 1.5, 0, 3: heads 0 and 3
    assert rows["direct"]["planted found"].value == 0.5
    assert rows[GROUP]["shared with direct"].value == 0.0
    assert rows[GROUP]["planted found"].value == 0.5
    assert rows[GROUP]["rank correlation with direct"].value is None


def test_intervals_follow_the_prompts_that_shifts_are_measured_on() -> None:
    rows = table([])
    assert "planted found" not in rows[SHIFT]
    cell = rows[SHIFT]["rank correlation with causal, unsigned"]
    # of the second trace alone, shifts 9, 2, 6, 2 have the tied ranks 4, 1.5, 3, 1.5
    assert cell.interval == pytest.approx((4.5 / np.sqrt(4.5 * 5), 1.0))
    assert cell.n == 2
    assert rows["direct"]["rank correlation with causal"].interval is None
