"""One model and two files of prompts to a verdict, its heads and a report."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

from refusal_cliff import __version__
from refusal_cliff.data.examples import write_prompts
from refusal_cliff.data.traces import Label, Prompt, read_prompts
from refusal_cliff.errors import RefusalCliffError
from refusal_cliff.findings.finding import Finding
from refusal_cliff.findings.results import RunShape, findings_of
from refusal_cliff.findings.summary import read_summary
from refusal_cliff.generate import GenerationConfig
from refusal_cliff.io import sha256_file
from refusal_cliff.model.subject import load_subject
from refusal_cliff.run.folder import Headline, RunInfo
from refusal_cliff.run.pipeline import Job, Observer, Stage, run_pipeline
from refusal_cliff.stages.control import control_stages
from refusal_cliff.stages.intervene import AblationPlan, intervene_stages
from refusal_cliff.stages.measure import measure_stages
from refusal_cliff.stages.report import SUMMARY, report_stage
from refusal_cliff.stages.study import FIT_PROMPTS, PRESETS, TEST_PROMPTS, Study

KEY = "model"
MIN_PROMPTS = 40
"""Prompts of each label below which a probe and an interval mean nothing."""
NOTES = (
    "Answers are judged by phrase rules; before a release, have a sample read by people.",
    "Heads are ranked on the fitting half of the prompts; all rates are of the other half.",
    "Perplexity is of the model's own benign answers before the change.",
)


def run_audit(
    model: str,
    harmful: Path,
    benign: Path,
    out: Path,
    seed: int = 0,
    observer: Observer | None = None,
    *,
    max_new_tokens: int = 4096,
    batch_size: int = 16,
    dtype: str = "float32",
    device: str = "auto",
    trust_remote_code: bool = False,
    controls: Sequence[str] = (),
    preset: str = "default",
) -> Sequence[Finding]:
    """Run, or continue, the audit of one model in the run folder ``out``.

    Args:
        model: Hugging Face name, folder, or embedded organism.
        harmful: File of harmful prompts.
        benign: File of benign prompts.
        out: The run folder; made if absent.
        seed: Seed of splits and random heads.
        observer: Told what happens.
        max_new_tokens: Longest thinking and answer together.
        batch_size: Prompts generated at once.
        dtype: Precision of the weights.
        device: ``auto`` or a device of PyTorch.
        trust_remote_code: Run code that comes with the model.
        controls: Names of controls to measure as well, see `CONTROLS`.
        preset: Whose definitions are used, a key of ``PRESETS``.

    Returns:
        The findings, in the order of the method.

    Raises:
        RefusalCliffError: A file, the model or the folder cannot be used.
    """
    prompts = [*_read(harmful, "harmful"), *_read(benign, "benign")]
    subject = load_subject(model, dtype=dtype, device=device, trust_remote_code=trust_remote_code)
    study = Study(KEY, subject, seed, GenerationConfig(max_new_tokens, batch_size), PRESETS[preset])
    shape = RunShape(
        KEY,
        subject.name,
        subject.n_parameters,
        len(subject.heads()),
        controls=tuple(dict.fromkeys(controls)),
    )
    files = {str(path): sha256_file(path) for path in (harmful, benign)}
    command = f"refusal-cliff audit --model {model} --seed {seed}"
    if preset != "default":
        command += f" --preset {preset}"
    stages = [
        _prompts_stage(prompts, files, seed),
        *measure_stages(study),
        *intervene_stages(study, AblationPlan()),
        *control_stages(study, shape.controls),
        report_stage(
            shape,
            subject,
            notes=NOTES,
            provenance=(
                ("version", __version__),
                ("command", command),
                ("judge", "phrase rules"),
                ("model", subject.fingerprint[:16]),
            ),
        ),
    ]
    info = RunInfo(
        command="audit",
        config={
            "model": model,
            "prompts": files,
            "max_new_tokens": max_new_tokens,
            "dtype": dtype,
            "preset": preset,
        },
        seeds={"all": seed},
        subjects={subject.name: subject.fingerprint},
    )
    run_pipeline(out, stages, info, observer)
    return findings_of(read_summary(out / SUMMARY))


def _read(path: Path, label: Label) -> list[Prompt]:
    """Prompts of one file; rows with another label than the file's are refused."""
    prompts = read_prompts(path, label=label)
    wrong = next((n for n, prompt in enumerate(prompts, 1) if prompt.label != label), None)
    if wrong is not None:
        raise RefusalCliffError(
            f"{path}, prompt {wrong}: the label is {prompts[wrong - 1].label!r}, but the file was "
            f"given as {label} prompts. Remedy: move the row to the other file."
        )
    if len({prompt.group for prompt in prompts}) < MIN_PROMPTS:
        raise RefusalCliffError(
            f"{path} holds {len(prompts)} prompts; an audit needs {MIN_PROMPTS} different ones of "
            "each kind, half to fit the probe and half to test. Give more."
        )
    return prompts


def _prompts_stage(prompts: Sequence[Prompt], files: dict[str, str], seed: int) -> Stage:
    """Half of each label's groups to fit, half to test."""

    def write(job: Job) -> Headline:
        fit, test = split_prompts(prompts, seed)
        write_prompts(job.output(FIT_PROMPTS), fit)
        write_prompts(job.output(TEST_PROMPTS), test)
        return {"fit": len(fit), "test": len(test)}

    return Stage(
        "prompts",
        (),
        (FIT_PROMPTS, TEST_PROMPTS),
        {"files": sorted(files.values()), "seed": seed},
        write,
    )


def split_prompts(prompts: Sequence[Prompt], seed: int) -> tuple[list[Prompt], list[Prompt]]:
    """Halve the groups of each label at random; every id stays unique across both files."""
    fit: list[Prompt] = []
    test: list[Prompt] = []
    for label in ("harmful", "benign"):
        mine = [prompt for prompt in prompts if prompt.label == label]
        groups = sorted({prompt.group for prompt in mine})
        chosen = set(random.Random(f"split:{label}:{seed}").sample(groups, len(groups) // 2))
        fit += [prompt for prompt in mine if prompt.group in chosen]
        test += [prompt for prompt in mine if prompt.group not in chosen]
    return fit, test
