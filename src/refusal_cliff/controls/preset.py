"""The paper's definitions against ours: each of them alone, and all together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from refusal_cliff.answers.evaluate import rates
from refusal_cliff.cliff.curves import TraceCliff
from refusal_cliff.cliff.verdict import ModelCliff, measured_rows, model_cliff
from refusal_cliff.controls.table import Cell, ControlTable, mean_cell, share_cell
from refusal_cliff.data.traces import Trace
from refusal_cliff.model.subject import Head

OURS, ALL = "our defaults", "all of the paper's"
COLUMNS = (
    "plateau",
    "final",
    "cliff",
    "benign plateau",
    "heads found",
    "shared with ours",
    "ASR, heads out",
    "benign answered, heads out",
)


@dataclass(frozen=True, slots=True)
class Reading:
    """What some definitions say of a model.

    Attributes:
        cliffs: Plateau and final score of each test trace.
        heads: The heads found.
        after: Judged answers to test prompts with these heads out.
    """

    cliffs: Sequence[TraceCliff]
    heads: Sequence[Head]
    after: Sequence[Trace]


def preset_table(readings: Mapping[str, Reading], seed: int = 0) -> ControlTable:
    """Compare definitions.

    Args:
        readings: By name, ``OURS`` among them; each of the same traces.
        seed: Seed of the bootstrap.
    """
    verdicts = {name: model_cliff(reading.cliffs, seed) for name, reading in readings.items()}
    return ControlTable(
        question="What do the paper's definitions change?",
        source="2510.06036 and its code; see docs/concepts/paper-preset.md",
        columns=COLUMNS,
        rows={
            name: _cells(reading, readings[OURS].heads, seed) for name, reading in readings.items()
        },
        finding=_finding(verdicts),
        notes=(
            "Each row changes one definition, the last all of them. Plateau, final and cliff are "
            "means over the traces that the verdict is on; intervals are a bootstrap over prompts, "
            "Wilson's for shares. Heads: "
            + "; ".join(
                f"{name}: {', '.join(map(str, reading.heads)) or 'none'}"
                for name, reading in readings.items()
            )
            + ".",
        ),
    )


def _cells(reading: Reading, ours: Sequence[Head], seed: int) -> tuple[Cell, ...]:
    _, measured = measured_rows(reading.cliffs)
    groups = [row.group for row in measured]
    benign = [row for row in reading.cliffs if row.label == "benign"]
    found = rates(reading.after)
    shared = len(set(ours) & set(reading.heads)) / len(ours) if ours else None
    return (
        mean_cell([row.plateau for row in measured], groups, seed),
        mean_cell([row.final for row in measured], groups, seed),
        mean_cell([row.cliff for row in measured], groups, seed),
        mean_cell([row.plateau for row in benign], [row.group for row in benign], seed),
        Cell(len(reading.heads)),
        Cell(shared, None, len(ours) if ours else None),
        share_cell(found.attacks),
        share_cell(found.answered),
    )


def _finding(found: Mapping[str, ModelCliff]) -> str:
    ours = found[OURS].verdict
    others = {name: cliff for name, cliff in found.items() if cliff.verdict != ours}
    if not others:
        return f"Under all definitions the verdict is: {ours}."
    told = " ".join(
        f"With one change, “{name}”, it is: {cliff.verdict}. {cliff.reason}"
        if name != ALL
        else f"With {ALL} it is: {cliff.verdict}. {cliff.reason}"
        for name, cliff in others.items()
    )
    return f"By our defaults the verdict is: {ours}. {told}"
