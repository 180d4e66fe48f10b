"""Controls on heads: what they do to the answer whatever any probe says, and what sets do."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from refusal_cliff.controls.arms import Arm
from refusal_cliff.controls.intervention import UNCHANGED
from refusal_cliff.controls.second_opinion import Floats, second_opinion
from refusal_cliff.controls.table import ControlTable
from refusal_cliff.controls.together import (
    FOUND,
    PLANTED,
    TOGETHER,
    TOP,
    together_table,
)
from refusal_cliff.data.traces import Trace, closed, read_traces, verdict_groups
from refusal_cliff.heads.effects import TRACES_AT_ONCE
from refusal_cliff.heads.find import explained
from refusal_cliff.heads.joint import select_jointly
from refusal_cliff.heads.shift import AnswerShifts
from refusal_cliff.heads.table import budget, read_heads, select_heads
from refusal_cliff.io import read_json
from refusal_cliff.model.subject import Head, Subject, parse_head
from refusal_cliff.organisms import planted_heads
from refusal_cliff.run.pipeline import Job
from refusal_cliff.stages.ablated import Answers
from refusal_cliff.stages.control_rollouts import parts
from refusal_cliff.stages.study import Study

TRACES, BENIGN, CANDIDATES = 40, 20, 12
"""Fitting traces of either kind, and heads that the group search chooses from."""


def judge_heads(study: Study, job: Job) -> ControlTable:
    """Shifts of all heads on the fitting traces that the run measured heads on, and a group."""
    subject = study.subject
    rows = read_heads(job.input(study.path("heads.parquet")), subject)
    traces = closed(read_traces(job.input(study.path("traces-fit.parquet"))))
    harmful, benign = explained(traces)[:TRACES], verdict_groups(traces)["benign"][:BENIGN]
    singles = [row.head for row in rows]
    on_harmful, on_benign = (shifts(subject, some, singles) for some in (harmful, benign))
    order = np.argsort(-on_harmful.mean(0), kind="stable")[:CANDIDATES]
    effects = AnswerShifts(subject, harmful[:TRACES_AT_ONCE])
    candidates = [singles[place] for place in order]
    group = select_jointly(effects, candidates, budget(len(rows)), progress=job.progress)[-1]
    known = [] if subject.source is None else planted_heads(subject.source)
    return second_opinion(
        rows,
        (on_harmful, [trace.prompt.group for trace in harmful]),
        (on_benign, [trace.prompt.group for trace in benign]),
        group,
        [Head(layer, index) for layer, index in known],
        study.seed,
    )


def choose_together(study: Study, job: Job) -> ControlTable:
    """The test prompts answered again without other sets of heads than the run has taken out.

    The top of the ranking, proven or not, and as many heads as the paper takes out (3 % of all) by
    joint effect; for an organism, its planted heads, too.
    """
    subject = study.subject
    before = read_traces(job.input(study.path("traces-test.parquet")))
    rows = read_heads(job.input(study.path("heads.parquet")), subject)
    greedy = read_json(job.input(study.path("joint.json")))["greedy"]
    found = [parse_head(h) for h in read_json(job.input(study.path("ablation.json")))["heads"]]
    known = [] if subject.source is None else planted_heads(subject.source)
    sets = {
        TOP: select_heads(rows, proven=False),
        TOGETHER: [parse_head(name) for name in greedy[: budget(len(rows))]],
        PLANTED: [Head(layer, index) for layer, index in known],
    }
    tried = {name: heads for name, heads in sets.items() if heads and {*heads} != {*found}}
    prompts = [trace.prompt for trace in before]
    row_heads = [heads for heads in tried.values() for _ in prompts]
    written = Answers(study, job, rows, before).write(prompts * len(tried), row_heads)
    arms, taken_out = {UNCHANGED: Arm(before)}, dict[str, list[Head]]()
    if found:
        arms[FOUND] = Arm(read_traces(job.input(study.path("ablated.parquet"))))
        taken_out[FOUND] = found
    for name, answered in zip(tried, parts(written, len(prompts)), strict=True):
        arms[name] = Arm(answered)
    return together_table(arms, taken_out | tried, study.seed)


def shifts(subject: Subject, traces: Sequence[Trace], heads: Sequence[Head]) -> Floats:
    """Shift of each head alone, [traces, heads]; a few traces at a time."""
    found = [
        AnswerShifts(subject, traces[start : start + TRACES_AT_ONCE]).of([(h,) for h in heads])
        for start in range(0, len(traces), TRACES_AT_ONCE)
    ]
    return np.concatenate(found)
