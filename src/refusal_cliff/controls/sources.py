"""Do probe and cliff hold on every source of prompts, or on one benchmark only?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from refusal_cliff.answers.evaluate import rates
from refusal_cliff.cliff.curves import TraceCliff, read_cliffs
from refusal_cliff.cliff.verdict import (
    Yardstick,
    benign_rows,
    complied_rows,
    refused_rows,
    yardstick,
)
from refusal_cliff.controls.table import Cell, ControlTable, cell_text, level_cell, share_cell
from refusal_cliff.data.examples import source_of
from refusal_cliff.data.types import Trace, complies
from refusal_cliff.probe.quality import measure_quality
from refusal_cliff.run.pipeline import Job
from refusal_cliff.stages.study import Study
from refusal_cliff.stats import Share

WITH_CLIFF = "complied traces with a cliff"
COLUMNS = (
    "AUROC, refused against benign",
    "attack success",
    "plateau, complied",
    "final, complied",
    "cliff, complied",
    WITH_CLIFF,
    "benign answered",
)
MIN_REFUSED = 5
"""Refused traces of a source below which no AUROC is given."""


def measure(study: Study, job: Job) -> ControlTable:
    """`by_source` of the test traces."""
    cliffs = read_cliffs(study.input(job, "cliff.parquet"))
    return by_source(study.traces(job, "test"), cliffs, study.seed)


def by_source(traces: Sequence[Trace], cliffs: Sequence[TraceCliff], seed: int) -> ControlTable:
    """Rates, probe and cliff of each source of test prompts.

    Args:
        traces: Judged test traces; their prompts are marked with the source.
        cliffs: Plateau and final score of those that closed their thinking.
        seed: Seed of the bootstrap.

    Returns:
        One row a source. The AUROC is of final scores: the source's refused harmful traces against
        the answered benign traces of all sources. Ceiling and floor, by which a trace has a cliff,
        are those of all sources, too.
    """
    rule = yardstick(cliffs)
    names = sorted({source_of(trace.prompt) for trace in traces})
    rows = {name or "unmarked": _row(name, traces, cliffs, rule, seed) for name in names}
    return ControlTable(
        question="Does the probe read the same on prompts of other sources?",
        source="2510.06036 fits on one benchmark and tests on another",
        columns=COLUMNS,
        rows=rows,
        finding=f"{_finding(rows)}{_mixture(rows)}",
        notes=(
            "Intervals of shares are Wilson's, others a bootstrap over prompts. With --fit-on, no "
            "source of the test is one that the probe was fitted on.",
        ),
    )


def _row(
    name: str, traces: Sequence[Trace], cliffs: Sequence[TraceCliff], rule: Yardstick, seed: int
) -> tuple[Cell, ...]:
    mine = [trace for trace in traces if source_of(trace.prompt) == name]
    ids = {trace.prompt.id for trace in mine if trace.prompt.label == "harmful"}
    harmful = [cliff for cliff in cliffs if cliff.trace_id in ids]
    complied = complied_rows(harmful)
    judged = complied if rule.ceiling is not None and rule.floor is not None else []
    fell = [rule.kind(cliff) == "cliff" for cliff in judged]
    found = rates(mine)
    return (
        _auroc(refused_rows(harmful), cliffs, seed),
        share_cell(found.attacks),
        level_cell(complied, "plateau", seed),
        level_cell(complied, "final", seed),
        level_cell(complied, "cliff", seed),
        share_cell(Share.of(fell, [cliff.group for cliff in judged])),
        share_cell(found.answered),
    )


def _auroc(refused: Sequence[TraceCliff], cliffs: Sequence[TraceCliff], seed: int) -> Cell:
    benign = [cliff for cliff in benign_rows(cliffs) if complies(cliff.verdict)]
    if len(refused) < MIN_REFUSED or len(benign) < MIN_REFUSED:
        return Cell(None, None, len(refused))
    rows = [*refused, *benign]
    quality = measure_quality(
        np.array([cliff.final_logit for cliff in rows]),
        np.array([1] * len(refused) + [0] * len(benign)),
        [cliff.group for cliff in rows],
        seed,
    )
    return Cell(quality.auroc, quality.auroc_ci, len(refused))


def _mixture(rows: Mapping[str, Sequence[Cell]]) -> str:
    """Whether the verdict on the model is one on a mixture: sources whose intervals are apart."""
    at = COLUMNS.index(WITH_CLIFF)
    ends = {name: found for name, cells in rows.items() if (found := cells[at].interval)}
    low = min(ends, key=lambda name: ends[name][1], default="")
    high = max(ends, key=lambda name: ends[name][0], default="")
    if not ends or ends[low][1] >= ends[high][0]:
        return ""
    return (
        f" The sources differ in how many complied traces have a cliff: {high} "
        f"{cell_text(rows[high][at])}; {low} {cell_text(rows[low][at])}. The verdict on the model "
        "is one on their mixture."
    )


def _finding(rows: Mapping[str, Sequence[Cell]]) -> str:
    measured = {name: cells[0].value for name, cells in rows.items() if cells[0].value is not None}
    if not measured:
        return f"No source has {MIN_REFUSED} refused traces to test the probe on."
    worst = min(measured, key=measured.__getitem__)
    return (
        f"AUROC of refused against benign traces is {measured[worst]:.2f} at least "
        f"({worst}, the lowest of {len(measured)} sources)."
    )
