"""generate → judge → probe → trace → cliff; then what a page shows of thoughts and tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from itertools import chain

from refusal_cliff.answers.evaluate import rates
from refusal_cliff.answers.writing import coherence
from refusal_cliff.cliff.measure import measure_cliff, write_measured
from refusal_cliff.cliff.scores import read_scores, scores_in_parts, write_scores
from refusal_cliff.controls.second_reading import second_readings
from refusal_cliff.data.journal import Journal
from refusal_cliff.data.traces import closed, read_prompts, read_traces, write_traces
from refusal_cliff.data.types import Prompt, Trace
from refusal_cliff.heads.at_tokens import (
    AS_IT_IS,
    HEADS_OUT,
    SHOWN,
    Pieces,
    TokenRow,
    head_contributions,
    told_heads,
    write_token_rows,
)
from refusal_cliff.io import write_as, write_json
from refusal_cliff.judges import judge_traces
from refusal_cliff.probe.files import write_probes
from refusal_cliff.probe.fit import Probe, ProbeSet
from refusal_cliff.probe.traces import fit_by_rules
from refusal_cliff.run.folder import Headline
from refusal_cliff.run.pipeline import Job, Stage
from refusal_cliff.stages.asking import PARTS, ask, asked_first
from refusal_cliff.stages.study import (
    ABLATION,
    FIT,
    FIT_PROMPTS,
    HEADS,
    PROBES,
    TEST,
    TEST_PROMPTS,
    Study,
    counter,
    told_rates,
)


def measure_stages(study: Study, first: int | None = None) -> list[Stage]:
    """The stages that measure one model.

    Args:
        study: The model.
        first: Prompts of each label and part that are asked before it is seen whether more are
            needed; ``None`` asks them all.
    """
    made = [f"generated-{part}.parquet" for part in PARTS]
    return [
        study.stage(
            "generate",
            (),
            made,
            lambda job: _generate(study, job, first),
            {
                **study.elsewhere.described(),
                **({} if first is None else {"first": first, **study.verdicts}),
            },
            shared=(FIT_PROMPTS, TEST_PROMPTS),
        ),
        study.stage(
            "judge", made, (FIT, TEST, "rates.json"), partial(_judge, study), study.verdicts
        ),
        study.stage(
            "probe",
            (FIT,),
            (*PROBES, "probe-rules.json"),
            partial(_probe, study),
            {"read_point": study.read_point},
        ),
        study.stage("trace", (TEST, *PROBES), ("scores.parquet",), partial(_trace, study)),
        study.stage(
            "cliff",
            ("scores.parquet", *PROBES),
            ("cliff.parquet", "cliff.json"),
            partial(_cliff, study),
            {"pool": study.definitions.pool},
        ),
    ]


def _generate(study: Study, job: Job, first: int | None) -> Headline:
    prompts = [read_prompts(job.input(name)) for name in (FIT_PROMPTS, TEST_PROMPTS)]
    least = [sum(map(len, asked_first(given, study.seed, first).values())) for given in prompts]
    begun: dict[str, int] = dict.fromkeys(PARTS, 0)
    count = counter(job.progress, lambda: sum(map(max, least, begun.values())))
    headline: dict[str, int] = dict.fromkeys(("traces", "tokens"), 0)
    with Journal(job.journal) as journal:

        def write(part: str, more: Sequence[Prompt]) -> list[Trace]:
            begun[part] += len(more)
            traces, here = study.first_answers(more, journal, count)
            if study.elsewhere.server is not None and here:
                headline["written here"] = headline.get("written here", 0) + here
            return traces

        def judge(written: Sequence[Trace]) -> list[Trace]:
            return judge_traces(written, study.judge, journal)

        for part, given in zip(PARTS, prompts, strict=True):
            traces = ask(partial(write, part), judge, given, part, study.seed, first)
            write_traces(study.output(job, f"generated-{part}.parquet"), traces)
            headline["traces"] += len(traces)
            headline["tokens"] += sum(len(trace.token_ids) for trace in traces)
    return {**headline}


def _judge(study: Study, job: Job) -> Headline:
    judged: list[Trace] = []
    with Journal(job.journal) as journal:
        for part in PARTS:
            traces = read_traces(study.input(job, f"generated-{part}.parquet"))
            judged = judge_traces(traces, study.judge, journal)
            write_traces(study.output(job, f"traces-{part}.parquet"), judged)
    found = rates(judged)
    write_as(study.output(job, "rates.json"), found)
    return {**told_rates(found), "truncated": found.truncated.count}


def _probe(study: Study, job: Job) -> Headline:
    fitted = fit_by_rules(
        study.subject,
        study.traces(job, "fit"),
        read_point=study.read_point,
        seed=study.seed,
        progress=job.progress,
    )
    main = fitted[0]
    weights, description = (study.output(job, name) for name in PROBES)
    write_probes(weights, description, main)
    write_json(
        study.output(job, "probe-rules.json"),
        {_name(probes): _quality(probes.probes[main.row]) for probes in fitted},
    )
    best = main.chosen
    return {"layer": main.layer, "auroc": best.quality.auroc, "p": best.permutation_p}


def _name(probes: ProbeSet) -> str:
    if probes.estimator == "logistic":
        return probes.label_rule
    return f"{probes.label_rule} ({probes.estimator})"


def _quality(probe: Probe) -> dict[str, object]:
    return {
        **asdict(probe.quality),
        "shuffled_auroc": probe.shuffled_auroc,
        "permutation_p": probe.permutation_p,
    }


def _trace(study: Study, job: Job) -> Headline:
    traces = closed(study.traces(job, "test"))
    probes = study.probes(job)
    scores = scores_in_parts(study.subject, traces, probes, job.progress)
    write_scores(study.output(job, "scores.parquet"), scores)
    tokens = sum(len(trace.token_ids) for trace in traces)
    return {"traces": len(traces), "scores": tokens * len(probes.probes)}


def coherence_stage(study: Study) -> Stage:
    """Whether the thoughts are about the requests: ``coherence.json``."""

    def run(job: Job) -> Headline:
        found = coherence(study.subject, study.traces(job, "test"))
        write_as(study.output(job, "coherence.json"), found)
        return {"alarm": found.alarm}

    return study.stage("coherence", (TEST,), ("coherence.json",), run)


def second_reading_stage(study: Study) -> Stage:
    """The verdict under other readings, and with the probe fitted again: ``readings.json``."""
    pool = study.definitions.pool

    def run(job: Job) -> Headline:
        fit, test = (closed(study.traces(job, part)) for part in PARTS)
        probes, seed, told = study.probes(job), study.seed, job.progress
        found = second_readings(
            study.subject, fit, test, probes, pool=pool, seed=seed, progress=told
        )
        write_as(study.output(job, "readings.json"), found)
        return {name: reading.verdict for name, reading in found.readings.items()}

    config = {"read_point": study.read_point, "pool": pool}
    return study.stage("readings", (FIT, TEST, *PROBES), ("readings.json",), run, config)


def _cliff(study: Study, job: Job) -> Headline:
    probes = study.probes(job)
    scores = read_scores(study.input(job, "scores.parquet"))
    measured = measure_cliff(
        scores, probes, pool=study.definitions.pool, seed=study.seed, name=study.subject.name
    )
    found = measured.found
    write_measured(study.output(job, "cliff.parquet"), study.output(job, "cliff.json"), measured)
    return {name: getattr(found, name) for name in ("plateau", "final", "cliff", "verdict")}


TOKENS = "tokens.parquet"


def tokens_stage(study: Study) -> Stage:
    """What a page shows of tokens: ``tokens.parquet``, one row a trace, before and after."""
    return study.stage(
        "tokens",
        (TEST, "ablated.parquet", HEADS, ABLATION, *PROBES),
        (TOKENS,),
        partial(_tokens, study),
        {"shown": SHOWN},
    )


def _tokens(study: Study, job: Job) -> Headline:
    before, after = (read_traces(study.input(job, name)) for name in (TEST, "ablated.parquet"))
    heads = told_heads(study.heads(job), study.taken_out(job))
    probe = study.probes(job).chosen
    values = head_contributions(study.subject, before, probe, heads, job.progress)
    pieces = Pieces(study.subject.tokenizer)
    as_it_is = (
        TokenRow(trace.prompt.id, AS_IT_IS, pieces.of(trace.token_ids), heads, part)
        for trace, part in zip(before, values, strict=True)
    )
    heads_out = (TokenRow(t.prompt.id, HEADS_OUT, pieces.of(t.token_ids)) for t in after)
    write_token_rows(study.output(job, TOKENS), chain(as_it_is, heads_out))
    return {"tokens": sum(len(trace.token_ids) for trace in (*before, *after))}
