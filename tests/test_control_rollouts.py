"""Controls that let the model write again: hand-made cases, and one tiny model."""

from __future__ import annotations

import pytest

from refusal_cliff.controls.arms import COLUMNS, Arm, arm_rows, change_of_asr
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
from refusal_cliff.data.traces import Label, Prompt, Trace, Verdict
from refusal_cliff.thinking import Spans

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


def test_a_change_that_is_the_same_for_every_prompt_is_certain() -> None:
    cell = change_of_asr(arm("ccc"), arm("rrr"))
    assert (cell.value, cell.interval, cell.n) == (-1.0, (-1.0, -1.0), 3)


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
    assert f"at {RANDOM} (-1.00 [-1.00, -1.00])." in table.finding
    assert "Left out: 2" in table.notes[0]
    assert pruning_table({WHOLE: arm("cr"), "0 % kept": arm("cr")}, 0).finding.startswith("No cut")
    arms[RANDOM] = arm("c" * 30)
    arms[WHOLE] = arm("r" * 30)
    assert pruning_table(arms, 0).finding.startswith("Less thinking, more compliances")
    assert pruning_table({}, 0).rows == {}
