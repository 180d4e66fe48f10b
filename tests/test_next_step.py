"""What is advised follows from the verdict, what became of the prompts, and the ablation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
from report_example import example_summary

from refusal_cliff.controls.taxonomy import Kind
from refusal_cliff.findings.summary import Summary
from refusal_cliff.findings.wording import next_step

FELL: Mapping[Kind, int] = {"refused": 10, "fell off the cliff": 30, "argued away": 2}


def summary(verdict: str = "cliff", **ablation: Any) -> Summary:
    """The example's, with another verdict and another effect of taking heads out."""
    whole = example_summary()
    assert whole.ablation is not None
    told = {"shown": True, "asr_before": 0.8, "asr_after": 0.02, "benign_answered_after": 0.99}
    return whole.model_copy(
        update={
            "cliff": whole.cliff.model_copy(update={"verdict": verdict}),
            "ablation": whole.ablation.model_copy(update=told | ablation),
        }
    )


def test_heads_that_are_proven_and_cheap_may_be_taken_out() -> None:
    found = next_step(summary(), FELL, "model")
    assert found.title == "Take the heads out, or select and repair"
    assert "30 of 32 compliances fell off the cliff" in found.why[0]
    assert "from 80% to 2%" in found.why[1]
    assert [command.split()[1] for command in found.commands] == ["ablate", "repair"]
    assert "RUN/model/heads.parquet" in found.commands[0]
    assert [(fate.kind, fate.n) for fate in found.fates] == list(FELL.items())
    assert [bool(fate.advice) for fate in found.fates] == [False, True, True]


@pytest.mark.parametrize(
    ("ablation", "why"),
    [
        ({"shown": False, "asr_after": 0.5}, "not enough"),
        ({"shown": None}, "No heads were shown"),
        ({"benign_answered_after": 0.5}, "only 50% of the benign prompts"),
    ],
)
def test_else_examples_are_selected(ablation: dict[str, Any], why: str) -> None:
    found = next_step(summary(**ablation), FELL, "model")
    assert found.title == "Select and repair"
    assert why in found.why[1]
    assert [command.split()[1] for command in found.commands] == ["repair"]


def test_without_a_cliff_what_repairs_one_is_no_remedy() -> None:
    counts: Mapping[Kind, int] = {"refused": 3, "never recognised": 20, "fell off the cliff": 2}
    found = next_step(summary("no cliff"), counts, "model")
    assert (found.title, found.commands) == ("Not what repairs a cliff: there is none", [])
    assert "20 of 22 compliances: never recognised" in found.why[1]
    assert "safety data on these topics" in found.why[1]


def test_what_is_undecided_needs_more_prompts() -> None:
    found = next_step(summary("undecided"), {"refused": 3, "undecided": 5}, "model")
    assert found.title == "Ask more prompts first"
    assert "5 harmful prompts were complied with" in found.why[0]
    assert "Ask more prompts" in found.why[0]


def test_nothing_to_mend() -> None:
    found = next_step(summary("no cliff"), {"refused": 30, "truncated or unscored": 1}, "model")
    assert found.title == "Nothing to repair"
    assert "No harmful prompt" in found.why[0]


def test_thoughts_about_something_else_come_first() -> None:
    whole = summary()
    alarm = whole.coherence.model_copy(update={"alarm": True})
    found = next_step(whole.model_copy(update={"coherence": alarm}), FELL, "model")
    assert found.title == "Ask what the model can follow"
    assert not found.commands
