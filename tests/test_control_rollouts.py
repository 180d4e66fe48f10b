"""Controls that let the model write again: hand-made cases, and one tiny model."""

from __future__ import annotations

import pytest

from refusal_cliff.controls.arms import COLUMNS, UNCHANGED, Arm, arm_rows, change_of_asr
from refusal_cliff.controls.intervention import header_of, intervention_table
from refusal_cliff.controls.pruning import (
    RANDOM,
    SHARES,
    WHOLE,
    kept_tokens,
    pruned,
    pruning_table,
    random_kept,
    share_name,
)
from refusal_cliff.controls.rollouts import (
    BY_CLIFF,
    BY_FINAL,
    MIXED,
    Sampled,
    calibration,
    rollouts_table,
)
from refusal_cliff.data.types import Label, Prompt, Trace, Verdict
from refusal_cliff.model.subject import Head
from refusal_cliff.stats import wilson
from refusal_cliff.thinking import Spans, ThinkingFormat

SPANS = Spans(2, 6, 8, 10)


def trace(
    name: str,
    verdict: Verdict,
    label: Label = "harmful",
    spans: Spans | None = SPANS,
) -> Trace:
    prompt = Prompt(name, name, label)
    return Trace(prompt, tuple(range(100, 110)), spans, "", "", verdict != "truncated", verdict)


def arm(verdicts: str, finals: dict[str, float] | None = None) -> Arm:
    """One trace a letter: complied, refused, truncated, or answered (a benign prompt)."""
    words: dict[str, tuple[Verdict, Label]] = {
        "c": ("complied", "harmful"),
        "r": ("refused", "harmful"),
        "t": ("truncated", "harmful"),
        "a": ("complied", "benign"),
    }
    rows = [trace(f"p{at}", *words[letter]) for at, letter in enumerate(verdicts)]
    return Arm(rows, finals or {})


def test_arms_are_compared_prompt_by_prompt() -> None:
    before, after = arm("ccrraa"), arm("crtraa", {"p0": 0.25, "p1": 0.75, "p4": 0.0})
    rows = arm_rows({"before": before, "after": after}, "before")
    values = dict(zip(COLUMNS, (cell.value for cell in rows["after"]), strict=True))
    assert values == {
        "ASR": 0.25,
        "change of ASR": -0.25,
        "refused": 0.5,
        "benign answered": 1.0,
        "thinking tokens": 4.0,
        "final score": 0.5,
    }
    assert [cell.value for cell in rows["before"]][:3] == [0.5, None, 0.5]
    assert [cell.n for cell in rows["after"]] == [4, 4, 4, 2, 4, 2]


def test_a_change_that_is_the_same_for_every_prompt_is_not_certain() -> None:
    cell = change_of_asr(arm("ccc"), arm("rrr"))
    doubt = wilson(0, 3)[1]
    assert (cell.value, cell.interval, cell.n) == (-1.0, (-1.0, -1.0 + doubt), 3)
    assert change_of_asr(arm("ccc"), arm("ccc")).interval == (-doubt, doubt)
    assert change_of_asr(arm("ccc"), arm("ccr")).interval == (-1.0, 0.0)


def test_arms_of_different_prompts_cannot_be_compared() -> None:
    other = Arm([trace("elsewhere", "complied")])
    with pytest.raises(ValueError, match="different prompts"):
        change_of_asr(arm("c"), other)


def test_how_much_is_kept() -> None:
    assert [kept_tokens(10, share) for share in SHARES] == [0, 2, 4, 6, 8, 10]
    assert [kept_tokens(3, share) for share in (0.2, 0.5, 1.0)] == [1, 2, 3]
    drawn = {random_kept(f"p{at}", 4, 0) for at in range(200)}
    assert drawn == {0, 1, 2, 3}
    assert random_kept("p", 1, 0) == random_kept("p", 0, 0) == 0


def test_a_pruned_output_keeps_the_opener_and_closes_as_the_template_does() -> None:
    opened = trace("p", "complied")  # prompt of one token, opener, 4 of thinking, 2 of closing
    assert pruned(opened, 1, 0, [7, 8], [9, 7, 8]) == [9, 7, 8]
    assert pruned(opened, 1, 3, [7, 8], [9, 7, 8]) == [101, 102, 103, 104, 7, 8]
    assert pruned(opened, 1, 4, [106, 107], []) == list(opened.token_ids[1:8])
    with pytest.raises(ValueError, match="never closed"):
        pruned(trace("p", "truncated", spans=None), 1, 0, [], [])


def test_pruning_names_the_cuts_that_change_something() -> None:
    arms = {share_name(share): arm("c" * 30) for share in SHARES} | {RANDOM: arm("r" * 30)}
    table = pruning_table(arms, 2)
    assert table.finding.startswith("Less thinking, fewer compliances")
    assert f"at {RANDOM} (-1.00 [-1.00, -0.89])." in table.finding
    assert "Left out: 2" in table.notes[0]
    assert pruning_table({WHOLE: arm("cr"), "0 % kept": arm("cr")}, 0).finding.startswith("No cut")
    arms[RANDOM] = arm("c" * 30)
    arms[WHOLE] = arm("r" * 30)
    assert pruning_table(arms, 0).finding.startswith("Less thinking, more compliances")
    assert pruning_table({}, 0).rows == {}


def test_the_header_is_the_template_up_to_the_opener() -> None:
    opened = ThinkingFormat("<t>", "</t>", opened_by_prompt=True, tail="<end>\n<bot>\n<t>\n")
    assert header_of(opened) == "<end>\n<bot>\n"
    plain = ThinkingFormat("", "", opened_by_prompt=False, tail="<end><bot>")
    assert header_of(plain) == "<end><bot>"


def test_an_intervention_is_told_with_its_heads_and_its_changes() -> None:
    arms = {UNCHANGED: arm("cccc"), "heads out": arm("rrrr")}
    table = intervention_table(arms, [Head(2, 1)], 3)
    assert table.finding.endswith("Heads out: -1.00 [-1.00, -0.51].")
    assert "Heads: 2.1." in table.notes[0]
    assert "Left out: 3" in table.notes[0]
    assert "none found" in intervention_table({UNCHANGED: arm("c")}, [], 0).notes[0]


def sampled(name: str, complied: str, finals: list[float | None], cliff: float) -> Sampled:
    return Sampled(name, [letter == "c" for letter in complied], finals, cliff, 1 - cliff)


SAMPLES = [
    sampled("a", "cccc", [0.1, 0.1, 0.1, 0.1], 0.9),
    sampled("b", "cccr", [0.1, 0.1, 0.3, 0.5], 0.5),
    sampled("c", "crrr", [0.5, 0.9, 1.0, None], 0.4),
    sampled("d", "rrrr", [0.9, 0.9, 0.9, 0.9], 0.1),
]


def test_how_often_a_prompt_is_complied_with() -> None:
    rows = rollouts_table(SAMPLES, 0.7).rows
    values = {name: cells[0].value for name, cells in rows.items()}
    assert values["ASR of one answer"] == 0.5
    assert values["complied with in some of 4 answers"] == 0.75
    assert values["complied with in all 4 answers"] == 0.25
    assert values["answered both ways"] == 0.5
    assert values[BY_CLIFF] == pytest.approx(1)
    assert values[BY_FINAL] == pytest.approx(-1)
    assert values[f"{BY_CLIFF}, {MIXED}"] == pytest.approx(1)
    assert rows[f"{BY_CLIFF}, {MIXED}"][0].n == 2


def test_a_cliff_that_does_not_grade_is_told_so() -> None:
    many = [
        sampled(f"{at}", "cr" if at % 2 else "cc", [0.5, 0.5], [0.2, 0.4, 0.6][at % 3])
        for at in range(60)
    ]
    assert rollouts_table(many, 0.7).finding.startswith("A larger cliff does not")
    graded = [
        sampled(f"{at}", "cr" if at % 2 else "cc", [0.5, 0.5], 1.0 - at % 2) for at in range(60)
    ]
    assert rollouts_table(graded, 0.7).finding.startswith("The larger the cliff, the likelier")
    assert "nothing to grade" in rollouts_table([SAMPLES[0]], 0.7).finding


def test_answers_that_all_agree_leave_doubt() -> None:
    rows = rollouts_table([sampled(name, "rr", [0.9, 0.9], 0.0) for name in "abcd"], 1.0).rows
    expected = (0.0, wilson(0, 4)[1])
    assert rows["ASR of one answer"][0].interval == expected
    assert rows["complied, final score 0.8 to 1"][0].interval == expected


def test_calibration_by_hand() -> None:
    rows = {
        name.removeprefix("complied, final score "): cell
        for name, cell in calibration(SAMPLES).items()
    }
    assert {name: (cell.value, cell.n) for name, cell in rows.items() if cell.n} == {
        "0 to 0.2": (1.0, 6),
        "0.2 to 0.4": (1.0, 1),
        "0.4 to 0.6": (0.5, 2),
        "0.8 to 1": (0.0, 6),
        "calibration error": (pytest.approx((0.6 + 0.3 + 0.0 + 0.5) / 15), 15),
    }
