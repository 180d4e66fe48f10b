"""Scoring shards on a Ray cluster: a pool of actors, one replica of the model each.

An actor that dies is started again by Ray, and its shard is scored anew: a shard is whole or
absent. All nodes must see the folder of the selection under the same path.
"""

from __future__ import annotations

import logging
import os
from dataclasses import replace
from typing import Any

import torch

from refusal_cliff.errors import RefusalCliffError
from refusal_cliff.select.shards import ScoringPlan, ShardScorer, missing_shards

_QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}


class _Actor:
    """One replica of the model; Ray gives it batches of one shard number."""

    def __init__(self, plan: ScoringPlan) -> None:
        torch.set_num_threads(max(1, int(os.environ.get("OMP_NUM_THREADS", "1"))))
        self._scorer = ShardScorer(plan)
        self._plan = plan

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        for number in batch["shard"].tolist():
            if number in missing_shards(self._plan.out, number + 1):
                self._scorer(number)
        return batch


def run_on_ray(plan: ScoringPlan, shards: int, actors: int, progress: Any = None) -> None:
    """Score the missing shards with a pool of actors of the running cluster, or of a local one.

    Args:
        plan: What each actor does; its folders are made absolute.
        shards: How many there are.
        actors: Replicas of the model.
        progress: Called with (shards done, shards).

    Raises:
        RefusalCliffError: Ray is not installed.
    """
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    try:
        import ray
    except ImportError as error:
        raise RefusalCliffError(
            "The engine 'ray' needs Ray, which is not installed. "
            "Install it with: pip install 'refusal-cliff[ray]'."
        ) from error
    todo = missing_shards(plan.out, shards)
    if not todo:
        return
    started = not ray.is_initialized()
    if started:
        ray.init(include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    try:
        _run(ray, plan, shards, todo, min(actors, len(todo)), progress)
    finally:
        if started:
            ray.shutdown()


def _run(
    ray: Any,
    plan: ScoringPlan,
    shards: int,
    todo: list[int],
    actors: int,
    progress: Any,
) -> None:
    from ray import data

    data.DataContext.get_current().enable_progress_bars = False
    everywhere = replace(plan, probe=plan.probe.resolve(), out=plan.out.resolve())
    on_gpu = ray.cluster_resources().get("GPU", 0) >= actors and plan.loading.device != "cpu"
    numbers = data.from_items([{"shard": n} for n in todo], override_num_blocks=len(todo))
    scored = numbers.map_batches(
        _Actor,
        fn_constructor_args=(everywhere,),
        batch_size=1,
        compute=data.ActorPoolStrategy(size=actors),
        num_gpus=1 if on_gpu else 0,
        num_cpus=1,
    )
    for _ in scored.iter_batches(batch_size=1, prefetch_batches=0):
        if progress is not None:
            progress(shards - len(missing_shards(plan.out, shards)), shards)
