"""The whole method on the embedded organisms, whose right answers are known."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

from refusal_cliff.answers.correction import known_error
from refusal_cliff.data.examples import write_examples, write_prompts
from refusal_cliff.findings.results import RunShape
from refusal_cliff.findings.summary import read_summary
from refusal_cliff.findings.wording import Finding, findings_of
from refusal_cliff.generate import GenerationConfig
from refusal_cliff.heads.trials import CONTROLS
from refusal_cliff.judges import RulesJudge
from refusal_cliff.model.subject import Head, Subject, load_subject
from refusal_cliff.organisms import embedded_path, language, planted_heads
from refusal_cliff.run.folder import Headline, RunInfo
from refusal_cliff.run.pipeline import Job, Observer, Stage, run_pipeline
from refusal_cliff.settings import RepairConfig
from refusal_cliff.stages.intervene import AblationPlan, intervene_stages
from refusal_cliff.stages.measure import (
    coherence_stage,
    measure_stages,
    second_reading_stage,
    tokens_stage,
)
from refusal_cliff.stages.mend import BENIGN, POOL, mend_stages
from refusal_cliff.stages.report import SUMMARY, report_stage
from refusal_cliff.stages.study import FIT_PROMPTS, TEST_PROMPTS, Study

MAIN, CONTROL, DIFFUSE = "tiny", "tiny-aligned", "tiny-diffuse"
REFERENCE = "prompts/reference.jsonl"
GENERATION = GenerationConfig(max_new_tokens=110, batch_size=128)
"""Answers are short; on a CPU larger batches gain nothing."""
DRAWN = "templates of the embedded language, drawn with the seed"
"""Where the prompts come from."""
LEARNING_RATE = 2e-3
"""Of repairs of the embedded organisms: so small a model takes steps ten times the usual ones."""
FRACTIONS = (0, 0.005, 0.02, 0.03, 0.05, 0.10)
"""Of 128 heads: 0, 1, 2, 3, 6 and 12."""
WORKERS = min(4, os.cpu_count() or 1)
"""For the command: small models gain nothing from several threads, and much from processes."""
_VISIBLE_GPUS = ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES")
NOTES = (
    "The models are organisms of 1.9 million parameters, trained from scratch on templated English "
    "about mild matters; what they comply with is answered by placeholders.",
    "Put in on purpose by the recipe: an auxiliary loss that makes the intention present during "
    "the thinking, margins on the first answer token, heads dropped at random in training, and the "
    "choice of the heads through which tiny was damaged. The cliff itself is not hard-coded: it is "
    "what the careless tune made of that.",
    "The pool for Cliff-as-a-Judge is made so that failures are rare, as in published safety data.",
)


@dataclass(frozen=True, slots=True)
class DemoSizes:
    """How much the demo does; the defaults take minutes on two cores.

    Attributes:
        fit: Prompts of each label to fit the probe and to find heads.
        test: Prompts of each label to test on.
        pool: Safety examples to choose from.
        benign: Benign examples mixed into every repair.
        reference: Benign examples for perplexity.
        head_traces: Traces that heads are measured on.
        random_sets: Random sets of heads.
        sets: Sets of heads of each other kind of control.
        steps: Optimiser steps of each repair.
    """

    fit: int = 120
    test: int = 100
    pool: int = 2000
    benign: int = 400
    reference: int = 120
    head_traces: int = 40
    random_sets: int = 20
    sets: int = 5
    steps: int = 16


def run_demo(
    out: Path,
    seed: int = 0,
    organisms: Path | None = None,
    observer: Observer | None = None,
    sizes: DemoSizes | None = None,
    workers: int = 1,
    command: str = "",
) -> Sequence[Finding]:
    """Run, or continue, the demo in the run folder ``out``.

    Args:
        out: The run folder; made if absent.
        seed: Seed of prompts, splits, random heads and repairs.
        organisms: Folder with other organisms than the embedded ones, one folder each.
        observer: Told what happens.
        sizes: How much to do; the defaults make the recorded results.
        workers: Stages at work at a time, see `run_pipeline`; with several, each process, this one
            too, keeps to one thread of PyTorch and sees no GPU, and must have done so from its
            start.
        command: The command line that asked for it, for the report; empty where there was none.

    Returns:
        The findings, in the order of the method.

    Raises:
        RefusalCliffError: The folder or an organism cannot be used.
    """
    sizes = sizes or DemoSizes()
    torch.set_num_threads(1)  # independent stages run in processes of their own
    if workers > 1:  # a GPU that a process has only asked for fails in its forks
        os.environ.update(dict.fromkeys(_VISIBLE_GPUS, ""))
    subjects = {
        name: load_subject(str(embedded_path(name, organisms)), device="cpu")
        for name in (MAIN, CONTROL, DIFFUSE)
    }
    truth = planted_heads(embedded_path(MAIN, organisms))
    planted = tuple(Head(layer, index) for layer, index in truth)
    info = RunInfo(
        command="demo",
        config={"sizes": asdict(sizes), "fractions": list(FRACTIONS)},
        seeds={"all": seed},
        subjects={name: subject.fingerprint for name, subject in subjects.items()},
    )
    run_pipeline(out, demo_stages(subjects, planted, seed, sizes, command), info, observer, workers)
    return findings_of(read_summary(out / SUMMARY))


def demo_stages(
    subjects: dict[str, Subject],
    planted: tuple[Head, ...],
    seed: int,
    sizes: DemoSizes,
    command: str = "",
) -> list[Stage]:
    """All stages of the demo, in order."""
    study = {name: Study(name, subject, seed, GENERATION) for name, subject in subjects.items()}
    repair = RepairConfig(seed=seed, steps=sizes.steps, lr=LEARNING_RATE)
    main = AblationPlan(
        traces=sizes.head_traces,
        fractions=FRACTIONS,
        dose_prompts=30,
        dose_benign=8,
        candidates=8,
        joint_traces=16,
        control_prompts=15,
        draws={"random": sizes.random_sets, "same-layer": sizes.sets, "promoting": sizes.sets},
        spared=planted,
        reference=REFERENCE,
    )
    diffuse = replace(main, draws=dict.fromkeys(CONTROLS, 0), control_prompts=30, spared=())
    shape = RunShape(
        main=MAIN,
        model=MAIN,
        n_parameters=subjects[MAIN].n_parameters,
        total_heads=len(subjects[MAIN].heads()),
        control=CONTROL,
        diffuse=DIFFUSE,
        planted=planted,
        steps=repair.steps,
        judge_error=known_error(RulesJudge.name),
    )
    return [
        prompts_stage(seed, sizes),
        *measure_stages(study[MAIN]),
        second_reading_stage(study[MAIN]),
        coherence_stage(study[MAIN]),
        # before the rest, which can go on beside its long stages
        *mend_stages(study[MAIN], repair),
        *intervene_stages(study[MAIN], main),
        tokens_stage(study[MAIN]),
        *measure_stages(study[CONTROL]),
        *measure_stages(study[DIFFUSE]),
        *intervene_stages(study[DIFFUSE], diffuse),
        report_stage(shape, study[MAIN], command, NOTES, (("prompts", DRAWN),)),
    ]


def prompts_stage(seed: int, sizes: DemoSizes) -> Stage:
    """Fitting asks about validation concepts, testing about test concepts: none is shared."""
    outputs = (FIT_PROMPTS, TEST_PROMPTS, POOL, BENIGN, REFERENCE)

    def write(job: Job) -> Headline:
        write_prompts(job.output(FIT_PROMPTS), language.both_labels("validation", sizes.fit, seed))
        write_prompts(job.output(TEST_PROMPTS), language.both_labels("test", sizes.test, seed))
        write_examples(job.output(POOL), language.safety_pool(sizes.pool, seed))
        benign = language.examples("pool", "benign", sizes.benign, seed)
        write_examples(job.output(BENIGN), benign)
        reference = language.examples("test", "benign", sizes.reference, seed + 1)
        write_examples(job.output(REFERENCE), reference)
        return {"fit": 2 * sizes.fit, "test": 2 * sizes.test, "pool": sizes.pool}

    return Stage("prompts", (), outputs, {"seed": seed, **asdict(sizes)}, write)
