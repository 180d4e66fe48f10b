"""One function over many shards: in this process, in every process of a launch, or on Ray.

A shard is rows that are worked on together. Its result is whole or absent, on the disk, so that any
number of processes may work on the shards of one folder, in any order, and none is done twice.
Whoever is started by ``torchrun`` or ``accelerate launch`` takes every N-th shard; Ray's actors are
given shards while they are read. All nodes must see the folders under the same path.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache
from itertools import chain
from pathlib import Path
from typing import Any, Generic, TypeVar

from refusal_cliff.errors import RefusalCliffError, not_installed
from refusal_cliff.folders import claim, is_claimed
from refusal_cliff.settings import Engine, Loading

HERE = Engine()
"""This process alone, or with the others of its launch."""
_WAIT = 0.2
_QUIET = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}
_RETRIES = 5
"""Deaths of an actor over one shard: of a machine that is taken away, not of a shard too large."""
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Work(Generic[T]):
    """A function over one shard.

    Attributes:
        start: Makes it, once in every process: loads the model. Ray sends it to other processes.
        is_done: Whether a shard's result is there, whole, and of the rows that it has now.
    """

    start: Callable[[], Callable[[T], object]]
    is_done: Callable[[T], bool]


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
        usual = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}
        return cls(*(int(os.environ.get(name, default)) for name, default in usual.items()))

    @property
    def first(self) -> bool:
        """Whether this is the process that puts the results together."""
        return self.number == 0

    def device(self, asked: str) -> str:
        """The device of this process: a GPU of its own, where there are several."""
        import torch

        if spread_later() and asked == "auto":
            return "cpu"
        if asked in ("auto", "cuda") and self.world > 1 and torch.cuda.is_available():
            return f"cuda:{self.local}"
        return asked

    def wait_for(self, found: Callable[[], T | None]) -> T:
        """Wait for what another rank writes; the launcher ends us if that one fails."""
        while (written := found()) is None:
            time.sleep(_WAIT)
        return written


def spread_later() -> bool:
    """Whether accelerate will share out the weights among processes (FSDP), once they are read."""
    return os.environ.get("ACCELERATE_USE_FSDP", "").lower() == "true"


def workers(engine: Engine) -> int:
    """How many processes work at the same time."""
    return engine.actors if engine.name == "ray" else Rank.here().world


def shares(engine: Engine) -> bool:
    """Whether this process does only a part, or on Ray none, of the work."""
    return engine.name == "ray" or Rank.here().world > 1


def loading_here(loading: Loading, engine: Engine) -> Loading:
    """How this process loads a model: on Ray it only looks at it, and leaves the GPUs to actors."""
    if engine.name == "ray":
        return replace(loading, device="cpu", device_map=None)
    return replace(loading, device=Rank.here().device(loading.device))


def claim_together(out: Path, command: str, made_from: Mapping[str, Any], holds: str) -> None:
    """Claim a folder, see `claim`: the first process does, and all others wait until it has."""
    rank = Rank.here()
    if rank.first:
        claim(out, command, made_from, holds)
    else:
        rank.wait_for(lambda: is_claimed(out, command, made_from) or None)


def run_shards(
    shards: Callable[[], Iterable[T]],
    work: Work[T],
    engine: Engine = HERE,
    told: Callable[[T], None] = lambda _: None,
) -> None:
    """Do this process's share of the shards; the first of a launch returns when all are done.

    Args:
        shards: Gives them in order, the same in every process and each time. One is held in memory,
            on Ray one for every actor.
        work: What is done with each that is not done.
        engine: Where.
        told: Called once with every shard: here once it is done or another process has it.

    Raises:
        RefusalCliffError: What the work raises; or Ray is not installed, or loses an actor over the
            same shard again and again.
    """
    if engine.name == "ray":
        _on_ray(_missing(shards(), work, told), work.start, engine.actors, told)
        return
    rank, start = Rank.here(), cache(work.start)
    for number, shard in enumerate(shards()):
        if number % rank.world == rank.number and not work.is_done(shard):
            start()(shard)
        told(shard)
    if rank.first and rank.world > 1:
        for shard in shards():
            while not work.is_done(shard):
                time.sleep(_WAIT)


def _missing(shards: Iterable[T], work: Work[T], told: Callable[[T], None]) -> Iterator[T]:
    for shard in shards:
        if work.is_done(shard):
            told(shard)
        else:
            yield shard


class ShardActor(Generic[T]):
    """A process of Ray's that does one shard after another."""

    def __init__(self, start: Callable[[], Callable[[T], object]], folder: str) -> None:
        if Path(folder).is_dir():  # paths that a user gave are meant from there
            os.chdir(folder)
        self._start = cache(start)

    def do(self, shard: T) -> None:
        """Do a shard; at the first, load the model."""
        import torch

        torch.set_num_threads(max(1, int(os.environ.get("OMP_NUM_THREADS", "1"))))
        self._start()(shard)


def _on_ray(
    todo: Iterator[T],
    start: Callable[[], Callable[[T], object]],
    actors: int,
    told: Callable[[T], None],
) -> None:
    """Give shards to actors, each a new one when it is free, of a running cluster or a local one.

    Ray Data would first read all rows into its store; so its actors are used alone.
    """
    first = next(todo, None)
    if first is None:
        return
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    try:
        import ray
    except ImportError as error:
        raise not_installed("The engine 'ray' needs Ray", "ray") from error
    started = not ray.is_initialized()
    if started:
        ray.init(include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    pool: list[Any] = []
    busy: dict[Any, tuple[Any, T | None]] = {}

    def free() -> Any:
        (ended, *_), _ = ray.wait(list(busy), num_returns=1)
        actor, shard = busy.pop(ended)
        _raise_if_failed(ray, ended)
        if shard is not None:
            told(shard)
        return actor

    try:
        kind = ray.remote(ShardActor).options(
            num_cpus=1,
            num_gpus=1 if ray.cluster_resources().get("GPU") else 0,
            max_restarts=-1,
            max_task_retries=_RETRIES,
        )
        pool += [kind.remote(start, str(Path.cwd())) for _ in range(actors)]
        # An actor that the cluster has no room for is never ready, and is given nothing.
        busy |= {actor.__ray_ready__.remote(): (actor, None) for actor in pool}
        for shard in chain([first], todo):
            actor = free()
            busy[actor.do.remote(shard)] = actor, shard
        while any(shard is not None for _, shard in busy.values()):
            free()
    finally:
        for actor in pool:  # else they keep cores and GPUs from what a running cluster does next
            ray.kill(actor)
        if started:
            ray.shutdown()


def _raise_if_failed(ray: Any, ended: Any) -> None:
    """Raise what an actor's work raised, as if it had been done here."""
    try:
        ray.get(ended)
    except ray.exceptions.RayTaskError as error:
        raise (error.cause if isinstance(error.cause, RefusalCliffError) else error) from None
    except ray.exceptions.RayActorError as error:
        raise RefusalCliffError(
            f"Ray lost the process of one shard {_RETRIES + 1} times: {str(error).splitlines()[0]} "
            "Its memory may be too small: use smaller batches or shards, then run the same command "
            "again: finished shards are kept."
        ) from error
