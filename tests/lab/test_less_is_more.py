"""The experiment at a small size: every trial is there, is kept, and is what its name says."""

from __future__ import annotations

from collections import Counter as Counts
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from lab.less_is_more import (
    CHART,
    POINTS,
    ExperimentSizes,
    outcome_table,
    run_experiment,
)
from lab.pretrained.pool import POOL
from lab.pretrained.sources import EVALUATION, FIT_ON
from lab.trials import BENIGN, TrialPlan, pool_file, read_trial, trial_names
from refusal_cliff.data.examples import read_examples, source_of, write_prompts
from refusal_cliff.data.traces import read_prompts
from refusal_cliff.data.types import Label
from refusal_cliff.organisms import language
from refusal_cliff.run.pipeline import Silent
from refusal_cliff.settings import RepairConfig
from refusal_cliff.stages.study import TEST_PROMPTS

PLAN = TrialPlan(
    seeds=(0, 1),
    strategies=("random", "full"),
    fractions=(0.2,),
    repair=RepairConfig(steps=1, batch_size=4),
    epochs=0,
)
SIZES = ExperimentSizes(fit=44, test=6, pool=20, benign=8)


def public_files(folder: Path) -> Path:
    """Files as those of a pretrained organism's audit, in the language of the embedded ones."""
    labels_of: dict[str, tuple[Label, ...]] = {
        "self_instruct": ("benign",),
        "xstest": ("harmful", "benign"),
    }
    for seed, name in enumerate((*POOL, *EVALUATION)):
        labels = labels_of.get(name, ("harmful",))
        split = "pool" if name in POOL else "validation" if name in FIT_ON else "test"
        asked = [p for label in labels for p in language.prompts(split, label, 48, seed)]
        write_prompts(folder / f"{name}.jsonl", [replace(p, id=f"{name}-{p.id}") for p in asked])
    return folder


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


@pytest.mark.slow
def test_public_files_instead_of_the_language(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    plan = replace(PLAN, seeds=(0,), repair=replace(PLAN.repair, benign_share=0.5))
    outcome = run_experiment("tiny", tmp_path / "run", plan, SIZES, data=public_files(data))
    assert [point.strategy for point in outcome.points] == ["random", "full"]
    tested = read_prompts(tmp_path / "run" / TEST_PROMPTS)
    assert {source_of(prompt) for prompt in tested} <= {*EVALUATION} - {*FIT_ON}
    assert Counts(prompt.label for prompt in tested) == {"harmful": 6, "benign": 6}
    pool = read_examples(tmp_path / "run" / pool_file(0))
    assert len(pool) == SIZES.pool
    benign = read_examples(tmp_path / "run" / BENIGN)
    assert benign and all(example.prompt.label == "benign" for example in benign)
