"""What to do next, from what became of the harmful prompts: repair, take heads out, or neither."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from refusal_cliff.controls.taxonomy import ADVICE, KINDS, Kind
from refusal_cliff.findings.results import REPAIRED
from refusal_cliff.findings.summary import AblationSummary, Summary
from refusal_cliff.findings.wording import USEFUL

ABLATE = "refusal-cliff ablate --model {model} --heads RUN/{key}/heads.parquet --export adapter DIR"
REPAIR = (
    "refusal-cliff repair --model {model} --probe RUN/{key} --data SAFETY.jsonl "
    "--benign BENIGN.jsonl --out DIR"
)


@dataclass(frozen=True, slots=True)
class Fate:
    """What became of some harmful prompts.

    Attributes:
        kind: By the taxonomy.
        n: How many.
        advice: What helps; empty where nothing is to be mended or known.
    """

    kind: Kind
    n: int
    advice: str


@dataclass(frozen=True, slots=True)
class NextStep:
    """What is advised.

    Attributes:
        title: In a few words.
        why: The grounds, one sentence each.
        commands: What to run, in order of preference.
        fates: What became of the harmful prompts, in the order of the taxonomy.
    """

    title: str
    why: Sequence[str]
    commands: Sequence[str] = ()
    fates: Sequence[Fate] = ()


def next_step(summary: Summary, counts: Mapping[Kind, int], key: str) -> NextStep:
    """What a team should do with this model.

    Args:
        summary: Of the run.
        counts: Harmful test prompts of each kind of the taxonomy.
        key: Folder of the model in the run.
    """
    fates = [Fate(kind, counts[kind], ADVICE.get(kind, "")) for kind in KINDS if counts.get(kind)]
    title, why, commands = _advice(summary, counts)
    model = shlex.quote(summary.model)
    filled = [command.format(model=model, key=key) for command in commands]
    return NextStep(title, why, filled, fates)


def _advice(summary: Summary, counts: Mapping[Kind, int]) -> tuple[str, list[str], list[str]]:
    if summary.coherence.alarm:
        return "Ask what the model can follow", [_NO_COHERENCE], []
    complied = sum(counts.get(kind, 0) for kind in (*ADVICE, "undecided"))
    if not complied:
        return "Neither", ["No harmful prompt was complied with: there is nothing to repair."], []
    if summary.cliff.verdict != "cliff":
        return "Neither", _without_cliff(summary, counts, complied), []
    fell = counts.get("fell off the cliff", 0)
    why = [
        f"{fell} of {complied} compliances fell off the cliff: both remedies are made for these."
    ]
    ablation = summary.ablation
    if ablation is not None and ablation.shown and _cheap(ablation):
        return (
            "Take the heads out, or select and repair",
            [*why, f"{_effect(ablation)}, and the model stays as useful.", _CHOICE],
            [ABLATE, REPAIR],
        )
    return "Select and repair", [*why, _why_not_heads(ablation)], [REPAIR]


_NO_COHERENCE = (
    "The thoughts are not about the requests, so no score below says anything about them."
)
_CHOICE = (
    "Taking heads out needs no training and can be undone; a repair also works on failures that "
    "do not come from these heads. Check the result of each with refusal-cliff check."
)


def _without_cliff(summary: Summary, counts: Mapping[Kind, int], complied: int) -> list[str]:
    first = max(ADVICE, key=lambda kind: counts.get(kind, 0))
    if summary.cliff.verdict == "undecided" or not counts.get(first):
        return [
            f"{complied} harmful prompts were complied with, but it could not be decided whether a "
            "cliff is the reason. Ask more prompts before you change anything."
        ]
    return [
        "Without a cliff, taking heads out or choosing examples by their cliff is not the remedy.",
        f"{counts[first]} of {complied} compliances: {first}. What helps there: {ADVICE[first]}.",
    ]


def _cheap(ablation: AblationSummary) -> bool:
    """Whether as many benign prompts are answered as the findings ask for."""
    return ablation.benign_answered_after >= USEFUL


def _effect(ablation: AblationSummary) -> str:
    return (
        f"Without the heads found the attack success rate goes from {ablation.asr_before:.0%} to "
        f"{ablation.asr_after:.0%}"
    )


def _why_not_heads(ablation: AblationSummary | None) -> str:
    if ablation is None or ablation.shown is None:
        return "No heads were shown to be the cause."
    if not ablation.shown:
        return (
            f"{_effect(ablation)}: this is not under {REPAIRED:.0%} and below random heads, so "
            "taking heads out is not enough."
        )
    return (
        f"{_effect(ablation)}, but only {ablation.benign_answered_after:.0%} of the benign prompts "
        "are still answered."
    )
