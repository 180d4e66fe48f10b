"""Stages that run in one folder, are skipped when nothing changed, and resume when killed.

A stage names its input files, its output files and its configuration. Its key is a hash of these
(inputs by content), so a stage runs again exactly when something that it depends on has changed.
"""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Protocol

from refusal_cliff.io import is_storage_error, storage_error
from refusal_cliff.progress import Progress
from refusal_cliff.run.folder import (
    Headline,
    Manifest,
    RunFolder,
    RunInfo,
    StageRecord,
    open_run_folder,
)
from refusal_cliff.run.forks import CAN_FORK, Fork, News

PIPELINE_VERSION = 5
"""Meaning of the artefacts; raised when a stage computes something else from the same inputs."""
_STAGE_NAME = re.compile(r"[a-z0-9][a-z0-9_-]*(/[a-z0-9][a-z0-9_-]*)*")


class Observer(Protocol):
    """Someone who watches a run: a terminal view, a log, a test."""

    def planned(self, names: Sequence[str]) -> None:
        """The run begins; these stages will be run or skipped, in this order."""

    def stage_started(self, name: str) -> None:
        """A stage begins to work."""

    def progress(self, name: str, done: int, total: int) -> None:
        """A stage that is at work has done this much of its total."""

    def stage_finished(self, name: str, seconds: float, headline: Headline) -> None:
        """A stage's outputs are in place and recorded."""

    def stage_skipped(self, name: str, headline: Headline) -> None:
        """A stage was finished by an earlier run, and nothing that it depends on has changed."""


class Silent(Observer):
    """An observer that ignores everything."""


@dataclass(frozen=True, slots=True)
class Job:
    """What a stage's function is given: where to read, where to write, whom to tell.

    Attributes:
        stage: The stage itself.
        folder: The run folder; use `input` for its files.
        work: The stage's temporary folder; use `output` for files in it.
        progress: To be called with (done, total).
        seconds: Seconds of each stage finished so far. For reports only: not part of any key.
        journal: Where the stage may keep what it has finished, see `RunFolder.journal`.
    """

    stage: Stage
    folder: Path
    work: Path
    progress: Progress
    seconds: Mapping[str, float]
    journal: Path

    def input(self, name: str) -> Path:
        """Path of a declared input."""
        _require(name in self.stage.inputs, f"{self.stage.name} does not declare input {name}")
        return self.folder / name

    def output(self, name: str) -> Path:
        """Path at which to write a declared output; its folder exists."""
        _require(name in self.stage.outputs, f"{self.stage.name} does not declare output {name}")
        path = self.work / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return path


@dataclass(frozen=True, slots=True)
class Stage:
    """One step of a run.

    Attributes:
        name: Lower-case words joined by ``-``; a group before ``/``, such as ``tiny/probe``.
        inputs: Files of the run folder that the stage reads.
        outputs: Files of the run folder that it writes; no other stage writes them.
        config: All else that its outputs depend on, as JSON values: settings, seeds, fingerprints.
        run: Does the work and returns the headline, in plain Python numbers and strings.
    """

    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    config: Mapping[str, object]
    run: Callable[[Job], Headline]


def run_pipeline(
    folder: Path,
    stages: Sequence[Stage],
    info: RunInfo,
    observer: Observer | None = None,
    workers: int = 1,
) -> Manifest:
    """Run the stages in a run folder, skipping those that are finished and unchanged.

    Args:
        folder: The run folder; made if absent.
        stages: In an order in which each finds its inputs.
        info: What was asked, recorded in the manifest.
        observer: Told what happens.
        workers: Stages at work at a time, each in a process of its own, see `forks.Fork`: where
            stages do not depend on each other. With 1, all run here, one after the other.

    Returns:
        The manifest, with one record for each finished stage.

    Raises:
        RefusalCliffError: The folder cannot be used, an input is missing, or a stage failed for a
            reason that the user can mend. What was finished before is kept.
    """
    watcher = observer or Silent()
    _check_plan(stages)
    with open_run_folder(folder, info) as run:
        watcher.planned([stage.name for stage in stages])
        if workers > 1 and CAN_FORK:
            _run_at_once(stages, run, watcher, workers)
        else:
            for stage in stages:
                _run_here(stage, run, watcher)
        run.forget_journals()
        return run.manifest


def stage_key(stage: Stage, input_hashes: Mapping[str, str]) -> str:
    """SHA-256 over all that a stage's outputs depend on.

    Args:
        stage: The stage.
        input_hashes: SHA-256 of each input file, by name.
    """
    content = {
        "pipeline": PIPELINE_VERSION,
        "stage": stage.name,
        "config": stage.config,
        "inputs": input_hashes,
        "outputs": stage.outputs,
    }
    text = json.dumps(content, sort_keys=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def _key_unless_finished(stage: Stage, run: RunFolder, observer: Observer) -> str | None:
    """The stage's key if it must run; else the observer is told that its results are kept."""
    key = stage_key(stage, {name: run.sha256(name) for name in stage.inputs})
    record = run.manifest.stages.get(stage.name)
    if record and record.key == key and run.is_intact(record):
        observer.stage_skipped(stage.name, record.headline)
        return None
    observer.stage_started(stage.name)
    return key


def _run_here(stage: Stage, run: RunFolder, observer: Observer) -> None:
    key = _key_unless_finished(stage, run, observer)
    if key is None:
        return
    started = time.perf_counter()
    with run.temporary(stage.name) as work:
        job = _job(stage, key, run, work, partial(observer.progress, stage.name))
        headline = _call(stage, job)
        record = _keep(stage, key, run, work, headline, started)
    observer.stage_finished(stage.name, record.seconds, record.headline)


@dataclass(frozen=True, slots=True)
class _AtWork:
    """A stage in a process of its own, which writes into the stage's temporary folder only."""

    stage: Stage
    key: str
    started: float
    work: Path
    folder: ExitStack
    fork: Fork

    def stop(self) -> None:
        self.fork.stop()
        self.folder.close()


def _run_at_once(stages: Sequence[Stage], run: RunFolder, observer: Observer, workers: int) -> None:
    """Start each stage, in the order given, once its inputs are there and a worker is free."""
    waiting, at_work = list(stages), list[_AtWork]()
    try:
        while waiting or at_work:
            ready = _ready(waiting, [one.stage for one in at_work])
            _require(bool(ready or at_work), "stages wait for each other")
            for stage in ready[: workers - len(at_work)]:
                waiting.remove(stage)
                key = _key_unless_finished(stage, run, observer)
                if key is not None:
                    at_work.append(_start(stage, key, run))
            for fork in Fork.with_news([one.fork for one in at_work]):
                one = next(one for one in at_work if one.fork is fork)
                if _ended(one, fork.news(), run, observer):
                    one.stop()
                    at_work.remove(one)
    finally:
        for one in at_work:
            one.stop()


def _ready(waiting: Sequence[Stage], at_work: Sequence[Stage]) -> list[Stage]:
    """The stages whose inputs no other stage has still to make."""
    to_come = {name for stage in (*waiting, *at_work) for name in stage.outputs}
    return [stage for stage in waiting if to_come.isdisjoint(stage.inputs)]


def _start(stage: Stage, key: str, run: RunFolder) -> _AtWork:
    folder = ExitStack()
    work = folder.enter_context(run.temporary(stage.name))
    fork = Fork(lambda progress: _call(stage, _job(stage, key, run, work, progress)))
    return _AtWork(stage, key, time.perf_counter(), work, folder, fork)


def _ended(one: _AtWork, news: News, run: RunFolder, observer: Observer) -> bool:
    """Pass on what a stage says; whether that was its result, which is then kept."""
    if news.error is not None:
        raise news.error
    if news.progress is not None:
        observer.progress(one.stage.name, *news.progress)
        return False
    record = _keep(one.stage, one.key, run, one.work, news.result, one.started)
    observer.stage_finished(one.stage.name, record.seconds, record.headline)
    return True


def _job(stage: Stage, key: str, run: RunFolder, work: Path, progress: Progress) -> Job:
    seconds = {name: record.seconds for name, record in run.manifest.stages.items()}
    return Job(stage, run.path, work, progress, seconds, run.journal(key))


def _keep(
    stage: Stage, key: str, run: RunFolder, work: Path, headline: Headline, started: float
) -> StageRecord:
    """Move a stage's outputs into place, then record it as finished."""
    for name in stage.outputs:
        _require((work / name).is_file(), f"{stage.name} did not write {name}")
    record = StageRecord(
        key=key,
        outputs=run.keep(work, stage.outputs),
        seconds=round(time.perf_counter() - started, 3),
        headline=headline,
    )
    run.record(stage.name, record)
    return record


def _call(stage: Stage, job: Job) -> Headline:
    try:
        return stage.run(job)
    except Exception as error:
        if is_storage_error(error):
            raise storage_error(job.folder, error) from error
        raise


def _check_plan(stages: Sequence[Stage]) -> None:
    """Refuse a plan that could not be resumed: this is a mistake in the program, not the user's."""
    names = [stage.name for stage in stages]
    outputs = [name for stage in stages for name in stage.outputs]
    _require(len(set(names)) == len(names), "two stages have one name")
    _require(len(set(outputs)) == len(outputs), "two stages write one file")
    for stage in stages:
        _require(_STAGE_NAME.fullmatch(stage.name) is not None, f"bad stage name {stage.name!r}")
        for file in (*stage.inputs, *stage.outputs):
            _require(_stays_inside(file), f"{stage.name}: {file!r} is not inside the run folder")


def _stays_inside(name: str) -> bool:
    path = PurePosixPath(name)
    return not path.is_absolute() and ".." not in path.parts and not name.startswith(".")


def _require(condition: bool, problem: str) -> None:
    if not condition:
        raise ValueError(problem)
