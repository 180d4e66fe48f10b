"""The experiment on selection: harm and usefulness by number of examples, for every strategy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from lab.comparison import Paired, Point, grouped, paired, points, write_points
from lab.examples_chart import examples_chart
from lab.less_is_more_prompts import (
    ExperimentSizes,
    language_stage,
    own_benign_stage,
    public_stage,
)
from lab.pretrained.sources import RECORDED
from lab.trials import TrialPlan, read_trial, trial_files, trial_stages
from refusal_cliff.io import read_json, write_json, write_text
from refusal_cliff.model.subject import Subject, load_subject
from refusal_cliff.run.folder import Headline, RunInfo
from refusal_cliff.run.pipeline import Job, Observer, Stage, run_pipeline
from refusal_cliff.select.strategies import FRACTION
from refusal_cliff.settings import RepairConfig
from refusal_cliff.stages.measure import measure_stages
from refusal_cliff.stages.study import Study
from refusal_cliff.workflows.demo import GENERATION, LEARNING_RATE

POINTS, TESTS, CHART = "less-is-more.parquet", "less-is-more.json", "less-is-more.svg"
STEPS = 16
PUBLIC_POOL = 600
"""Public requests of each seed; there are 1,564 in all."""
REFERENCES = ("random", "full")
"""What every strategy is tested against."""


def default_plan(*, public: bool = False) -> TrialPlan:
    """The plan whose results docs/results/selection.md shows; public: results/smollm2.md."""
    if not public:
        return TrialPlan(repair=RepairConfig(steps=STEPS, lr=LEARNING_RATE))
    return TrialPlan(
        seeds=(0, 1, 2),
        strategies=("cliff", "random", "full"),
        fractions=(FRACTION, 0.06),
        repair=RepairConfig(steps=24, batch_size=8, lr=1e-3, max_length=512),
    )


def default_sizes(*, public: bool = False) -> ExperimentSizes:
    """How much is asked there."""
    return ExperimentSizes(pool=PUBLIC_POOL) if public else ExperimentSizes()


@dataclass(frozen=True, slots=True)
class Outcome:
    """What the experiment has found.

    Attributes:
        points: One a strategy, fraction and number of steps.
        tests: ``<strategy> <fraction> - <reference>`` to the paired comparison.
    """

    points: list[Point]
    tests: dict[str, Paired] = field(default_factory=dict)


def run_experiment(
    model: str,
    out: Path,
    plan: TrialPlan | None = None,
    sizes: ExperimentSizes | None = None,
    observer: Observer | None = None,
    data: Path | None = None,
) -> Outcome:
    """Run, or continue, the experiment on an organism in the run folder ``out``.

    Args:
        model: Name or folder of an organism, whose language gives prompts and pools.
        out: The run folder; made if absent.
        plan: What is compared.
        sizes: How much is asked.
        observer: Told what happens.
        data: For an organism of a pretrained model: folder of the public files, see
            `recorded_sources`, that prompts and pools come from instead.

    Raises:
        RefusalCliffError: The folder, a file or the model cannot be used.
    """
    public = data is not None
    plan, sizes = plan or default_plan(public=public), sizes or default_sizes(public=public)
    subject = load_subject(model, device="cpu")
    info = RunInfo(
        command="lab less-is-more",
        config={"sizes": asdict(sizes), "plan": _as_json(plan)},
        seeds={str(seed): seed for seed in plan.seeds},
        subjects={subject.name: subject.fingerprint},
    )
    run_pipeline(out, experiment_stages(subject, plan, sizes, data), info, observer)
    return read_outcome(out)


def _as_json(plan: TrialPlan) -> dict[str, object]:
    return {name: list(v) if isinstance(v, tuple) else v for name, v in asdict(plan).items()}


def experiment_stages(
    subject: Subject, plan: TrialPlan, sizes: ExperimentSizes, data: Path | None = None
) -> list[Stage]:
    """Measure the model, score each seed's pool, repair, and compare."""
    if data is None:
        study = Study("model", subject, 0, GENERATION)
        first = [language_stage(plan.seeds, sizes), *measure_stages(study)]
    else:
        study = Study("model", subject, 0, RECORDED)
        first = [
            public_stage(data, plan.seeds, sizes),
            *measure_stages(study),
            own_benign_stage(study, sizes.benign),
        ]
    return [
        *first,
        *trial_stages(study, plan),
        Stage(
            "compare",
            tuple(trial_files(study, plan)),
            (POINTS, TESTS, CHART),
            {"references": list(REFERENCES), "intervals": "t over seeds, at least Wilson"},
            lambda job: _compare(job),
        ),
    ]


def _compare(job: Job) -> Headline:
    trials = [read_trial(job.input(name)) for name in job.stage.inputs]
    found = points(trials)
    groups = grouped(trials)
    tests: dict[str, object] = {}
    for (strategy, fraction, steps), group in groups.items():
        for reference in REFERENCES:
            other = groups.get((reference, 1.0 if reference == "full" else fraction, steps))
            if other is not None and reference != strategy:
                tests[f"{strategy} {fraction:g} - {reference}"] = asdict(paired(group, other))
    write_points(job.output(POINTS), found)
    write_json(job.output(TESTS), {"points": [asdict(point) for point in found], "tests": tests})
    write_text(job.output(CHART), examples_chart(found))
    best = min(found, key=lambda point: point.asr)
    return {"trials": len(trials), "lowest asr": best.asr, "by": best.strategy}


def read_outcome(out: Path) -> Outcome:
    """Read what the experiment in a run folder has found."""
    content = read_json(out / TESTS)
    made = [Point(**_tuples(row)) for row in content["points"]]
    return Outcome(made, {name: Paired(**row) for name, row in content["tests"].items()})


def _tuples(row: dict[str, Any]) -> dict[str, Any]:
    return {name: tuple(v) if isinstance(v, list) else v for name, v in row.items()}


def outcome_table(outcome: Outcome) -> Sequence[Sequence[str]]:
    """The points as a table: heading first, then one row each."""
    heading = ["strategy", "examples", "steps", "failures", "ASR", "benign answered"]
    heading += ["perplexity ×", "plateau", "final", "ASR − random (p seeds, p prompts)"]
    return [heading, *(_row(outcome, point) for point in outcome.points)]


def _row(outcome: Outcome, point: Point) -> list[str]:
    test = outcome.tests.get(f"{point.strategy} {point.fraction:g} - random")
    compared = "" if test is None else f"{test.difference:+.3f} "
    compared += "" if test is None else f"({test.p_seeds:.3g}, {test.p_prompts:.3g})"
    return [
        point.strategy,
        f"{point.n:.0f} ({point.fraction:.1%})",
        str(point.steps),
        f"{point.failures:.0%}",
        _share(point.asr, point.asr_ci),
        _share(point.useful, point.useful_ci),
        f"{point.perplexity:.3f}",
        f"{point.plateau:.2f}",
        f"{point.final:.2f}",
        compared,
    ]


def _share(value: float, interval: tuple[float, float]) -> str:
    return f"{value:.3f} [{interval[0]:.3f}, {interval[1]:.3f}]"
