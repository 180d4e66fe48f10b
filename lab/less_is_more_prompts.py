"""What the experiment on selection asks and trains on: an organism's language, or public files."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from lab.pretrained.pool import own_benign, safety_pool
from lab.pretrained.sources import recorded_sources
from lab.trials import BENIGN, pool_file
from refusal_cliff.data.examples import write_examples, write_prompts
from refusal_cliff.data.traces import read_traces
from refusal_cliff.data.types import LABELS, Prompt
from refusal_cliff.organisms import language
from refusal_cliff.organisms.language import both_labels
from refusal_cliff.run.folder import Headline
from refusal_cliff.run.pipeline import Job, Stage
from refusal_cliff.stages.study import FIT_PROMPTS, TEST_PROMPTS, Study
from refusal_cliff.workflows.audit_prompts import audit_prompts


@dataclass(frozen=True, slots=True)
class ExperimentSizes:
    """How much is asked of an organism.

    Attributes:
        fit: Prompts of each label to fit the probe.
        test: Prompts of each label to test on.
        pool: Safety examples of each seed.
        benign: Benign examples mixed into every repair.
    """

    fit: int = 120
    test: int = 100
    pool: int = 2000
    benign: int = 400


def language_stage(seeds: Sequence[int], sizes: ExperimentSizes) -> Stage:
    """Prompts of the organism's language; a pool for each seed, one test for all."""
    pools = [pool_file(seed) for seed in seeds]

    def write(job: Job) -> Headline:
        write_prompts(job.output(FIT_PROMPTS), both_labels("validation", sizes.fit, 0))
        write_prompts(job.output(TEST_PROMPTS), both_labels("test", sizes.test, 0))
        for seed, file in zip(seeds, pools, strict=True):
            write_examples(job.output(file), language.safety_pool(sizes.pool, seed))
        write_examples(job.output(BENIGN), language.examples("pool", "benign", sizes.benign, 0))
        return {"test": 2 * sizes.test, "pools": len(pools)}

    config = {"seeds": list(seeds), **asdict(sizes)}
    return Stage("prompts", (), (FIT_PROMPTS, TEST_PROMPTS, BENIGN, *pools), config, write)


def public_stage(data: Path, seeds: Sequence[int], sizes: ExperimentSizes) -> Stage:
    """Prompts of the recorded audit of a pretrained organism, drawn at random, and pools."""
    pools = [pool_file(seed) for seed in seeds]
    every = audit_prompts(recorded_sources(data), 0)
    test = _drawn(every.test, sizes.test, 0)

    def write(job: Job) -> Headline:
        write_prompts(job.output(FIT_PROMPTS), _drawn(every.fit, sizes.fit, 0))
        write_prompts(job.output(TEST_PROMPTS), test)
        for seed, file in zip(seeds, pools, strict=True):
            write_examples(job.output(file), safety_pool(data, sizes.pool, seed))
        return {"test": len(test), "pools": len(pools)}

    config = {"seeds": list(seeds), **asdict(sizes), "files": sorted(every.files.values())}
    return Stage("prompts", (), (FIT_PROMPTS, TEST_PROMPTS, *pools), config, write)


def own_benign_stage(study: Study, most: int) -> Stage:
    """Benign examples of every repair: what the model itself answered to prompts to fit on."""
    traces = study.path("traces-fit.parquet")

    def write(job: Job) -> Headline:
        examples = own_benign(read_traces(job.input(traces)))[:most]
        write_examples(job.output(BENIGN), examples)
        return {"benign": len(examples)}

    return Stage("benign", (traces,), (BENIGN,), {"most": most}, write)


def _drawn(prompts: Sequence[Prompt], most: int, seed: int) -> list[Prompt]:
    """At most so many prompts of each label, drawn at random, in their order."""
    kept: set[str] = set()
    for label in LABELS:
        mine = [prompt.id for prompt in prompts if prompt.label == label]
        rng = random.Random(f"some:{label}:{seed}")
        kept.update(rng.sample(mine, min(most, len(mine))))
    return [prompt for prompt in prompts if prompt.id in kept]
