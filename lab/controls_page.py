"""All controls on the embedded organisms, whose right answers are known: one page of tables."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from refusal_cliff.controls.table import ControlTable, markdown
from refusal_cliff.heads.trials import CONTROLS as HEAD_CONTROLS
from refusal_cliff.io import read_as, write_text
from refusal_cliff.model.subject import load_subject
from refusal_cliff.run.folder import RunInfo
from refusal_cliff.run.pipeline import Observer, Stage, run_pipeline
from refusal_cliff.stages.control import CONTROLS, control_file, control_stages
from refusal_cliff.stages.intervene import AblationPlan, intervene_stages
from refusal_cliff.stages.measure import measure_stages
from refusal_cliff.stages.study import Study
from refusal_cliff.workflows.demo import GENERATION, DemoSizes, prompts_stage

PAGE = "controls.md"
PLAN = AblationPlan(
    fractions=(0, 0.03),
    dose_prompts=30,
    dose_benign=8,
    candidates=8,
    joint_traces=16,
    control_prompts=15,
    draws=dict.fromkeys(HEAD_CONTROLS, 0),
)


def run_controls(
    models: Sequence[str],
    out: Path,
    seed: int = 0,
    observer: Observer | None = None,
    *,
    names: Sequence[str] = tuple(CONTROLS),
    sizes: DemoSizes | None = None,
    workers: int = 1,
) -> Path:
    """Measure controls on organisms that speak the embedded language, and write one page.

    Args:
        models: Names or folders of organisms; the last part of a path is the name shown.
        out: The run folder; made if absent.
        seed: Seed of prompts, splits and draws.
        observer: Told what happens.
        names: Which controls.
        sizes: How much is asked; the defaults are those of the demo.
        workers: Stages at work at a time, see `run_pipeline`.

    Returns:
        The page: one section a control, one table a model.
    """
    sizes = sizes or DemoSizes()
    torch.set_num_threads(1)  # stages run in processes of their own
    subjects = {Path(name).name: load_subject(name, device="cpu") for name in models}
    stages = [prompts_stage(seed, sizes)]
    for key, subject in subjects.items():
        study = Study(key, subject, seed, GENERATION)
        stages += [
            *measure_stages(study),
            *_heads_if_asked(study, names),
            *control_stages(study, names),
        ]
    info = RunInfo(
        command="lab controls",
        seeds={"all": seed},
        subjects={key: subject.fingerprint for key, subject in subjects.items()},
    )
    run_pipeline(out, stages, info, observer, workers)
    write_text(out / PAGE, _page(list(subjects), out, names))
    return out / PAGE


def _heads_if_asked(study: Study, names: Sequence[str]) -> list[Stage]:
    """The stages on heads, which take minutes, where a chosen control reads what they make."""
    stages = intervene_stages(study, PLAN)
    wanted = {study.path(file) for name in names for file in CONTROLS[name].inputs}
    return stages if any(wanted & set(stage.outputs) for stage in stages) else []


def _page(keys: Sequence[str], out: Path, names: Sequence[str]) -> str:
    parts: list[str] = []
    for name in names:
        parts.append(f"## {CONTROLS[name].title}")
        for key in keys:
            table = read_as(out / control_file(key, name), ControlTable)
            parts.append(f"### {key}\n\n{markdown(table)}")
    return "\n\n".join(parts) + "\n"
