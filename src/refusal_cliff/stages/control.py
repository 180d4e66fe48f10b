"""Controls as stages: each reads what a run measured, measures what it doubts, leaves one table."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

from refusal_cliff.cliff.curves import read_cliffs
from refusal_cliff.controls.sources import by_source
from refusal_cliff.controls.table import ControlTable, write_table
from refusal_cliff.controls.taxonomy import taxonomy
from refusal_cliff.data.traces import read_traces
from refusal_cliff.errors import RefusalCliffError
from refusal_cliff.run.folder import Headline
from refusal_cliff.run.pipeline import Job, Stage
from refusal_cliff.stages import control_probes
from refusal_cliff.stages.control_heads import choose_together, judge_heads
from refusal_cliff.stages.control_preset import compare_definitions
from refusal_cliff.stages.control_rollouts import intervene, prune_thinking, sample
from refusal_cliff.stages.study import Study


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
    traces = read_traces(job.input(study.path("traces-test.parquet")))
    return taxonomy(traces, read_cliffs(job.input(study.path("cliff.parquet"))))


def _sources(study: Study, job: Job) -> ControlTable:
    traces = read_traces(job.input(study.path("traces-test.parquet")))
    return by_source(traces, read_cliffs(job.input(study.path("cliff.parquet"))), study.seed)


ABLATED = ("ablated.parquet", "scores-ablated.parquet")
PROBES = ("probes.safetensors", "probes.json")
CONTROLS: dict[str, Control] = {
    "taxonomy": Control(
        "What became of each prompt", ("traces-test.parquet", "cliff.parquet"), _taxonomy
    ),
    "sources": Control(
        "The same on prompts of other sources?", ("traces-test.parquet", "cliff.parquet"), _sources
    ),
    "directions": Control(
        "Refusal, or harm, or the next token?",
        control_probes.INPUTS,
        control_probes.directions_control,
    ),
    "positions": Control(
        "An artefact of position or label?",
        control_probes.INPUTS,
        control_probes.positions_control,
    ),
    "pruning": Control(
        "Does more thinking make it worse?",
        ("traces-test.parquet", *PROBES),
        prune_thinking,
        writes=True,
    ),
    "intervention": Control(
        "What does the intervention do to the thinking?",
        ("traces-test.parquet", "ablation.json", *ABLATED, *PROBES),
        intervene,
        writes=True,
    ),
    "second-opinion": Control(
        "A second opinion on heads", ("traces-fit.parquet", "heads.parquet"), judge_heads
    ),
    "together": Control(
        "Heads chosen by what they do together",
        ("traces-test.parquet", "heads.parquet", "joint.json", "ablation.json", "ablated.parquet"),
        choose_together,
        writes=True,
    ),
    "rollouts": Control(
        "Several answers to one prompt",
        ("traces-test.parquet", "cliff.parquet", *PROBES),
        sample,
        writes=True,
    ),
    "preset": Control(
        "The paper's definitions",
        ("traces-fit.parquet", "traces-test.parquet"),
        compare_definitions,
        writes=True,
    ),
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
        write_table(job.output(control_file(study.key, name)), table)
        return {"rows": len(table.rows)}

    inputs = [study.path(file) for file in control.inputs]
    config = {
        "definitions": asdict(study.definitions),
        **(study.verdicts if control.writes else {}),
    }
    return study.stage(f"control-{name}", inputs, [f"control-{name}.json"], run, config)
