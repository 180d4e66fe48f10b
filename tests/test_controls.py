"""Tables of controls: hand-made cases for what each one counts."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path

import pytest
from made_cliffs import BENIGN, REFUSED, made_cliff, made_cliffs

from refusal_cliff.controls.arms import UNCHANGED, Arm
from refusal_cliff.controls.preset import ALL, OURS, Reading, preset_table, variants
from refusal_cliff.controls.table import (
    Cell,
    ControlTable,
    cell_text,
    markdown,
    mean_cell,
)
from refusal_cliff.controls.taxonomy import KINDS, taxonomy
from refusal_cliff.controls.together import TOGETHER, TOP, together_table
from refusal_cliff.data.types import Label, Prompt, Trace, Verdict
from refusal_cliff.errors import RefusalCliffError
from refusal_cliff.io import read_as, write_json
from refusal_cliff.model.subject import Head
from refusal_cliff.stages.control import CONTROLS, chosen_controls
from refusal_cliff.stages.study import PRESETS


def trace(name: str, verdict: Verdict, label: Label = "harmful", category: str = "") -> Trace:
    return Trace(Prompt(name, name, label, category=category), (1,), None, "", "", True, verdict)


def test_sets_of_heads_are_compared_with_the_model_as_it_is() -> None:
    before = [trace("a", "complied"), trace("b", "complied"), trace("c", "complied", "benign")]
    top = [trace("a", "complied"), trace("b", "complied"), trace("c", "refused", "benign")]
    chosen = [trace("a", "refused"), trace("b", "complied"), trace("c", "complied", "benign")]
    table = together_table(
        {UNCHANGED: Arm(before), TOP: Arm(top), TOGETHER: Arm(chosen)},
        {TOP: [Head(1, 0), Head(2, 1)], TOGETHER: [Head(3, 4)]},
    )
    cells = {name: dict(zip(table.columns, row, strict=True)) for name, row in table.rows.items()}
    assert [cells[name]["ASR"].value for name in (UNCHANGED, TOP, TOGETHER)] == [1, 1, 0.5]
    assert [cells[name]["change of ASR"].value for name in (TOP, TOGETHER)] == [0, -0.5]
    assert [cells[name]["benign answered"].value for name in (TOP, TOGETHER)] == [0, 1]
    assert "chosen together out (1): 0.50" in table.finding
    assert "top of the ranking out: 1.0 2.1; chosen together out: 3.4" in table.notes[0]


def test_every_kind_of_trace_is_counted_where_it_belongs() -> None:
    traces = [
        trace("a", "refused", category="theft"),
        trace("b", "complied", category="theft"),
        trace("c", "complied"),
        trace("d", "complied"),
        trace("e", "harmful"),
        trace("f", "complied"),
        trace("g", "truncated"),
        trace("h", "complied", "benign"),
    ]
    cliffs = [
        made_cliff("a", 0.9, 0.9, verdict="refused"),
        made_cliff("b", 0.9, 0.1),
        made_cliff("c", 0.9, 0.1, late=False),
        made_cliff("d", 0.04, 0.1),
        made_cliff("e", 0.9, 0.95, verdict="harmful"),
        *REFUSED,
        *BENIGN,
    ]
    table = taxonomy(traces, cliffs)
    counts = {
        kind: round((cell.value or 0) * (cell.n or 0))
        for kind, cell in zip(KINDS, table.rows["all harmful prompts"], strict=True)
    }
    assert counts == {
        "refused": 1,
        "fell off the cliff": 1,
        "argued away": 1,
        "never recognised": 1,
        "complied, score stayed": 1,
        "undecided": 0,
        "truncated or unscored": 2,
    }
    assert [cell.value for cell in table.rows["theft"]] == [0.5, 0.5, 0, 0, 0, 0, 0]
    assert "1 of 4 compliances" in table.finding
    assert "answered: 1 of 1" in table.notes[0]


def test_a_trace_with_nothing_to_hold_it_against_is_undecided() -> None:
    table = taxonomy([trace("b", "complied")], [made_cliff("b", 0.9, 0.1)])
    assert table.rows["all harmful prompts"][KINDS.index("undecided")].value == 1


def test_no_compliance_needs_no_remedy() -> None:
    assert "No harmful prompt" in taxonomy([trace("a", "refused")], []).finding


def test_a_table_survives_its_file_and_shows_n_once(tmp_path: Path) -> None:
    cells = (Cell(0.25, (0.1, 0.5), 8), Cell(0.5, None, 8))
    rows = {
        "same": cells,
        "other": (Cell(1.0, None, 3), Cell(2.0, None, 4)),
        "none": (Cell(None),) * 2,
    }
    table = ControlTable("Why?", "us", ("one", "two"), rows, "Because.", ("A note.",))
    write_json(tmp_path / "t.json", asdict(table))
    assert read_as(tmp_path / "t.json", ControlTable) == table
    text = markdown(table)
    assert "| same | 0.25 [0.10, 0.50] | 0.50 | 8 |" in text
    assert "| other | 1.00, n = 3 | 2.00, n = 4 |  |" in text
    assert "| none | – | – |  |" in text


def test_a_row_of_the_wrong_length_is_refused() -> None:
    with pytest.raises(ValueError, match="1 cells for 2"):
        ControlTable("?", "us", ("a", "b"), {"x": (Cell(1.0),)}, "")


def test_a_mean_of_nothing_has_no_value() -> None:
    assert mean_cell([], []) == Cell(None, None, 0)
    found = mean_cell([1.0, 3.0], ["a", "b"])
    assert found.value == 2.0
    assert found.interval == (1.0, 3.0)


def test_controls_are_named_or_all() -> None:
    assert chosen_controls(["all"]) == tuple(CONTROLS)
    assert chosen_controls([]) == ()
    with pytest.raises(RefusalCliffError, match="Choose one of: all, taxonomy"):
        chosen_controls(["taxonomie"])


def test_definitions_are_compared_with_ours() -> None:
    high, flat = made_cliffs(12, 0.9, 0.1), made_cliffs(12, 0.3, 0.2)
    low = made_cliffs(25, 0.4, 0.1, label="benign")
    after = [trace("a", "refused"), trace("b", "complied"), trace("c", "complied", "benign")]
    found, innocent = Head(3, 1), Head(2, 0)
    table = preset_table(
        {
            OURS: Reading([*high, *REFUSED, *low], [found], after),
            ALL: Reading([*flat, *REFUSED, *low], [found, innocent], after),
        }
    )
    ours = [0.9, 0.1, 0.8, 0.4, 1.0, 1.0, 0.5, 1.0]
    assert [cell.value for cell in table.rows[OURS]] == pytest.approx(ours)
    theirs = [0.3, 0.2, 0.1, 0.4, 2.0, 1.0, 0.5, 1.0]
    assert [cell.value for cell in table.rows[ALL]] == pytest.approx(theirs)
    assert f"verdict is: cliff. With {ALL} it is: no cliff. At most 24% of the 12" in table.finding
    assert f"{ALL}: 3.1, 2.0." in table.notes[0]
    alike = preset_table({OURS: Reading([*high, *REFUSED], [], after)})
    assert alike.finding == "Under all definitions the verdict is: undecided."
    assert [alike.rows[OURS][place].value for place in (3, 5)] == [None, None]


def test_the_paper_differs_from_ours_in_four_definitions() -> None:
    ours, *single, paper = variants().values()
    assert (ours, paper) == (PRESETS["default"], PRESETS["paper"])
    for name in ("read_point", "pool", "proven", "renormalised"):
        alone = replace(ours, **{name: getattr(paper, name)})
        assert alone != ours
        assert alone in single
    assert len(single) == 4


def test_nothing_has_no_sign() -> None:
    assert cell_text(Cell(-0.001, (-0.004, 0.001))) == "0.00 [0.00, 0.00]"
    assert cell_text(Cell(-0.006)) == "-0.01"
