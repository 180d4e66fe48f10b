"""Controls that let the model write again: from a shorter thought, heads out, several times."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace

import torch
from scipy.special import expit

from refusal_cliff.cliff.curves import read_cliffs
from refusal_cliff.cliff.scores import TraceScores, read_scores, score_traces
from refusal_cliff.controls.arms import Arm
from refusal_cliff.controls.intervention import (
    AT_CLOSING,
    FIXED,
    FROM_CLOSING,
    HEADER,
    NEW,
    UNCHANGED,
    header_of,
    intervention_table,
)
from refusal_cliff.controls.pruning import (
    RANDOM,
    SHARES,
    kept_tokens,
    pruned,
    pruning_table,
    random_kept,
    share_name,
)
from refusal_cliff.controls.rollouts import Sampled, rollouts_table
from refusal_cliff.controls.table import ControlTable
from refusal_cliff.data.traces import Trace, closed_spans, complies, read_traces
from refusal_cliff.generate.again import prompt_length, until_answer
from refusal_cliff.generate.sampling import repeated
from refusal_cliff.heads.effects import TRACES_AT_ONCE
from refusal_cliff.heads.readout import score_readout
from refusal_cliff.heads.rerun import Rerun
from refusal_cliff.io import read_json
from refusal_cliff.model.ablation import ablated
from refusal_cliff.model.subject import Head, Subject, parse_head
from refusal_cliff.probe.fit import ProbeSet
from refusal_cliff.run.pipeline import Job
from refusal_cliff.stages.measure import input_probes
from refusal_cliff.stages.study import Study

MOST = {"harmful": 100, "benign": 40}
"""Test prompts of each label that are answered again under every treatment."""
SAMPLED, SAMPLES, TEMPERATURE = 60, 8, 0.7
"""Harmful test prompts that are answered several times, how often, and the paper's temperature."""


def prune_thinking(study: Study, job: Job) -> ControlTable:
    """Every share of the thinking, and a random closing, on the test prompts; see `pruning`."""
    probes = input_probes(study, job)
    asked = first_of_each(read_traces(job.input(study.path("traces-test.parquet"))))
    traces = [trace for trace in asked if thinking_of(trace)]
    if not traces:
        return limited(pruning_table({}, len(asked), study.seed))
    shares = {share_name(share): share for share in SHARES}
    kept = {
        name: [kept_tokens(thinking_of(trace), share) for trace in traces]
        for name, share in shares.items()
    }
    kept[RANDOM] = [random_kept(t.prompt.id, thinking_of(t), study.seed) for t in traces]
    lengths = [prompt_length(study.subject, trace) for trace in traces]
    closing, skipping = template_closing(study.subject)
    begun = [
        pruned(trace, length, tokens, closing, skipping)
        for counts in kept.values()
        for trace, length, tokens in zip(traces, lengths, counts, strict=True)
    ]
    written = write_on(study, traces * len(kept), begun, job)
    arms = {
        name: Arm(part, final_scores(study.subject, part, probes))
        for name, part in zip(kept, parts(written, len(traces)), strict=True)
    }
    return limited(pruning_table(arms, len(asked) - len(traces), study.seed))


def intervene(study: Study, job: Job) -> ControlTable:
    """Heads out at some tokens, thinking fixed or written anew, on the test prompts."""
    subject, probes = study.subject, input_probes(study, job)
    asked = first_of_each(read_traces(job.input(study.path("traces-test.parquet"))))
    traces = [trace for trace in asked if trace.spans is not None]
    names = read_json(job.input(study.path("ablation.json")))["heads"]
    heads = [parse_head(name) for name in names]
    header = _tokens(subject, header_of(subject.format))
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
    new = {t.prompt.id: t for t in read_traces(job.input(study.path("ablated.parquet")))}
    scored = read_scores(job.input(study.path("scores-ablated.parquet")))
    arms = {NEW: Arm([new[t.prompt.id] for t in traces], _finals(scored, probes))}
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


def sample(study: Study, job: Job) -> ControlTable:
    """Harmful test prompts, several answers each, beside the cliff of the run's own trace."""
    probes = input_probes(study, job)
    traces = read_traces(job.input(study.path("traces-test.parquet")))
    cliffs = {c.trace_id: c for c in read_cliffs(job.input(study.path("cliff.parquet")))}
    prompts = [trace.prompt for trace in traces if trace.prompt.label == "harmful"][:SAMPLED]
    drawing = replace(study.generation, temperature=TEMPERATURE, seed=study.seed)
    written = replace(study, generation=drawing).write(repeated(prompts, SAMPLES), job)
    finals = final_scores(study.subject, written, probes)
    found = []
    for prompt, drawn in zip(prompts, parts(written, SAMPLES), strict=True):
        cliff = cliffs.get(prompt.id)
        found.append(
            Sampled(
                group=prompt.group,
                complied=[complies(trace.verdict) for trace in drawn],
                finals=[finals.get(trace.prompt.id) for trace in drawn],
                cliff=None if cliff is None else cliff.cliff,
                final=None if cliff is None else cliff.final,
            )
        )
    return rollouts_table(found, TEMPERATURE, study.seed)


def first_of_each(traces: Sequence[Trace]) -> list[Trace]:
    """As many traces of each label as `MOST` says, the first ones."""
    return [
        trace
        for label, most in MOST.items()
        for trace in [trace for trace in traces if trace.prompt.label == label][:most]
    ]


def limited(table: ControlTable) -> ControlTable:
    """The table, and how many prompts were asked at most."""
    most = " and ".join(f"{n} {label}" for label, n in MOST.items())
    note = f"Of the test prompts, the first {most} ones at most are asked."
    return replace(table, notes=(*table.notes, note))


def thinking_of(trace: Trace) -> int:
    """Tokens of a closed thinking; 0 where it never closed."""
    return 0 if trace.spans is None else trace.spans.thinking - trace.spans.prompt


def template_closing(subject: Subject) -> tuple[list[int], list[int]]:
    """Tokens with which the chat template closes a thought, and goes without one."""
    fmt = subject.format
    skipping = fmt.skipping or fmt.opening + fmt.closing
    return _tokens(subject, fmt.closing), _tokens(subject, skipping)


def _tokens(subject: Subject, text: str) -> list[int]:
    return list(subject.tokenizer(text, add_special_tokens=False)["input_ids"])


def write_on(
    study: Study,
    traces: Sequence[Trace],
    begun: Sequence[Sequence[int]],
    job: Job,
    heads: Sequence[Head] = (),
    tokens: Sequence[range] | None = None,
) -> list[Trace]:
    """Judged answers to the traces' prompts that begin with given tokens.

    Whatever a row draws depends on its own prompt and tokens alone, so that a trace which itself
    begins with them is its own answer where no head is out, and is not written again.

    Args:
        study: The model, and how it writes.
        traces: Where prompts are taken from.
        begun: What each answer begins with.
        job: Told how many are done.
        heads: Heads to take out.
        tokens: At which tokens of each row, see `generate`.
    """
    own = [trace.token_ids[prompt_length(study.subject, trace) :] for trace in traces]
    new = [
        row
        for row, (said, ids) in enumerate(zip(own, begun, strict=True))
        if heads or said[: len(ids)] != tuple(ids)
    ]
    written = study.write(
        [traces[row].prompt for row in new],
        job,
        [heads] * len(new),
        begun=[begun[row] for row in new],
        row_tokens=None if tokens is None else [tokens[row] for row in new],
    )
    again = dict(zip(new, written, strict=True))
    return [again.get(row, trace) for row, trace in enumerate(traces)]


def parts(traces: Sequence[Trace], size: int) -> list[list[Trace]]:
    """Cut into parts of one size."""
    return [list(traces[at : at + size]) for at in range(0, len(traces), size)]


def final_scores(subject: Subject, traces: Sequence[Trace], probes: ProbeSet) -> dict[str, float]:
    """Score at the last closing token by prompt id, of the traces whose thinking closed."""
    closed = [trace for trace in traces if trace.spans is not None]
    return _finals(score_traces(subject, closed, probes), probes)


def _finals(scores: Sequence[TraceScores], probes: ProbeSet) -> dict[str, float]:
    return {
        one.trace_id: float(expit(one.logits[probes.row, one.spans.last_closing])) for one in scores
    }
