"""select → repair: which few examples repair the model, against random ones and all of them?"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from refusal_cliff.answers.evaluate import rates
from refusal_cliff.data.examples import read_examples
from refusal_cliff.data.traces import complies, read_prompts, write_traces
from refusal_cliff.io import read_json, write_json
from refusal_cliff.repair.training import load_repaired, repair
from refusal_cliff.run.folder import Headline
from refusal_cliff.run.pipeline import Job, Stage
from refusal_cliff.select.candidates import measure
from refusal_cliff.select.contamination import clean_pool
from refusal_cliff.select.strategies import FRACTION, Strategy, how_many, select
from refusal_cliff.settings import RepairConfig
from refusal_cliff.stages.measure import input_probes
from refusal_cliff.stages.study import TEST_PROMPTS, Study, told_rates

STRATEGIES: tuple[Strategy, ...] = ("cliff", "random", "full")
"""Those that the demo compares; the laboratory compares all."""
POOL, BENIGN = "prompts/pool.jsonl", "prompts/benign.jsonl"
_ADAPTER = ("adapter/adapter_model.safetensors", "adapter/adapter_config.json")


@dataclass(frozen=True, slots=True)
class MendPlan:
    """How to select and train.

    Attributes:
        fraction: Share of the pool that is chosen.
        repair: Budget and mix, the same for every strategy.
    """

    fraction: float = FRACTION
    repair: RepairConfig = field(default_factory=RepairConfig)


def mend_stages(study: Study, plan: MendPlan) -> list[Stage]:
    """The stages that choose examples and train on them, one repair a strategy."""
    selection = study.path("selection.json")
    stages = [
        study.stage(
            "select",
            (
                POOL,
                TEST_PROMPTS,
                study.path("probes.safetensors"),
                study.path("probes.json"),
            ),
            ("pool.parquet", "selection.json"),
            lambda job: _select(study, plan, job),
            {"fraction": plan.fraction, **study.verdicts},
        )
    ]
    for strategy in STRATEGIES:
        folder = f"repair-{strategy}"
        stages.append(
            study.stage(
                folder,
                (POOL, BENIGN, TEST_PROMPTS, selection),
                [*(f"{folder}/{f}" for f in _ADAPTER), f"{folder}/traces.parquet"],
                lambda job, strategy=strategy: _repair(study, plan, strategy, job),
                {**plan.repair.decides(), **study.verdicts},
            )
        )
    return stages


def _select(study: Study, plan: MendPlan, job: Job) -> Headline:
    pool = clean_pool(read_examples(job.input(POOL)), read_prompts(job.input(TEST_PROMPTS)))
    traces = study.write([example.prompt for example in pool.examples], job)
    candidates = measure(study.subject, input_probes(study, job), traces)
    n = how_many(len(candidates), plan.fraction)
    chosen = {name: select(name, candidates, n, study.seed) for name in STRATEGIES}
    complied = {trace.prompt.id for trace in traces if complies(trace.verdict)}
    write_traces(job.output(study.path("pool.parquet")), traces)
    content = {
        "pool": len(pool.examples),
        "duplicates": pool.duplicates,
        "contaminated": pool.contaminated,
        "unscored": sum(candidate.cliff is None for candidate in candidates),
        "failures": len(complied),
        "n": n,
        "chosen": {name: [c.id for c in found] for name, found in chosen.items()},
        "failures_chosen": {
            name: sum(c.id in complied for c in found) for name, found in chosen.items()
        },
    }
    write_json(job.output(study.path("selection.json")), content)
    return {
        "pool": len(pool.examples),
        "failures": len(complied) / len(traces),
        "chosen": n,
        "failures among chosen": sum(c.id in complied for c in chosen["cliff"]) / n,
    }


def _repair(study: Study, plan: MendPlan, strategy: Strategy, job: Job) -> Headline:
    folder = f"repair-{strategy}"
    wanted = set(read_json(job.input(study.path("selection.json")))["chosen"][strategy])
    chosen = [e for e in read_examples(job.input(POOL)) if e.prompt.id in wanted]
    adapter = job.output(study.path(f"{folder}/{_ADAPTER[0]}")).parent
    repair(study.subject, chosen, read_examples(job.input(BENIGN)), plan.repair, adapter)
    repaired = replace(study, subject=load_repaired(study.subject, adapter))
    traces = repaired.write(read_prompts(job.input(TEST_PROMPTS)), job)
    write_traces(job.output(study.path(f"{folder}/traces.parquet")), traces)
    return {"examples": len(chosen), **told_rates(rates(traces))}
