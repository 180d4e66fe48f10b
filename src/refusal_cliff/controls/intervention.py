"""What does the intervention do to the thinking? Heads out at some tokens, thinking kept or not."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence

import torch
from scipy.special import expit

from refusal_cliff.cliff.scores import read_scores
from refusal_cliff.controls.arms import (
    COLUMNS,
    UNCHANGED,
    Arm,
    arm_rows,
    final_scores,
    finals_of,
    first_of_each,
    limited,
    write_on,
)
from refusal_cliff.controls.table import Cell, ControlTable, cell_text
from refusal_cliff.data.traces import read_traces
from refusal_cliff.data.types import Trace, closed_spans
from refusal_cliff.generate.again import until_answer
from refusal_cliff.heads.effects import TRACES_AT_ONCE
from refusal_cliff.heads.rerun import Rerun, score_readout
from refusal_cliff.model.ablation import ablated
from refusal_cliff.model.subject import Head, Subject
from refusal_cliff.probe.fit import ProbeSet
from refusal_cliff.run.pipeline import Job
from refusal_cliff.stages.study import Study
from refusal_cliff.thinking import ThinkingFormat

NEW = "heads out everywhere, new thinking"
FIXED = "heads out everywhere, same thinking"
FROM_CLOSING = "heads out from the closing on"
AT_CLOSING = "heads out at the closing tokens only"
HEADER = "header tokens again before the answer"


def measure(study: Study, job: Job) -> ControlTable:
    """Heads out at some tokens, thinking fixed or written anew, on the test prompts."""
    subject, probes = study.subject, study.probes(job)
    asked = first_of_each(study.traces(job, "test"))
    traces = [trace for trace in asked if trace.spans is not None]
    heads = study.taken_out(job)
    header = subject.tokenizer.encode(header_of(subject.format), add_special_tokens=False)
    arms = {UNCHANGED: Arm(traces, final_scores(subject, traces, probes))}
    if heads:
        arms |= _heads_out(study, traces, heads, probes, job)
    if header:
        begun = [[*until_answer(subject, trace), *header] for trace in traces]
        written = write_on(study, traces, begun, job)
        arms[HEADER] = Arm(written, final_scores(subject, written, probes))
    return limited(intervention_table(arms, heads, len(asked) - len(traces), study.seed))


def _heads_out(
    study: Study, traces: Sequence[Trace], heads: Sequence[Head], probes: ProbeSet, job: Job
) -> dict[str, Arm]:
    """The arms in which heads are out; the thinking written anew is that of the run."""
    subject = study.subject
    new = {t.prompt.id: t for t in read_traces(study.input(job, "ablated.parquet"))}
    scored = read_scores(study.input(job, "scores-ablated.parquet"))
    arms = {NEW: Arm([new[t.prompt.id] for t in traces], finals_of(scored, probes))}
    begun = [until_answer(subject, trace) for trace in traces]
    spans = [closed_spans(trace) for trace in traces]
    renormalised = study.definitions.renormalised
    with ablated(subject, heads, renormalised=renormalised):
        everywhere = final_scores(subject, traces, probes)
    # a renormalised ablation has no exact rerun
    closing = {} if renormalised else finals_without(subject, traces, heads, probes)
    places = {
        FIXED: ([range(sys.maxsize)] * len(spans), everywhere),
        FROM_CLOSING: ([range(s.thinking, sys.maxsize) for s in spans], closing),
        AT_CLOSING: ([range(s.thinking, s.closing) for s in spans], closing),
    }
    for name, (tokens, finals) in places.items():
        arms[name] = Arm(write_on(study, traces, begun, job, heads, tokens), finals)
    return arms


@torch.inference_mode()
def finals_without(
    subject: Subject, traces: Sequence[Trace], heads: Sequence[Head], probes: ProbeSet
) -> dict[str, float]:
    """Score at the last closing token by prompt id, some heads out over the closing tokens."""
    readout = score_readout(subject, probes.chosen)
    found: dict[str, float] = {}
    for start in range(0, len(traces), TRACES_AT_ONCE):
        chosen = traces[start : start + TRACES_AT_ONCE]
        logits = Rerun(subject, chosen, readout).final_logits(1, [heads])[:, 0]
        names = [trace.prompt.id for trace in chosen]
        found |= dict(zip(names, map(float, expit(logits)), strict=True))
    return found


def header_of(fmt: ThinkingFormat) -> str:
    """What the chat template writes between the user's text and the model's first own word.

    The opener of the thinking is left out: the header is given again where the thinking is over.
    """
    return fmt.tail.partition(fmt.opener)[0] if fmt.opener else fmt.tail


def intervention_table(
    arms: Mapping[str, Arm], heads: Sequence[Head], left_out: int, seed: int = 0
) -> ControlTable:
    """Compare where the heads are taken out, and whether the thinking is generated again.

    Args:
        arms: By name, ``UNCHANGED`` among them.
        heads: The heads; where there are none, no arm takes any out.
        left_out: Prompts whose thinking never closed.
        seed: Seed of the bootstrap.
    """
    rows = arm_rows(arms, UNCHANGED, seed)
    return ControlTable(
        question="What does the intervention do to the thinking?",
        source="fixed and new thinking as in 2605.26772; header tokens as in 2510.18081",
        columns=COLUMNS,
        rows=rows,
        finding=_finding({name: row[1] for name, row in rows.items() if name != UNCHANGED}),
        notes=(
            f"Heads: {', '.join(map(str, heads)) or 'none found'}. With the same thinking, the "
            f"model's own thinking and closing tokens are given and the answer is generated "
            f"again. From the closing on, the heads are out only after the thinking, so these "
            f"rows need no second version. Changes are paired by prompt; intervals are "
            "Wilson's for shares and where all prompts agree, else a bootstrap over prompts. "
            f"Left out: {left_out} prompts whose thinking never closed.",
        ),
    )


def _finding(changes: Mapping[str, Cell]) -> str:
    """The change of each arm, and whether the closing tokens alone are enough."""
    told = "; ".join(f"{name}: {cell_text(cell, alone=False)}" for name, cell in changes.items())
    return f"Change of the attack success rate. {told[:1].upper()}{told[1:]}."
