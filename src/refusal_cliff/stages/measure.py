"""From prompts to the cliff: generate, judge, probe, trace, cliff, its readings, and tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from functools import partial

from refusal_cliff.answers.coherence import coherence
from refusal_cliff.answers.evaluate import rates
from refusal_cliff.cliff.measure import measure_cliff, write_measured
from refusal_cliff.cliff.scores import read_scores, score_traces, write_scores
from refusal_cliff.controls.second_reading import second_readings
from refusal_cliff.data.traces import (
    Prompt,
    Trace,
    closed,
    read_prompts,
    read_traces,
    write_traces,
)
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
from refusal_cliff.heads.result import AblationResult
from refusal_cliff.heads.table import read_heads
from refusal_cliff.io import read_as, write_as, write_json
from refusal_cliff.judges import judge_traces
from refusal_cliff.probe.files import read_probes, write_probes
from refusal_cliff.probe.fit import ProbeSet
from refusal_cliff.probe.traces import fit_by_rules
from refusal_cliff.run.folder import Headline
from refusal_cliff.run.pipeline import Job, Stage
from refusal_cliff.stages.asking import PARTS, ask, asked_at_least
from refusal_cliff.stages.study import (
    FIT_PROMPTS,
    TEST_PROMPTS,
    Study,
    answers_kept,
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
    made = [study.path(f"generated-{part}.parquet") for part in PARTS]
    traces = [study.path(f"traces-{part}.parquet") for part in PARTS]
    probes = [study.path("probes.safetensors"), study.path("probes.json")]
    scores = study.path("scores.parquet")
    return [
        study.stage(
            "generate",
            (FIT_PROMPTS, TEST_PROMPTS),
            [f"generated-{part}.parquet" for part in PARTS],
            lambda job: _generate(study, job, first),
            {
                **study.elsewhere.described(),
                **({} if first is None else {"first": first, **study.verdicts}),
            },
        ),
        study.stage(
            "judge",
            made,
            [*(f"traces-{part}.parquet" for part in PARTS), "rates.json"],
            lambda job: _judge(study, job),
            study.verdicts,
        ),
        study.stage(
            "probe",
            traces[:1],
            ("probes.safetensors", "probes.json", "probe-rules.json"),
            lambda job: _probe(study, job),
            {"read_point": study.read_point},
        ),
        study.stage(
            "trace",
            (traces[1], *probes),
            ("scores.parquet",),
            lambda job: _trace(study, job),
        ),
        study.stage(
            "cliff",
            (scores, *probes),
            ("cliff.parquet", "cliff.json"),
            lambda job: _cliff(study, job),
            {"pool": study.definitions.pool},
        ),
    ]


def _generate(study: Study, job: Job, first: int | None) -> Headline:
    prompts = [read_prompts(job.input(name)) for name in (FIT_PROMPTS, TEST_PROMPTS)]
    least = [asked_at_least(given, first) for given in prompts]
    begun: dict[str, int] = dict.fromkeys(PARTS, 0)
    count = counter(job.progress, lambda: sum(map(max, least, begun.values())))
    headline: dict[str, int] = dict.fromkeys(("traces", "tokens"), 0)
    with answers_kept(job) as journal:

        def write(part: str, more: Sequence[Prompt]) -> list[Trace]:
            begun[part] += len(more)
            return study.first_answers(more, journal, count)

        def judge(written: Sequence[Trace]) -> list[Trace]:
            return judge_traces(written, study.judge, journal)

        for part, given in zip(PARTS, prompts, strict=True):
            traces = ask(partial(write, part), judge, given, part, study.seed, first)
            write_traces(job.output(study.path(f"generated-{part}.parquet")), traces)
            headline["traces"] += len(traces)
            headline["tokens"] += sum(len(trace.token_ids) for trace in traces)
    return {**headline}


def _judge(study: Study, job: Job) -> Headline:
    judged: list[Trace] = []
    with answers_kept(job) as journal:
        for part in PARTS:
            traces = read_traces(job.input(study.path(f"generated-{part}.parquet")))
            judged = judge_traces(traces, study.judge, journal)
            write_traces(job.output(study.path(f"traces-{part}.parquet")), judged)
    found = rates(judged)
    write_as(job.output(study.path("rates.json")), found)
    return {**told_rates(found), "truncated": found.truncated.count}


def _probe(study: Study, job: Job) -> Headline:
    fitted = fit_by_rules(
        study.subject,
        read_traces(job.input(study.path("traces-fit.parquet"))),
        read_point=study.read_point,
        seed=study.seed,
        progress=job.progress,
    )
    main = fitted[0]
    names = (study.path("probes.safetensors"), study.path("probes.json"))
    write_probes(job.output(names[0]), job.output(names[1]), main)
    write_json(
        job.output(study.path("probe-rules.json")),
        {_name(probes): _quality(probes, main.row) for probes in fitted},
    )
    return {
        "layer": main.layer,
        "auroc": main.chosen.quality.auroc,
        "p": main.chosen.permutation_p,
    }


def _name(probes: ProbeSet) -> str:
    if probes.estimator == "logistic":
        return probes.label_rule
    return f"{probes.label_rule} ({probes.estimator})"


def _quality(probes: ProbeSet, row: int) -> dict[str, object]:
    probe = probes.probes[row]
    return {
        **asdict(probe.quality),
        "shuffled_auroc": probe.shuffled_auroc,
        "permutation_p": probe.permutation_p,
    }


def _trace(study: Study, job: Job) -> Headline:
    traces = closed(read_traces(job.input(study.path("traces-test.parquet"))))
    probes = input_probes(study, job)
    scores = score_traces(study.subject, traces, probes, job.progress)
    write_scores(job.output(study.path("scores.parquet")), scores)
    return {"traces": len(scores), "scores": sum(row.logits.size for row in scores)}


def input_probes(study: Study, job: Job) -> ProbeSet:
    """The probes of the model, as a stage reads them.

    Raises:
        RefusalCliffError: They were fitted on another model.
    """
    return read_probes(
        job.input(study.path("probes.safetensors")),
        job.input(study.path("probes.json")),
        study.subject,
    )


def coherence_stage(study: Study) -> Stage:
    """Whether the thoughts are about the requests: ``coherence.json``."""
    return study.stage(
        "coherence",
        [study.path("traces-test.parquet")],
        ("coherence.json",),
        lambda job: _coherence(study, job),
    )


def _coherence(study: Study, job: Job) -> Headline:
    traces = read_traces(job.input(study.path("traces-test.parquet")))
    found = coherence(study.subject, traces)
    write_as(job.output(study.path("coherence.json")), found)
    return {"alarm": found.alarm}


def second_reading_stage(study: Study) -> Stage:
    """The verdict under other readings, and with the probe fitted again: ``readings.json``."""
    names = ("traces-fit.parquet", "traces-test.parquet", "probes.safetensors", "probes.json")
    return study.stage(
        "readings",
        [study.path(name) for name in names],
        ("readings.json",),
        lambda job: _second_readings(study, job),
        {"read_point": study.read_point, "pool": study.definitions.pool},
    )


def _second_readings(study: Study, job: Job) -> Headline:
    fit, test = (
        closed(read_traces(job.input(study.path(f"traces-{part}.parquet")))) for part in PARTS
    )
    found = second_readings(
        study.subject,
        fit,
        test,
        input_probes(study, job),
        pool=study.definitions.pool,
        seed=study.seed,
        progress=job.progress,
    )
    write_as(job.output(study.path("readings.json")), found)
    return {name: reading.verdict for name, reading in found.readings.items()}


def _cliff(study: Study, job: Job) -> Headline:
    probes = input_probes(study, job)
    scores = read_scores(job.input(study.path("scores.parquet")))
    measured = measure_cliff(
        scores, probes, pool=study.definitions.pool, seed=study.seed, name=study.subject.name
    )
    found = measured.found
    names = (study.path("cliff.parquet"), study.path("cliff.json"))
    write_measured(job.output(names[0]), job.output(names[1]), measured)
    return {
        "plateau": found.plateau,
        "final": found.final,
        "cliff": found.cliff,
        "verdict": found.verdict,
    }


TOKENS = "tokens.parquet"


def tokens_stage(study: Study) -> Stage:
    """What a page shows of tokens: ``tokens.parquet``, one row a trace, before and after."""
    names = ("traces-test.parquet", "ablated.parquet", "heads.parquet", "ablation.json")
    probes = ("probes.safetensors", "probes.json")
    return study.stage(
        "tokens",
        [study.path(name) for name in (*names, *probes)],
        (TOKENS,),
        lambda job: _tokens(study, job),
        {"shown": SHOWN},
    )


def _tokens(study: Study, job: Job) -> Headline:
    before, after = (
        read_traces(job.input(study.path(name)))
        for name in ("traces-test.parquet", "ablated.parquet")
    )
    found = read_as(job.input(study.path("ablation.json")), AblationResult).heads
    rows = read_heads(job.input(study.path("heads.parquet")), study.subject)
    heads = told_heads(rows, found)
    probe = input_probes(study, job).chosen
    values = head_contributions(study.subject, before, probe, heads, job.progress)
    pieces = Pieces(study.subject.tokenizer)
    table = [
        TokenRow(trace.prompt.id, AS_IT_IS, pieces.of(trace.token_ids), heads, part)
        for trace, part in zip(before, values, strict=True)
    ]
    table += [TokenRow(t.prompt.id, HEADS_OUT, pieces.of(t.token_ids)) for t in after]
    write_token_rows(job.output(study.path(TOKENS)), table)
    return {"tokens": sum(len(one.pieces) for one in table)}
