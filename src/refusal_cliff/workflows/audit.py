"""One model and two files of prompts to a verdict, its heads and a report."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

from refusal_cliff.answers.answering import endpoint_of
from refusal_cliff.answers.correction import refusal_error
from refusal_cliff.data.examples import write_prompts
from refusal_cliff.data.traces import write_left_out
from refusal_cliff.errors import RefusalCliffError
from refusal_cliff.findings.results import RunShape
from refusal_cliff.findings.summary import read_summary
from refusal_cliff.findings.wording import Finding, findings_of
from refusal_cliff.generate.adapters import AdapterServer
from refusal_cliff.judges import Remembering
from refusal_cliff.judges.choose import full_name, judge_of
from refusal_cliff.model.subject import between, load
from refusal_cliff.run.folder import Headline, RunInfo
from refusal_cliff.run.pipeline import Job, Observer, Stage, run_pipeline
from refusal_cliff.settings import BY_RULES, JudgeSettings, Loading, Server, Writing
from refusal_cliff.stages.control import control_stages
from refusal_cliff.stages.elsewhere import Adapters, Elsewhere
from refusal_cliff.stages.intervene import AblationPlan, intervene_stages
from refusal_cliff.stages.measure import (
    coherence_stage,
    measure_stages,
    second_reading_stage,
    tokens_stage,
)
from refusal_cliff.stages.report import SUMMARY, report_stage
from refusal_cliff.stages.study import FIT_PROMPTS, PRESETS, TEST_PROMPTS, Definitions, Study
from refusal_cliff.workflows.audit_cost import AuditCost, audit_cost
from refusal_cliff.workflows.audit_prompts import AuditPrompts, AuditSources, audit_prompts, fitting

KEY = "model"
LEFT_OUT_PROMPTS = "prompts/left-out.jsonl"
QUICK_PLAN = AblationPlan(
    traces=20,
    fractions=(0, 0.01, 0.03),
    dose_prompts=12,
    dose_benign=6,
    candidates=5,
    joint_traces=12,
    draws={"random": 4, "same-layer": 1, "promoting": 1},
    control_prompts=12,
)
BY_ADAPTERS = "as adapters, where every head suppresses refusal; all other sets here"
NOTES = (
    "Before a release, have a sample of the verdicts read by people.",
    "Heads are found on the prompts that the probe is fitted on; all rates are of the others.",
    "Perplexity is of the model's own benign answers before the change.",
)


def run_audit(
    model: str,
    sources: AuditSources,
    out: Path,
    seed: int = 0,
    observer: Observer | None = None,
    *,
    writing: Writing = Writing(),
    loading: Loading = Loading(),
    server: Server = Server(),
    adapters_dir: Path | None = None,
    controls: Sequence[str] = (),
    preset: str = "default",
    judge: JudgeSettings = BY_RULES,
    command: str = "",
    told: Callable[[AuditCost], None] | None = None,
) -> Sequence[Finding]:
    """Run, or continue, the audit of one model in the run folder ``out``.

    Args:
        model: Hugging Face name, folder, or embedded organism.
        sources: Where its prompts, and answers that are there already, come from.
        out: The run folder; made if absent.
        seed: Seed of splits, draws and random heads.
        observer: Told what happens.
        writing: How it is to write.
        loading: How it is loaded and spoken to.
        server: Who gives the first answers instead of this machine, if its address is named.
        adapters_dir: Where heads to take out are written as adapters for the server, which then
            gives the answers without them, too; ``None`` takes all heads out here.
        controls: Names of controls to measure as well, see `CONTROLS`.
        preset: Whose definitions are used, a key of ``PRESETS``.
        judge: Who judges; by default the phrase rules.
        command: The command line that asked for it, for the report; empty where there was none.
        told: Told what is going to be written, before anything is; may raise to stop there.

    Returns:
        The findings, in the order of the method.

    Raises:
        RefusalCliffError: A file, the model or the folder cannot be used.
    """
    definitions = PRESETS[preset]
    if adapters_dir is not None:
        _check_adapters(server, definitions)
    error = refusal_error(full_name(judge), judge.error)
    found = None if sources.traces else audit_prompts(sources, seed, samples=writing.samples)
    judged_by = Remembering(judge_of(judge))
    subject = between(load(model, loading), sources.reading.markers)
    if found is None:
        found = audit_prompts(sources, seed, subject, writing.samples)
    prompts = fitting(found, subject)
    generation = writing.of_model(subject.model.generation_config, seed)
    backend = endpoint_of(model, generation, loading, server) if server.url else None
    elsewhere = Elsewhere(
        prompts.given,
        {name: prompts.files[name] for name in sources.traces},
        backend,
        Adapters(AdapterServer(backend.config), adapters_dir) if backend and adapters_dir else None,
    )
    study = Study(KEY, subject, seed, generation, definitions, judged_by, elsewhere)
    plan = AblationPlan() if sources.first is None else QUICK_PLAN
    if told is not None:
        told(audit_cost(prompts, study, plan, sources.first))
    shape = RunShape(
        KEY,
        subject.name,
        subject.n_parameters,
        len(subject.heads()),
        controls=tuple(dict.fromkeys(controls)),
        judge=judged_by.name,
        judge_error=error,
    )
    said = {
        "samples": str(writing.samples) if writing.samples > 1 else "",
        "system prompt": loading.system,
        "template": " ".join(loading.template_arg),
        "definitions": preset if preset != "default" else "",
        "answers given": ", ".join(sources.traces),
        "answered by": server.url,
        "heads taken out by": f"the server, {BY_ADAPTERS}" if adapters_dir else "",
    }
    asked = [(name, text) for name, text in said.items() if text]
    files = [("prompts", f"{name}: {mark}") for name, mark in prompts.files.items()]
    stages = [
        _prompts_stage(prompts, sources, seed),
        *measure_stages(study, sources.first),
        second_reading_stage(study),
        coherence_stage(study),
        *intervene_stages(study, plan),
        tokens_stage(study),
        *control_stages(study, shape.controls),
        report_stage(shape, study, command, NOTES, (*asked, *files)),
    ]
    info = RunInfo(
        command="audit",
        config={
            "model": model,
            "prompts": dict(prompts.files),
            "fit_on": list(sources.fit_on),
            "first": sources.first,
            "generation": generation.decoding(),
            "loading": asdict(loading),
            "preset": preset,
            "judge": judged_by.name,
        },
        seeds={"all": seed},
        subjects={subject.name: subject.fingerprint},
    )
    run_pipeline(out, stages, info, observer)
    return findings_of(read_summary(out / SUMMARY))


def _check_adapters(server: Server, definitions: Definitions) -> None:
    """Refuse adapters without a server, or where no adapter can be what is asked for.

    Raises:
        RefusalCliffError: One of these.
    """
    if server.url is None:
        raise RefusalCliffError(
            "--adapters-dir is for a server that loads adapters. Name it (--endpoint URL), or "
            "leave --adapters-dir out."
        )
    if definitions.renormalised:
        raise RefusalCliffError(
            "The paper's ablation brings the attention's output back to its former length, which "
            "no adapter can do. Leave --adapters-dir or --preset paper out."
        )


def _prompts_stage(found: AuditPrompts, sources: AuditSources, seed: int) -> Stage:
    """The prompts to fit and to test on, as files of the run."""

    def write(job: Job) -> Headline:
        write_prompts(job.output(FIT_PROMPTS), found.fit)
        write_prompts(job.output(TEST_PROMPTS), found.test)
        headline: Headline = {"fit": len(found.fit), "test": len(found.test)}
        if found.left_out:
            write_left_out(job.output(LEFT_OUT_PROMPTS), found.left_out)
            headline = {**headline, "left out": len(found.left_out)}
        return {**headline, "overlapping": found.dropped} if sources.fit_on else headline

    depends = {
        "files": sorted(found.files.values()),
        "seed": seed,
        "fit_on": sources.fit_on,
        "left_out": [row.id for row in found.left_out],
        **sources.reading.described(),
    }
    lists = (LEFT_OUT_PROMPTS,) if found.left_out else ()
    return Stage("prompts", (), (FIT_PROMPTS, TEST_PROMPTS, *lists), depends, write)
