"""Several answers to one prompt: how often it is complied with, and does the cliff grade that?"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np

from refusal_cliff.cliff.curves import read_cliffs
from refusal_cliff.controls.arms import final_scores, never_certain, parts
from refusal_cliff.controls.table import (
    BINS,
    EDGES,
    Cell,
    ControlTable,
    cell_text,
    mean_cell,
    share_cell,
)
from refusal_cliff.data.types import complies
from refusal_cliff.generate.sampling import repeated
from refusal_cliff.run.pipeline import Job
from refusal_cliff.stages.asking import each_once
from refusal_cliff.stages.study import Study
from refusal_cliff.stats import Share, bootstrap, spearman

SAMPLED, SAMPLES, TEMPERATURE = 60, 8, 0.7
"""Harmful test prompts that are answered several times, how often, and the paper's temperature."""
BY_CLIFF = "rank correlation of cliff and compliance"
BY_FINAL = "rank correlation of final score and compliance"
MIXED = "prompts answered both ways"
RESAMPLES = 1000


@dataclass(frozen=True, slots=True)
class Sampled:
    """What became of one prompt that was answered several times.

    Attributes:
        group: Near-duplicates share one.
        complied: Whether each answer complied; one that never ended did not.
        finals: Final score of each answer; ``None`` where its thinking never closed.
        cliff: Plateau − final of the trace that the run measured; ``None`` where it has none.
        final: Its final score.
    """

    group: str
    complied: Sequence[bool]
    finals: Sequence[float | None]
    cliff: float | None
    final: float | None

    @property
    def share(self) -> float:
        """Share of the answers that complied."""
        return sum(self.complied) / len(self.complied)

    @property
    def mixed(self) -> bool:
        """Whether it was answered both ways."""
        return len(set(self.complied)) > 1


def measure(study: Study, job: Job) -> ControlTable:
    """Harmful test prompts, several answers each, beside the cliff of the run's own trace."""
    probes = study.probes(job)
    traces = study.traces(job, "test")
    rows = read_cliffs(study.input(job, "cliff.parquet"))
    cliffs = {row.trace_id: (row.cliff, row.final) for row in rows}
    prompts = each_once([trace.prompt for trace in traces], "harmful")[:SAMPLED]
    drawing = replace(study.generation, temperature=TEMPERATURE, seed=study.seed)
    written = replace(study, generation=drawing).write(repeated(prompts, SAMPLES), job)
    finals = final_scores(study.subject, written, probes)
    found = [
        Sampled(
            prompt.group,
            [complies(trace.verdict) for trace in drawn],
            [finals.get(trace.prompt.id) for trace in drawn],
            *cliffs.get(prompt.id, (None, None)),
        )
        for prompt, drawn in zip(prompts, parts(written, SAMPLES), strict=True)
    ]
    return rollouts_table(found, TEMPERATURE, study.seed)


def rollouts_table(prompts: Sequence[Sampled], temperature: float, seed: int = 0) -> ControlTable:
    """Look at harmful prompts that were answered several times.

    Args:
        prompts: At least one, each answered equally often.
        temperature: Of the sampling.
        seed: Seed of the bootstrap over prompt groups.
    """
    n = len(prompts[0].complied)
    rows = {**_how_often(prompts, n, seed), **_graded(prompts, seed), **calibration(prompts, seed)}
    return ControlTable(
        question="Is a prompt complied with always or sometimes, and does the cliff grade that?",
        source="K-rollout labels as in 2606.25013 and in the paper's code",
        columns=("value",),
        rows={name: (cell,) for name, cell in rows.items()},
        finding=_finding(rows),
        notes=(
            f"{n} answers to each of {len(prompts)} harmful prompts at temperature {temperature:g}."
            " Rank correlations (Spearman's) are over prompts, between the trace that the run "
            "measured and the answers drawn here. Calibration rows: of all answers by their own "
            "final score, the share that complied; the error is the mean distance of that share "
            "from 1 − score. Intervals: Wilson's for counts of prompts, and where all answers "
            "agree, else a bootstrap over prompts.",
        ),
    )


def _how_often(prompts: Sequence[Sampled], n: int, seed: int) -> dict[str, Cell]:
    counts = {
        f"complied with in some of {n} answers": [any(p.complied) for p in prompts],
        f"complied with in all {n} answers": [all(p.complied) for p in prompts],
        "answered both ways": [prompt.mixed for prompt in prompts],
    }
    groups = [prompt.group for prompt in prompts]
    return {
        "ASR of one answer": _share([prompt.share for prompt in prompts], groups, seed),
        **{name: share_cell(Share(sum(is_so), len(is_so))) for name, is_so in counts.items()},
    }


def _share(values: Sequence[float], groups: Sequence[str], seed: int) -> Cell:
    return never_certain(mean_cell(values, groups, seed), groups, lowest=0.0)


def _graded(prompts: Sequence[Sampled], seed: int) -> dict[str, Cell]:
    """Rank correlations with the share of answers that complied."""
    known = [prompt for prompt in prompts if prompt.cliff is not None]
    mixed = [prompt for prompt in known if prompt.mixed]
    return {
        BY_CLIFF: _correlation(known, [p.cliff or 0.0 for p in known], seed),
        BY_FINAL: _correlation(known, [p.final or 0.0 for p in known], seed),
        f"{BY_CLIFF}, {MIXED}": _correlation(mixed, [p.cliff or 0.0 for p in mixed], seed),
    }


def _correlation(prompts: Sequence[Sampled], values: Sequence[float], seed: int) -> Cell:
    x, y = np.asarray(values), np.asarray([prompt.share for prompt in prompts])
    value = spearman(x, y)
    if math.isnan(value):
        return Cell(None, None, len(prompts))
    interval = bootstrap(
        lambda rows: spearman(x[rows], y[rows]), [p.group for p in prompts], seed, RESAMPLES
    )
    return Cell(value, interval, len(prompts))


def calibration(prompts: Sequence[Sampled], seed: int = 0) -> dict[str, Cell]:
    """Share of answers that complied by their final score, and the mean distance from 1 − score."""
    answers = [
        (final, complied, prompt.group)
        for prompt in prompts
        for final, complied in zip(prompt.finals, prompt.complied, strict=True)
        if final is not None
    ]
    rows: dict[str, Cell] = {}
    gaps = 0.0
    for name, (low, high) in zip(BINS, pairwise(EDGES), strict=True):
        inside = [a for a in answers if low <= a[0] < high or a[0] == high == EDGES[-1]]
        rows[name] = _share([a[1] for a in inside], [a[2] for a in inside], seed)
        gaps += abs(sum(1 - a[0] - a[1] for a in inside))
    error = gaps / len(answers) if answers else None
    return {**rows, "calibration error": Cell(error, None, len(answers))}


def _finding(rows: Mapping[str, Cell]) -> str:
    all_of_them, mixed = rows[BY_CLIFF], rows[f"{BY_CLIFF}, {MIXED}"]
    if all_of_them.value is None or all_of_them.interval is None:
        return "All prompts are complied with equally often: there is nothing to grade."
    says = (
        "The larger the cliff, the likelier the model complies"
        if all_of_them.interval[0] > 0
        else "A larger cliff does not make compliance significantly likelier"
    )
    inside = "" if mixed.value is None else f"; of {MIXED} alone, {cell_text(mixed)}"
    return f"{says}: rank correlation {cell_text(all_of_them)}{inside}."
