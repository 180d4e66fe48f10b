"""The paper's definitions against ours: each of them alone, and all together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from refusal_cliff.answers.evaluate import rates
from refusal_cliff.cliff.curves import TraceCliff, cliffs_of
from refusal_cliff.cliff.scores import score_traces
from refusal_cliff.cliff.verdict import ModelCliff, benign_rows, measured_rows, model_cliff
from refusal_cliff.controls.arms import first_of_each, limited
from refusal_cliff.controls.table import Cell, ControlTable, level_cell, share_cell
from refusal_cliff.data.traces import closed, verdict_groups
from refusal_cliff.data.types import Trace
from refusal_cliff.heads.find import explained
from refusal_cliff.heads.table import HeadRow, measure_heads, select_heads
from refusal_cliff.model.subject import Head
from refusal_cliff.probe.fit import ProbeSet, ReadPoint
from refusal_cliff.probe.traces import fit_on_traces
from refusal_cliff.run.pipeline import Job
from refusal_cliff.stages.study import PRESETS, Definitions, Study

READ_POINTS: tuple[ReadPoint, ...] = ("resid_post", "final_norm")
TRACES, BENIGN = 40, 10
"""Fitting traces of either kind that heads are measured on."""
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


def variants() -> dict[str, Definitions]:
    """Ours, each of the paper's definitions alone, and all of them."""
    ours, paper = PRESETS["default"], PRESETS["paper"]
    return {
        OURS: ours,
        "probe after the final norm": replace(ours, read_point=paper.read_point),
        "plateau is the maximum": replace(ours, pool=paper.pool),
        "heads by contribution alone": replace(ours, proven=paper.proven),
        "ablation renormalised": replace(ours, renormalised=paper.renormalised),
        ALL: paper,
    }


def measure(study: Study, job: Job) -> ControlTable:
    """Read the run's traces under every variant; only ablated answers are written anew."""
    fit, test = study.traces(job, "fit"), study.traces(job, "test")
    asked = first_of_each(test)
    fitted = {point: _fitted(study, point, fit) for point in READ_POINTS}
    scores = {
        point: score_traces(study.subject, closed(test), probes)
        for point, (probes, _) in fitted.items()
    }
    answered: dict[tuple[tuple[Head, ...], bool], list[Trace]] = {}
    readings: dict[str, Reading] = {}
    for name, definitions in variants().items():
        probes, rows = fitted[definitions.read_point]
        heads = tuple(sorted(select_heads(rows, proven=definitions.proven)))
        key = (heads, definitions.renormalised)
        if key not in answered:
            by = replace(study, definitions=definitions)
            prompts = [trace.prompt for trace in asked]
            out = [heads] * len(prompts)
            answered[key] = by.write(prompts, job, out) if heads else asked
        cliffs = cliffs_of(scores[definitions.read_point], probes.row, definitions.pool)
        readings[name] = Reading(cliffs, heads, answered[key])
    return limited(preset_table(readings, study.seed))


def _fitted(study: Study, point: ReadPoint, fit: Sequence[Trace]) -> tuple[ProbeSet, list[HeadRow]]:
    """Probes at a read point, and all heads measured with the chosen one."""
    traces = closed(fit)
    probes = fit_on_traces(study.subject, traces, read_point=point, seed=study.seed)
    benign = verdict_groups(traces)["benign"][:BENIGN]
    rows = measure_heads(
        study.subject, explained(traces)[:TRACES], [], benign, probes.chosen, seed=study.seed
    )
    return probes, rows


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
    found = rates(reading.after)
    shared = len(set(ours) & set(reading.heads)) / len(ours) if ours else None
    return (
        level_cell(measured, "plateau", seed),
        level_cell(measured, "final", seed),
        level_cell(measured, "cliff", seed),
        level_cell(benign_rows(reading.cliffs), "plateau", seed),
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
