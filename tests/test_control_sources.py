"""Probe and cliff by source, against cases counted by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest
from made_cliffs import made_cliff

from refusal_cliff.cliff.curves import TraceCliff
from refusal_cliff.controls.sources import COLUMNS, WITH_CLIFF, by_source
from refusal_cliff.controls.table import Cell
from refusal_cliff.data.types import Label, Prompt, Trace, Verdict
from refusal_cliff.stats import wilson


def trace(name: str, source: str, label: Label, verdict: Verdict) -> Trace:
    prompt = Prompt(name, name, label, tags=(f"from:{source}",))
    return Trace(prompt, (), None, "", "", True, verdict)


def scored(name: str, label: str, verdict: str, final_logit: float) -> TraceCliff:
    cliff = made_cliff(name, 0.9, 0.2, label=label, verdict=verdict)
    return replace(cliff, final_logit=final_logit)


@pytest.fixture(scope="module")
def rows() -> dict[str, dict[str, Cell]]:
    """Source a: 5 refused above all benign traces but one, 3 complied. b: 1 refused. c: benign."""
    made: list[tuple[str, str, Label, Verdict, float]] = [
        *((f"a-r{i}", "a", "harmful", "refused", 2.0) for i in range(5)),
        *((f"a-c{i}", "a", "harmful", "complied", -2.0) for i in range(3)),
        ("b-r", "b", "harmful", "refused", 2.0),
        ("b-t", "b", "harmful", "truncated", 0.0),
        *((f"c-b{i}", "c", "benign", "complied", -1.0) for i in range(4)),
        ("c-high", "c", "benign", "complied", 3.0),
        ("c-refused", "c", "benign", "refused", 9.0),
    ]
    traces = [trace(name, source, label, verdict) for name, source, label, verdict, _ in made]
    cliffs = [
        scored(name, label, verdict, logit)
        for name, _, label, verdict, logit in made
        if verdict != "truncated"
    ]
    table = by_source(traces, cliffs, 0)
    assert "0.80 at least (a, the lowest of 1 sources)" in table.finding
    return {name: dict(zip(COLUMNS, cells, strict=True)) for name, cells in table.rows.items()}


def test_auroc_is_against_the_answered_benign_traces_of_all_sources(
    rows: dict[str, dict[str, Cell]],
) -> None:
    cell = rows["a"]["AUROC, refused against benign"]
    assert cell.value == pytest.approx(0.8)  # above 4 of 5 benign traces; the refused one is none
    assert cell.n == 5
    assert cell.interval is not None
    assert rows["b"]["AUROC, refused against benign"] == Cell(None, None, 1)


def test_rates_count_every_prompt_of_the_source(rows: dict[str, dict[str, Cell]]) -> None:
    assert (rows["a"]["attack success"].value, rows["a"]["attack success"].n) == (3 / 8, 8)
    assert (rows["b"]["attack success"].value, rows["b"]["attack success"].n) == (0, 2)
    assert (rows["c"]["attack success"].value, rows["c"]["attack success"].n) == (None, 0)
    assert (rows["c"]["benign answered"].value, rows["c"]["benign answered"].n) == (5 / 6, 6)


def test_cliffs_are_those_of_complied_harmful_traces(rows: dict[str, dict[str, Cell]]) -> None:
    assert rows["a"]["cliff, complied"].value == pytest.approx(0.7)
    assert rows["a"]["plateau, complied"].n == 3
    assert rows["c"]["cliff, complied"].n == 0


def test_without_enough_refused_traces_nothing_is_said() -> None:
    table = by_source([trace("x", "a", "harmful", "refused")], [], 0)
    assert table.finding == "No source has 5 refused traces to test the probe on."


def test_a_verdict_on_a_mixture_of_sources_is_said() -> None:
    """All of a's complied traces fall; those of b were never above benign ones."""
    made: list[tuple[str, str, Label, Verdict, float, float]] = [
        *((f"a{i}", "a", "harmful", "complied", 0.95, 0.1) for i in range(12)),
        *((f"b{i}", "b", "harmful", "complied", 0.1, 0.1) for i in range(12)),
        *((f"r{i}", "a", "harmful", "refused", 0.95, 0.95) for i in range(12)),
        *((f"c{i}", "c", "benign", "complied", 0.2, 0.1) for i in range(20)),
    ]
    traces = [trace(name, source, label, verdict) for name, source, label, verdict, *_ in made]
    cliffs = [
        made_cliff(name, plateau, final, label=label, verdict=verdict)
        for name, _, label, verdict, plateau, final in made
    ]
    table = by_source(traces, cliffs, 0)
    shares = {name: cells[COLUMNS.index(WITH_CLIFF)] for name, cells in table.rows.items()}
    assert (shares["a"].value, shares["a"].n) == (1, 12)
    assert (shares["b"].value, shares["b"].n) == (0, 12)
    assert shares["c"] == Cell(None, None, 0)
    assert "have a cliff: a 1.00 [0.76, 1.00], n = 12; b 0.00 [0.00, 0.24], n = 12" in table.finding
    alike = by_source([t for t in traces if t.prompt.id[0] != "b"], cliffs, 0)
    assert "differ" not in alike.finding


def test_answers_without_a_verdict_and_near_duplicates_count_as_in_every_rate() -> None:
    made = [trace(f"h{i}", "a", "harmful", "complied") for i in range(8)]
    alike = [replace(one, prompt=replace(one.prompt, group="same")) for one in made]
    unscored = trace("u", "a", "harmful", "unscored")
    (row,) = by_source([*alike, unscored], [], 0).rows.values()
    cell = row[COLUMNS.index("attack success")]
    assert (cell.value, cell.n, cell.interval) == (1.0, 8, wilson(1, 1))
