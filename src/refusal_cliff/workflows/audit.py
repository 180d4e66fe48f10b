"""One model and two files of prompts to a verdict, its heads and a report."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from refusal_cliff.answers.answering import backend_of
from refusal_cliff.answers.correction import refusal_error
from refusal_cliff.data.examples import write_prompts
from refusal_cliff.data.records import write_left_out
from refusal_cliff.data.traces import Prompt
from refusal_cliff.findings.results import RunShape
from refusal_cliff.findings.summary import read_summary
from refusal_cliff.findings.wording import Finding, findings_of
from refusal_cliff.generate.again import ANSWER_TOKENS
from refusal_cliff.generate.local import answer
from refusal_cliff.heads.trials import sizes
from refusal_cliff.judges import Remembering
from refusal_cliff.judges.choose import full_name, judge_of
from refusal_cliff.model.subject import Subject, between, load
from refusal_cliff.run.folder import Headline, RunInfo
from refusal_cliff.run.pipeline import Job, Observer, Stage, run_pipeline
from refusal_cliff.settings import BY_RULES, JudgeSettings, Loading, Server, Writing
from refusal_cliff.stages.control import control_stages
from refusal_cliff.stages.elsewhere import Elsewhere
from refusal_cliff.stages.intervene import AblationPlan, intervene_stages
from refusal_cliff.stages.measure import (
    coherence_stage,
    measure_stages,
    second_reading_stage,
    tokens_stage,
)
from refusal_cliff.stages.report import SUMMARY, report_stage
from refusal_cliff.stages.study import FIT_PROMPTS, PRESETS, TEST_PROMPTS, Study
from refusal_cliff.thinking import render_prompt
from refusal_cliff.workflows.audit_prompts import AuditPrompts, AuditSources, audit_prompts, fitting

TRIED, TRIED_ROWS = 32, 8
"""Tokens and rows that the speed of a machine is measured with."""
USUAL_ANSWER = 500
"""Tokens of thinking and answer for which a time is told: what short reasoning traces have."""


@dataclass(frozen=True, slots=True)
class Part:
    """Answers of one kind.

    Attributes:
        name: What they are for.
        answers: How many at most.
        most: Tokens of each at most.
        here: Whether this machine writes them.
    """

    name: str
    answers: int
    most: int
    here: bool = True


@dataclass(frozen=True, slots=True)
class AuditCost:
    """All that an audit writes, besides controls that are asked for.

    Attributes:
        parts: By kind, in the order of the audit.
        subject: The model, to measure the speed of this machine with.
        prompts: Some of the prompts.
    """

    parts: tuple[Part, ...]
    subject: Subject
    prompts: tuple[Prompt, ...]

    def tokens(self, of_answer: int) -> int:
        """Tokens that this machine writes, where an answer has so many or its most."""
        return sum(part.answers * min(part.most, of_answer) for part in self.parts if part.here)

    def speed(self) -> float:
        """Tokens a second that this machine writes now, measured on a few rows."""
        rows = [
            render_prompt(self.subject.tokenizer, prompt.text)
            for prompt in self.prompts[:TRIED_ROWS]
        ]
        answer(self.subject, rows, 2)  # the first pass sets things up
        start = time.perf_counter()
        written = answer(self.subject, rows, TRIED)
        return sum(map(len, written)) / (time.perf_counter() - start)


def audit_cost(
    prompts: AuditPrompts, study: Study, plan: AblationPlan, first: int | None
) -> AuditCost:
    """Count what an audit will ask at most.

    Args:
        prompts: All that may be asked.
        study: Who answers, and how.
        plan: How many sets of heads are tried.
        first: Prompts of each label and part of a quick audit, which asks more only where a class
            is short; ``None`` for all.
    """
    parts = (_asked(prompts.fit, first), _asked(prompts.test, first))
    asked = sum(part[0] + part[1] for part in parts)
    given = sum(prompt.id in prompts.given for prompt in (*prompts.fit, *prompts.test))
    harmful, benign = parts[1]
    heads = len(study.subject.heads())
    rankings = len(plan.methods) + 1  # and jointly
    doses = rankings * sum(n > 0 for n in sizes(heads, plan.fractions))
    dose = min(harmful, plan.dose_prompts) + min(benign, plan.dose_benign)
    control = (sum(plan.draws.values()) + 1) * min(harmful, plan.control_prompts)
    most = min(study.generation.max_new_tokens, study.subject.context or sys.maxsize)
    return AuditCost(
        (
            Part("answers of the model", max(0, asked - given), most, not study.elsewhere.server),
            Part("the same test prompts without the heads found", harmful + benign, most),
            Part("doses, thoughts kept", doses * dose, ANSWER_TOKENS),
            Part("control sets, thoughts kept", control, ANSWER_TOKENS),
        ),
        study.subject,
        tuple(prompts.test),
    )


def _asked(prompts: Sequence[Prompt], first: int | None) -> tuple[int, int]:
    """Harmful and benign prompts that are asked, of a quick audit at the first."""
    harmful = sum(prompt.label == "harmful" for prompt in prompts)
    counts = (harmful, len(prompts) - harmful)
    return counts if first is None else (min(counts[0], first), min(counts[1], first))


def cost_lines(cost: AuditCost) -> list[str]:
    """What is going to be written, in words."""
    lines = [
        f"{part.answers:,} {part.name}, at most {part.most:,} tokens each"
        + ("" if part.here else ", by the server")
        for part in cost.parts
    ]
    length = min(USUAL_ANSWER, max(part.most for part in cost.parts))
    return [*lines, f"{cost.tokens(length):,} tokens here, if an answer has {length}"]


def time_lines(cost: AuditCost) -> list[str]:
    """How long that takes here, and what would save time; the speed is measured for it."""
    speed = cost.speed()
    hours = cost.tokens(USUAL_ANSWER) / speed / 3600
    return [
        f"This machine writes {speed:,.0f} tokens a second now: about {hours:,.1f} hours of "
        "writing. Larger batches (--batch-size) are faster where memory allows.",
        "--quick asks 40 prompts of each kind; --traces FILE takes answers that you have; "
        "--endpoint URL lets a server give the first answers.",
    ]


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
        server: Who gives the first answers instead of this machine, if its address is named; all
            interventions are run here.
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
    error = refusal_error(full_name(judge), judge.error)
    found = None if sources.traces else audit_prompts(sources, seed, samples=writing.samples)
    judged_by = Remembering(judge_of(judge))
    subject = between(load(model, loading), sources.reading.markers)
    if found is None:
        found = audit_prompts(sources, seed, subject, writing.samples)
    prompts = fitting(found, subject)
    generation = writing.of_model(subject.model.generation_config, seed)
    elsewhere = Elsewhere(
        prompts.given,
        {name: prompts.files[name] for name in sources.traces},
        backend_of(model, generation, loading, server) if server.url else None,
    )
    definitions = PRESETS[preset]
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
    stages = [
        _prompts_stage(prompts, sources, seed),
        *measure_stages(study, sources.first),
        second_reading_stage(study),
        coherence_stage(study),
        *intervene_stages(study, plan),
        tokens_stage(study),
        *control_stages(study, shape.controls),
        report_stage(
            shape,
            subject,
            notes=NOTES,
            provenance=(
                *([("command", command)] if command else []),
                ("seed", str(seed)),
                ("decoding", f"{generation}, at most {generation.max_new_tokens:,} tokens"),
                *([("samples", str(writing.samples))] if writing.samples > 1 else []),
                *([("system prompt", loading.system)] if loading.system else []),
                *([("template", " ".join(loading.template_arg))] if loading.template_arg else []),
                *([("definitions", preset)] if preset != "default" else []),
                *([("answers given", ", ".join(sources.traces))] if sources.traces else []),
                *([("answered by", server.url)] if server.url else []),
                *(("prompts", f"{name}: {mark}") for name, mark in prompts.files.items()),
            ),
        ),
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
