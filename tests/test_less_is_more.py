"""The experiment at a small size: every trial is there, is kept, and is what its name says."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq

from refusal_cliff.repair.training import RepairConfig
from refusal_cliff.run.pipeline import Silent
from refusal_cliff.stages.trials import TrialPlan, read_trial, trial_names
from refusal_cliff.workflows.less_is_more import (
    CHART,
    POINTS,
    ExperimentSizes,
    outcome_table,
    run_experiment,
)

PLAN = TrialPlan(
    seeds=(0, 1),
    strategies=("random", "full"),
    fractions=(0.2,),
    repair=RepairConfig(steps=1, batch_size=4),
    epochs=0,
)
SIZES = ExperimentSizes(fit=44, test=6, pool=20, benign=8)


class Counter(Silent):
    def __init__(self) -> None:
        self.started: list[str] = []

    def stage_started(self, name: str) -> None:
        self.started.append(name)


def test_a_small_experiment(tmp_path: Path) -> None:
    outcome = run_experiment("tiny", tmp_path, PLAN, SIZES)
    assert [(p.strategy, p.n, p.seeds) for p in outcome.points] == [
        ("random", 4.0, 2),
        ("full", 20.0, 2),
    ]
    assert set(outcome.tests) == {"random 0.2 - full"}
    assert len(pq.read_table(tmp_path / POINTS)) == 2
    assert (tmp_path / CHART).read_text().startswith("<svg xmlns")
    assert len(outcome_table(outcome)) == 3
    for seed in PLAN.seeds:
        for name in trial_names(PLAN, seed):
            trial = read_trial(tmp_path / "model" / f"{name}.json")
            assert (trial.seed, trial.steps) == (seed, 1)
            assert len(trial.complied) == len(trial.answered) == 6
    again = Counter()
    assert run_experiment("tiny", tmp_path, PLAN, SIZES, again) == outcome
    assert again.started == []
