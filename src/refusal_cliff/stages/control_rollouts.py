"""Controls that let the model write again: from a shorter thought, heads out, several times."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from scipy.special import expit

from refusal_cliff.cliff.scores import score_traces
from refusal_cliff.controls.arms import Arm
from refusal_cliff.controls.pruning import (
    RANDOM,
    SHARES,
    kept_tokens,
    pruned,
    pruning_table,
    random_kept,
    share_name,
)
from refusal_cliff.controls.table import ControlTable
from refusal_cliff.data.traces import Trace, read_traces
from refusal_cliff.generate import generate
from refusal_cliff.judges import judge_all
from refusal_cliff.model.subject import Subject
from refusal_cliff.probe.fit import ProbeSet
from refusal_cliff.run.pipeline import Job
from refusal_cliff.stages.measure import input_probes
from refusal_cliff.stages.study import Study, counter
from refusal_cliff.thinking import render_prompt

MOST = {"harmful": 100, "benign": 40}
"""Test prompts of each label that are answered again under every treatment."""


def prune_thinking(study: Study, job: Job) -> ControlTable:
    """Every share of the thinking, and a random closing, on the test prompts; see `pruning`."""
    probes = input_probes(study, job)
    asked = first_of_each(read_traces(job.input(study.path("traces-test.parquet"))))
    traces = [trace for trace in asked if thinking_of(trace)]
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
    return pruning_table(arms if traces else {}, len(asked) - len(traces), study.seed)


def first_of_each(traces: Sequence[Trace]) -> list[Trace]:
    """As many traces of each label as `MOST` says, the first ones."""
    return [
        trace
        for label, most in MOST.items()
        for trace in [trace for trace in traces if trace.prompt.label == label][:most]
    ]


def thinking_of(trace: Trace) -> int:
    """Tokens of a closed thinking; 0 where it never closed."""
    return 0 if trace.spans is None else trace.spans.thinking - trace.spans.prompt


def template_closing(subject: Subject) -> tuple[list[int], list[int]]:
    """Tokens with which the chat template closes a thought, and goes without one."""
    fmt = subject.format
    closing, skipping = (
        list(subject.tokenizer(text, add_special_tokens=False)["input_ids"])
        for text in (fmt.closing, fmt.skipping or fmt.opening + fmt.closing)
    )
    return closing, skipping


def write_on(
    study: Study, traces: Sequence[Trace], begun: Sequence[Sequence[int]], job: Job
) -> list[Trace]:
    """Judged answers to the traces' prompts that begin with given tokens.

    Whatever a row draws depends on its own prompt and tokens alone, so that a trace which itself
    begins with them is its own answer, and is not written again.
    """
    answers = list(traces)
    new = [
        row
        for row, (trace, ids) in enumerate(zip(traces, begun, strict=True))
        if not begins_with(trace, prompt_length(study.subject, trace), ids)
    ]
    written = generate(
        study.subject,
        [traces[row].prompt for row in new],
        study.generation,
        begun=[begun[row] for row in new],
        progress=counter(job.progress, len(new)),
    )
    for row, trace in zip(new, judge_all(written), strict=True):
        answers[row] = trace
    return answers


def prompt_length(subject: Subject, trace: Trace) -> int:
    """Tokens of a trace before the first that the model wrote."""
    return len(render_prompt(subject.tokenizer, trace.prompt.text))


def begins_with(trace: Trace, start: int, ids: Sequence[int]) -> bool:
    """Whether some ids stand in the trace from token ``start`` on."""
    return trace.token_ids[start : start + len(ids)] == tuple(ids)


def parts(traces: Sequence[Trace], size: int) -> list[list[Trace]]:
    """Cut into parts of one size."""
    return [list(traces[at : at + size]) for at in range(0, len(traces), size)]


def final_scores(
    subject: Subject, traces: Sequence[Trace], probes: ProbeSet
) -> Mapping[str, float]:
    """Score at the last closing token by prompt id, of the traces whose thinking closed."""
    closed = [trace for trace in traces if trace.spans is not None]
    return {
        scores.trace_id: float(expit(scores.logits[probes.row, scores.spans.last_closing]))
        for scores in score_traces(subject, closed, probes)
    }
