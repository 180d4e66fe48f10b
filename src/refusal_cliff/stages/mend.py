"""select → repair, and before → after → proof: which few examples repair a model, and did they?"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from functools import partial

from refusal_cliff.answers.evaluate import answered_texts, perplexity, rates
from refusal_cliff.cliff.curves import cliffs_of, read_cliffs, write_cliffs
from refusal_cliff.cliff.scores import score_traces
from refusal_cliff.data.examples import read_examples
from refusal_cliff.data.traces import (
    closed,
    read_prompts,
    read_traces,
    verdict_groups,
    write_traces,
)
from refusal_cliff.data.types import complies
from refusal_cliff.io import read_as, write_as, write_json
from refusal_cliff.probe.fit import ProbeSet
from refusal_cliff.repair.proof import Measured, prove
from refusal_cliff.repair.training import load_repaired, repair
from refusal_cliff.run.folder import Headline
from refusal_cliff.run.pipeline import Job, Stage
from refusal_cliff.select.candidates import measure
from refusal_cliff.select.contamination import clean_pool
from refusal_cliff.select.strategies import COMPARED, FRACTION, Chosen, Strategy, how_many, select
from refusal_cliff.settings import RepairConfig
from refusal_cliff.stages.study import PROBES, TEST_PROMPTS, Study, told_rates

POOL, BENIGN = "prompts/pool.jsonl", "prompts/benign.jsonl"
_ADAPTER = ("adapter/adapter_model.safetensors", "adapter/adapter_config.json")


def mend_stages(study: Study, config: RepairConfig) -> list[Stage]:
    """The stages that choose examples and train on them, one repair a strategy.

    Args:
        study: The model.
        config: Budget and mix, the same for every strategy.
    """
    return [
        study.stage(
            "select",
            PROBES,
            ("pool.parquet", "selection.json"),
            partial(_select, study),
            {"fraction": FRACTION, **study.verdicts},
            shared=(POOL, TEST_PROMPTS),
        ),
        *(
            study.stage(
                f"repair-{strategy}",
                ("selection.json",),
                [f"repair-{strategy}/{name}" for name in (*_ADAPTER, "traces.parquet")],
                partial(_repair, study, config, strategy),
                {**config.decides(), **study.verdicts},
                shared=(POOL, BENIGN, TEST_PROMPTS),
            )
            for strategy in COMPARED
        ),
    ]


def _select(study: Study, job: Job) -> Headline:
    pool = clean_pool(read_examples(job.input(POOL)), read_prompts(job.input(TEST_PROMPTS)))
    traces = study.write([example.prompt for example in pool.examples], job)
    candidates = measure(study.subject, study.probes(job), traces)
    n = how_many(len(candidates))
    chosen: dict[Strategy, list[str]] = {
        name: [c.id for c in select(name, candidates, n, study.seed)] for name in COMPARED
    }
    complied = {trace.prompt.id for trace in traces if complies(trace.verdict)}
    write_traces(study.output(job, "pool.parquet"), traces)
    found = Chosen(
        pool=len(pool.examples),
        duplicates=pool.duplicates,
        contaminated=pool.contaminated,
        unscored=sum(candidate.cliff is None for candidate in candidates),
        failures=len(complied),
        n=n,
        chosen=chosen,
        failures_chosen={name: len(complied & {*ids}) for name, ids in chosen.items()},
    )
    write_as(study.output(job, "selection.json"), found)
    return {
        "pool": found.pool,
        "failures": found.failures / len(traces),
        "chosen": n,
        "failures among chosen": found.failures_chosen["cliff"] / n,
    }


def _repair(study: Study, config: RepairConfig, strategy: Strategy, job: Job) -> Headline:
    folder = f"repair-{strategy}"
    wanted = set(read_as(study.input(job, "selection.json"), Chosen).chosen[strategy])
    chosen = [e for e in read_examples(job.input(POOL)) if e.prompt.id in wanted]
    adapter = study.output(job, f"{folder}/{_ADAPTER[0]}").parent
    repair(study.subject, chosen, read_examples(job.input(BENIGN)), config, adapter)
    repaired = replace(study, subject=load_repaired(study.subject, adapter))
    traces = repaired.write(read_prompts(job.input(TEST_PROMPTS)), job)
    write_traces(study.output(job, f"{folder}/traces.parquet"), traces)
    return {"examples": len(chosen), **told_rates(rates(traces))}


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

    def measured(study: Study, reference: str | None, *shared: str) -> Stage:
        config = {**read, **study.verdicts}
        run = partial(_measure, study, probes, reference)
        return study.stage("measure", (), _FILES, run, config, shared=shared)

    return [
        measured(before, None, TEST_PROMPTS),
        measured(after, traces, TEST_PROMPTS, traces),
        Stage(
            "proof",
            tuple(study.path(file) for study in (before, after) for file in _FILES),
            (PROOF,),
            before.verdicts,
            partial(_prove, before, after),
        ),
    ]


@dataclass(frozen=True, slots=True)
class Perplexity:
    """Of how many benign answers: ``perplexity.json``."""

    perplexity: float
    texts: int


def _measure(study: Study, probes: ProbeSet, reference: str | None, job: Job) -> Headline:
    """Answers, their scores, and the perplexity of the benign answers that came before."""
    subject = study.subject
    traces = study.write(read_prompts(job.input(TEST_PROMPTS)), job)
    kept = replace(probes, probes=(probes.chosen,))
    cliffs = cliffs_of(score_traces(subject, closed(traces), kept), kept.row)
    told = traces if reference is None else read_traces(job.input(reference))
    texts = answered_texts(verdict_groups(told)["benign"])
    write_traces(study.output(job, _FILES[0]), traces)
    write_cliffs(study.output(job, _FILES[1]), cliffs)
    found = Perplexity(perplexity(subject, texts) if texts else 1.0, len(texts))
    write_as(study.output(job, _FILES[2]), found)
    harmful = [trace for trace in traces if trace.prompt.label == "harmful"]
    return {"asr": sum(complies(trace.verdict) for trace in harmful) / max(1, len(harmful))}


def _read(study: Study, job: Job) -> Measured:
    traces, scores, number = (study.input(job, file) for file in _FILES)
    found = read_as(number, Perplexity)
    return Measured(read_traces(traces), read_cliffs(scores), found.perplexity)


def _prove(before: Study, after: Study, job: Job) -> Headline:
    found = prove(_read(before, job), _read(after, job))
    write_json(job.output(PROOF), {**asdict(found), "holds": found.holds, **before.verdicts})
    return {"harm down": found.harm_down, "useful": found.useful_kept, "cliff": found.cliff}
