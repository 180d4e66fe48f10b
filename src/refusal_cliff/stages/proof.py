"""before → after → proof: the same prompts and the same probe on a model and on its repair."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

from refusal_cliff.answers.evaluate import perplexity
from refusal_cliff.cliff.curves import cliffs_of, read_cliffs, write_cliffs
from refusal_cliff.cliff.scores import score_traces
from refusal_cliff.data.traces import (
    Trace,
    closed,
    complies,
    read_prompts,
    read_traces,
    write_traces,
)
from refusal_cliff.io import read_json, write_json
from refusal_cliff.model.subject import Subject
from refusal_cliff.probe.fit import ProbeSet
from refusal_cliff.repair.proof import Measured, prove
from refusal_cliff.run.folder import Headline
from refusal_cliff.run.pipeline import Job, Stage
from refusal_cliff.stages.study import TEST_PROMPTS, Study

PROOF = "proof.json"
_FILES = ("traces.parquet", "cliff.parquet", "perplexity.json")


def proof_stages(before: Study, after: Study, probes: ProbeSet) -> list[Stage]:
    """Measure both models on the test prompts, and compare.

    Args:
        before: The model as it was.
        after: The repaired model.
        probes: Fitted on the model as it was; both are read with them.
    """
    read = {"biases": [probe.bias for probe in probes.probes], "layer": probes.layer}
    traces = before.path("traces.parquet")
    return [
        before.stage(
            "measure",
            (TEST_PROMPTS,),
            _FILES,
            lambda job: _measure(before, before.subject, probes, None, job),
            {**read, **before.verdicts},
        ),
        after.stage(
            "measure",
            (TEST_PROMPTS, traces),
            _FILES,
            lambda job: _measure(after, after.subject, probes, job.input(traces), job),
            {**read, **after.verdicts},
        ),
        Stage(
            "proof",
            tuple(study.path(file) for study in (before, after) for file in _FILES),
            (PROOF,),
            before.verdicts,
            lambda job: _prove(before, after, job),
        ),
    ]


def _measure(
    study: Study, subject: Subject, probes: ProbeSet, reference: Path | None, job: Job
) -> Headline:
    """Answers, their scores, and the perplexity of the benign answers that came before."""
    traces = study.write(read_prompts(job.input(TEST_PROMPTS)), job)
    kept = replace(probes, probes=(probes.chosen,))
    cliffs = cliffs_of(score_traces(subject, closed(traces), kept), kept.row)
    texts = benign_texts(traces if reference is None else read_traces(reference))
    write_traces(job.output(study.path(_FILES[0])), traces)
    write_cliffs(job.output(study.path(_FILES[1])), cliffs)
    value = perplexity(subject, texts) if texts else 1.0
    write_json(job.output(study.path(_FILES[2])), {"perplexity": value, "texts": len(texts)})
    harmful = [trace for trace in traces if trace.prompt.label == "harmful"]
    return {"asr": sum(complies(trace.verdict) for trace in harmful) / max(1, len(harmful))}


def benign_texts(traces: Sequence[Trace]) -> list[tuple[Sequence[int], int]]:
    """Token ids of the benign answers, and where each begins."""
    return [
        (trace.token_ids, trace.spans.prompt)
        for trace in traces
        if trace.spans is not None and trace.prompt.label == "benign" and complies(trace.verdict)
    ]


def _read(study: Study, job: Job) -> Measured:
    traces, scores, number = (job.input(study.path(file)) for file in _FILES)
    return Measured(read_traces(traces), read_cliffs(scores), read_json(number)["perplexity"])


def _prove(before: Study, after: Study, job: Job) -> Headline:
    found = prove(_read(before, job), _read(after, job))
    write_json(job.output(PROOF), {**asdict(found), "holds": found.holds, **before.verdicts})
    return {"harm down": found.harm_down, "useful": found.useful_kept, "cliff": found.cliff}
