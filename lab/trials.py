"""pool → trials: for every seed, score a pool once, then repair with every choice out of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from lab.comparison import Trial
from refusal_cliff.answers.evaluate import perplexity
from refusal_cliff.data.examples import read_examples
from refusal_cliff.data.traces import read_prompts, read_traces, write_traces
from refusal_cliff.data.types import SafetyExample, Trace, complies
from refusal_cliff.io import read_json, write_json
from refusal_cliff.model.subject import Subject
from refusal_cliff.probe.fit import ProbeSet
from refusal_cliff.repair.training import load_repaired, repair
from refusal_cliff.run.folder import Headline
from refusal_cliff.run.pipeline import Job, Stage
from refusal_cliff.select.candidates import measure
from refusal_cliff.select.contamination import clean_pool
from refusal_cliff.select.strategies import (
    FRACTION,
    STRATEGIES,
    Candidate,
    Strategy,
    how_many,
    select,
)
from refusal_cliff.settings import RepairConfig
from refusal_cliff.stages.study import PROBES, TEST, TEST_PROMPTS, Study
from refusal_cliff.tables import read_parquet, write_parquet

BENIGN = "prompts/benign.jsonl"


@dataclass(frozen=True, slots=True)
class TrialPlan:
    """What is compared.

    Attributes:
        seeds: Each is one pool, one draw and one training.
        strategies: Ways to choose, ``full`` among them or not.
        fractions: Shares of the pool that each chooses; ``full`` takes all once.
        repair: Budget and mix of every repair; its seed is that of the trial.
        epochs: Besides, all of the pool so many times, with as many steps as that takes; 0 for not.
    """

    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    strategies: tuple[Strategy, ...] = STRATEGIES
    fractions: tuple[float, ...] = (FRACTION,)
    repair: RepairConfig = field(default_factory=RepairConfig)
    epochs: int = 0


def pool_file(seed: int) -> str:
    """The safety data of a seed, in the run folder."""
    return f"prompts/pool-{seed}.jsonl"


def trial_names(plan: TrialPlan, seed: int) -> list[str]:
    """The trials of a seed, by name."""
    chosen = [
        f"{strategy}-{fraction:g}".replace(".", "_")
        for strategy in plan.strategies
        if strategy != "full"
        for fraction in plan.fractions
    ]
    whole = ["full"] if "full" in plan.strategies else []
    epochs = ["full-epochs"] if whole and plan.epochs else []
    return [f"trial-{seed}/{name}" for name in [*chosen, *whole, *epochs]]


def trial_files(study: Study, plan: TrialPlan) -> list[str]:
    """The result of every trial, in the run folder."""
    return [study.path(f"{n}.json") for seed in plan.seeds for n in trial_names(plan, seed)]


def trial_stages(study: Study, plan: TrialPlan) -> list[Stage]:
    """One stage that scores a seed's pool, and one for each trial on it."""
    stages: list[Stage] = []
    for seed in plan.seeds:
        scored = [f"pool-{seed}.parquet", f"candidates-{seed}.parquet"]
        stages.append(
            study.stage(
                f"score-{seed}",
                PROBES,
                scored,
                lambda job, seed=seed: _score(study, seed, job),
                shared=(pool_file(seed), TEST_PROMPTS),
            )
        )
        for name, (strategy, fraction, config) in zip(
            trial_names(plan, seed), _trials(plan, seed), strict=True
        ):
            stages.append(
                study.stage(
                    name,
                    (*PROBES, TEST, *scored),
                    (f"{name}.json",),
                    lambda job, n=name, s=strategy, f=fraction, c=config: _trial(
                        study, n, s, f, c, plan.epochs, job
                    ),
                    {"strategy": strategy, "fraction": fraction, **config.decides()}
                    | ({"epochs": plan.epochs} if name.endswith("epochs") else {}),
                    shared=(pool_file(seed), BENIGN, TEST_PROMPTS),
                )
            )
    return stages


def _trials(plan: TrialPlan, seed: int) -> list[tuple[Strategy, float, RepairConfig]]:
    """What each of `trial_names` does."""
    config = replace(plan.repair, seed=seed)
    chosen: list[tuple[Strategy, float, RepairConfig]] = [
        (strategy, fraction, config)
        for strategy in plan.strategies
        if strategy != "full"
        for fraction in plan.fractions
    ]
    whole: tuple[Strategy, float, RepairConfig] = ("full", 1.0, config)
    if "full" in plan.strategies:
        chosen += [whole] * (1 + (plan.epochs > 0))
    return chosen


def _score(study: Study, seed: int, job: Job) -> Headline:
    pool = clean_pool(
        read_examples(job.input(pool_file(seed))), read_prompts(job.input(TEST_PROMPTS))
    )
    traces = study.write([example.prompt for example in pool.examples], job)
    candidates = measure(study.subject, study.probes(job), traces)
    write_traces(study.output(job, f"pool-{seed}.parquet"), traces)
    write_candidates(study.output(job, f"candidates-{seed}.parquet"), candidates)
    return {
        "pool": len(traces),
        "failures": sum(complies(trace.verdict) for trace in traces) / len(traces),
        "left out": pool.duplicates + pool.contaminated,
    }


def _trial(
    study: Study,
    name: str,
    strategy: Strategy,
    fraction: float,
    config: RepairConfig,
    epochs: int,
    job: Job,
) -> Headline:
    seed = config.seed
    scored = read_candidates(study.input(job, f"candidates-{seed}.parquet"))
    pool = [candidate for candidate in scored if candidate.cliff is not None]
    chosen = select(strategy, pool, how_many(len(pool), fraction), seed)
    traces = read_traces(study.input(job, f"pool-{seed}.parquet"))
    answered = {e.prompt.id: e for e in read_examples(job.input(pool_file(seed)))}
    safety = own_thinking(chosen, traces, answered)
    if name.endswith("epochs"):
        safety_per_step = config.batch_size - config.benign_per_step
        config = replace(config, steps=-(-epochs * len(safety) // safety_per_step))
    benign = read_examples(job.input(BENIGN))
    adapter = repair(study.subject, safety, benign, config, job.work / "adapter")
    repaired = load_repaired(study.subject, adapter)
    before = study.traces(job, "test")
    found = assess(repaired, study.probes(job), study, before, job)
    failures = sum(complies(candidate.verdict) for candidate in chosen)
    trial = Trial(strategy, fraction, len(chosen), seed, config.steps, failures, **found)
    write_json(study.output(job, f"{name}.json"), asdict(trial))
    return {"examples": trial.n, "asr": trial.asr, "benign answered": trial.useful}


def own_thinking(
    chosen: Sequence[Candidate],
    traces: Sequence[Trace],
    answered: dict[str, SafetyExample],
) -> list[SafetyExample]:
    """The training rows: the model's own thinking with the data's answer, as in the paper."""
    thought = {trace.prompt.id: trace.thinking for trace in traces}
    return [replace(answered[c.id], thinking=thought[c.id].strip()) for c in chosen]


def assess(
    repaired: Subject, probes: ProbeSet, study: Study, before: Sequence[Trace], job: Job
) -> dict[str, Any]:
    """What a repaired model does with the test prompts, and where its score stands."""
    prompts = read_prompts(job.input(TEST_PROMPTS))
    traces = replace(study, subject=repaired).write(prompts, job)
    harmful = [trace for trace in traces if trace.prompt.label == "harmful"]
    scored = measure(repaired, probes, harmful)
    texts = [
        (trace.token_ids, trace.spans.prompt)
        for trace in before
        if trace.spans is not None and trace.prompt.label == "benign" and complies(trace.verdict)
    ]
    return {
        "complied": tuple(complies(trace.verdict) for trace in harmful),
        "answered": tuple(complies(t.verdict) for t in traces if t.prompt.label == "benign"),
        "perplexity": perplexity(repaired, texts) / perplexity(study.subject, texts),
        "plateau": _mean([candidate.plateau for candidate in scored]),
        "final": _mean([candidate.final for candidate in scored]),
    }


def _mean(values: Sequence[float | None]) -> float:
    """Mean of the known ones; 0 where the model closes its thinking nowhere."""
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else 0.0


def read_trial(path: Path) -> Trial:
    """Read what a trial wrote."""
    content = read_json(path)
    lists = {name: tuple(content[name]) for name in ("complied", "answered")}
    return Trial(**{**content, **lists})


def write_candidates(path: Path, candidates: Sequence[Candidate]) -> None:
    """Write candidates so that `read_candidates` gives them back."""
    rows = [
        {
            **{name: getattr(c, name) for name in Candidate.__slots__},
            "state": None if c.state is None else c.state.tolist(),
        }
        for c in candidates
    ]
    write_parquet(path, pa.Table.from_pylist(rows))


def read_candidates(path: Path) -> list[Candidate]:
    """Read what `write_candidates` wrote."""
    rows = read_parquet(path).to_pylist()
    return [Candidate(**{**row, "state": _state(row["state"])}) for row in rows]


def _state(values: list[float] | None) -> NDArray[np.float32] | None:
    return None if values is None else np.array(values, dtype=np.float32)
