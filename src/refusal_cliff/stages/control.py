"""Controls as stages: each reads what a run measured, measures what it doubts, leaves one table."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

from refusal_cliff.cliff.curves import read_cliffs
from refusal_cliff.controls import (
    directions,
    intervention,
    positions,
    preset,
    pruning,
    rollouts,
    second_opinion,
    sources,
    taxonomy,
    together,
)
from refusal_cliff.controls.table import ControlTable
from refusal_cliff.errors import RefusalCliffError
from refusal_cliff.io import write_json
from refusal_cliff.run.folder import Headline
from refusal_cliff.run.pipeline import Job, Stage
from refusal_cliff.stages.study import ABLATION, FIT, HEADS, PROBES, TEST, Study


@dataclass(frozen=True, slots=True)
class Control:
    """One control.

    Attributes:
        title: What it asks.
        inputs: What it reads among the model's own files.
        measure: How it is measured.
        writes: Whether answers are written anew for it, and judged.
    """

    title: str
    inputs: tuple[str, ...]
    measure: Callable[[Study, Job], ControlTable]
    writes: bool = False


def _taxonomy(study: Study, job: Job) -> ControlTable:
    cliffs = read_cliffs(study.input(job, "cliff.parquet"))
    return taxonomy.taxonomy(study.traces(job, "test"), cliffs)


CONTROLS: dict[str, Control] = {
    "taxonomy": Control("What became of each prompt", (TEST, "cliff.parquet"), _taxonomy),
    "sources": Control(
        "The same on prompts of other sources?", (TEST, "cliff.parquet"), sources.measure
    ),
    "directions": Control(
        "Refusal, or harm, or the next token?", (FIT, TEST, *PROBES), directions.measure
    ),
    "positions": Control(
        "An artefact of position or label?", (FIT, TEST, *PROBES), positions.measure
    ),
    "pruning": Control(
        "Does more thinking make it worse?", (TEST, *PROBES), pruning.measure, writes=True
    ),
    "intervention": Control(
        "What does the intervention do to the thinking?",
        (TEST, ABLATION, "ablated.parquet", "scores-ablated.parquet", *PROBES),
        intervention.measure,
        writes=True,
    ),
    "second-opinion": Control("A second opinion on heads", (FIT, HEADS), second_opinion.measure),
    "together": Control(
        "Heads chosen by what they do together",
        (TEST, HEADS, "joint.json", ABLATION, "ablated.parquet"),
        together.measure,
        writes=True,
    ),
    "rollouts": Control(
        "Several answers to one prompt",
        (TEST, "cliff.parquet", *PROBES),
        rollouts.measure,
        writes=True,
    ),
    "preset": Control("The paper's definitions", (FIT, TEST), preset.measure, writes=True),
}
"""Every control by name, in the order in which they are shown."""


def control_file(key: str, name: str) -> str:
    """A control's table in the run folder."""
    return f"{key}/control-{name}.json"


def chosen_controls(names: Sequence[str]) -> tuple[str, ...]:
    """Names of controls as a user gives them: some, or ``all``.

    Raises:
        RefusalCliffError: There is no control of that name.
    """
    unknown = sorted(set(names) - {"all", *CONTROLS})
    if unknown:
        raise RefusalCliffError(
            f"There is no control {unknown[0]!r}. Choose one of: all, {', '.join(CONTROLS)}."
        )
    return tuple(name for name in CONTROLS if name in names or "all" in names)


def control_stages(study: Study, names: Sequence[str]) -> list[Stage]:
    """One stage a control, after those of `measure_stages` and `intervene_stages`."""
    return [_stage(study, name) for name in names]


def _stage(study: Study, name: str) -> Stage:
    control = CONTROLS[name]

    def run(job: Job) -> Headline:
        table = control.measure(study, job)
        write_json(job.output(control_file(study.key, name)), asdict(table))
        return {"rows": len(table.rows)}

    config = {
        "definitions": asdict(study.definitions),
        **(study.verdicts if control.writes else {}),
        **(study.elsewhere.ablating() if control.measure is together.measure else {}),
    }
    return study.stage(f"control-{name}", control.inputs, (f"control-{name}.json",), run, config)
