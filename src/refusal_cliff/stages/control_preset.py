"""The control on definitions: the run read again as the paper reads it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from refusal_cliff.cliff.curves import cliffs_of
from refusal_cliff.cliff.scores import score_traces
from refusal_cliff.controls.preset import ALL, OURS, Reading, preset_table
from refusal_cliff.controls.table import ControlTable
from refusal_cliff.data.traces import Trace, closed, read_traces, verdict_groups
from refusal_cliff.heads.find import explained
from refusal_cliff.heads.table import HeadRow, measure_heads, select_heads
from refusal_cliff.model.subject import Head
from refusal_cliff.probe.fit import ProbeSet
from refusal_cliff.probe.provenance import ReadPoint
from refusal_cliff.probe.traces import fit_on_traces
from refusal_cliff.run.pipeline import Job
from refusal_cliff.stages.control_rollouts import first_of_each, limited
from refusal_cliff.stages.study import PRESETS, Definitions, Study

READ_POINTS: tuple[ReadPoint, ...] = ("resid_post", "final_norm")
TRACES, BENIGN = 40, 10
"""Fitting traces of either kind that heads are measured on."""


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


def compare_definitions(study: Study, job: Job) -> ControlTable:
    """Read the run's traces under every variant; only ablated answers are written anew."""
    fit, test = (
        read_traces(job.input(study.path(f"traces-{part}.parquet"))) for part in ("fit", "test")
    )
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
            answered[key] = _without(replace(study, definitions=definitions), asked, heads, job)
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


def _without(study: Study, asked: Sequence[Trace], heads: Sequence[Head], job: Job) -> list[Trace]:
    """Answers with some heads out, thinking written anew."""
    if not heads:
        return list(asked)
    return study.write([trace.prompt for trace in asked], job, [heads] * len(asked))
