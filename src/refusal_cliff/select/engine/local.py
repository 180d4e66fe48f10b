"""Scoring the shards that are missing: here, or sharing them with the other ranks of a launch."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeVar, get_args

import torch

from refusal_cliff.model.subject import Subject
from refusal_cliff.select.shards import ScoringPlan, ShardScorer, missing_shards

Engine = Literal["local", "ray"]
ENGINES: tuple[Engine, ...] = get_args(Engine)
Progress = Callable[[int, int], None]
"""Called with (shards done, shards)."""
_WAIT = 0.2
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Rank:
    """This process among those that ``accelerate launch`` or ``torchrun`` has started.

    They talk through the files of the shared folder alone, so they need no process group.
    """

    number: int = 0
    local: int = 0
    world: int = 1

    @classmethod
    def here(cls) -> Rank:
        """As the launcher has put it into the environment; alone without a launcher."""
        number, local, world = (
            int(os.environ.get(name, default))
            for name, default in (("RANK", "0"), ("LOCAL_RANK", "0"), ("WORLD_SIZE", "1"))
        )
        return cls(number, local, world)

    @property
    def first(self) -> bool:
        """Whether this is the process that reads the data set and puts the results together."""
        return self.number == 0

    def device(self, asked: str) -> str:
        """The device of this process: a GPU of its own, where there are several."""
        if asked == "auto" and self.world > 1 and torch.cuda.is_available():
            return f"cuda:{self.local}"
        return asked

    def wait_for(self, found: Callable[[], T | None]) -> T:
        """Wait for what another rank writes; the launcher ends us if that one fails."""
        while (written := found()) is None:
            time.sleep(_WAIT)
        return written


def run_shards(
    plan: ScoringPlan,
    shards: int,
    *,
    subject: Subject | None = None,
    engine: Engine = "local",
    actors: int = 1,
    progress: Progress | None = None,
) -> None:
    """Score every shard that is not scored yet, and return when all are.

    Args:
        plan: What each process does.
        shards: How many there are.
        subject: The model, if this process has it.
        engine: ``local`` or ``ray``; both write the same rows.
        actors: Replicas of the model on the Ray cluster.
        progress: Told after each shard.
    """
    if engine == "ray":
        from refusal_cliff.select.engine.ray import run_on_ray

        run_on_ray(plan, shards, actors, progress)
        return
    rank = Rank.here()
    mine = [n for n in missing_shards(plan.out, shards) if n % rank.world == rank.number]
    if mine:
        scorer = ShardScorer(plan.on(rank.device(plan.loading.device)), subject)
        for number in mine:
            scorer(number)
            _tell(plan, shards, progress)
    while rank.first and missing_shards(plan.out, shards):
        time.sleep(_WAIT)
        _tell(plan, shards, progress)


def _tell(plan: ScoringPlan, shards: int, progress: Progress | None) -> None:
    if progress is not None:
        progress(shards - len(missing_shards(plan.out, shards)), shards)
