"""The run folder: a manifest that says what is finished, a lock, and outputs that are whole.

A stage writes into a temporary folder inside the run folder. Its outputs are renamed into place one
by one and only then recorded in ``manifest.json``, which is itself replaced atomically. A process
killed anywhere in between leaves outputs whose hashes are not in the manifest, so the stage is run
again; nothing is ever half-written under its final name.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from refusal_cliff import __version__
from refusal_cliff.errors import RefusalCliffError
from refusal_cliff.folders import TEMPORARY, locked, remove_temporary, strangers
from refusal_cliff.io import (
    first_fault,
    move_file,
    read_json,
    remove_quietly,
    remove_stale,
    sha256_file,
    storage_errors,
    sync_folder,
    write_json,
)

FORMAT = 1
"""Layout of a run folder; a folder of another format is neither read nor written."""

MANIFEST = "manifest.json"
JOURNAL_PREFIX = ".journal-"

_RECORDED_PACKAGES = (
    *("torch", "transformers", "peft", "trl", "numpy", "scipy", "scikit-learn", "pyarrow"),
    "safetensors",
)

Headline = dict[str, bool | int | float | str]
"""The few key results of a stage that are worth showing while a run goes on."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class StageRecord(_Strict):
    """What the manifest keeps of one finished stage."""

    key: str
    outputs: dict[str, str]
    seconds: float
    headline: Headline


class RunInfo(_Strict):
    """What was asked of a run: all that is needed to repeat it."""

    command: str
    config: dict[str, object] = Field(default_factory=dict)
    seeds: dict[str, int] = Field(default_factory=dict)
    subjects: dict[str, str] = Field(default_factory=dict)


class Manifest(_Strict):
    """``manifest.json``: what was asked, on what it ran, and what is finished."""

    format: int
    package_version: str
    run: RunInfo
    versions: dict[str, str]
    platform: dict[str, str]
    stages: dict[str, StageRecord] = Field(default_factory=dict)


@dataclass
class RunFolder:
    """A locked run folder. Make one with `open_run_folder`."""

    path: Path
    manifest: Manifest
    _hashes: dict[str, str] = field(default_factory=dict)

    def sha256(self, name: str) -> str:
        """Hash of a file of this folder, read once while the folder is locked.

        Raises:
            RefusalCliffError: The file is missing or cannot be read.
        """
        if name not in self._hashes:
            try:
                self._hashes[name] = sha256_file(self.path / name)
            except OSError as error:
                raise RefusalCliffError(
                    f"Could not read {self.path / name}: {error.strerror}. It is written by an "
                    "earlier step of the same run folder: run that step first, then this one again."
                ) from error
        return self._hashes[name]

    def is_intact(self, record: StageRecord) -> bool:
        """Whether every output of a finished stage is there, byte for byte."""
        return all(
            (self.path / name).is_file() and self.sha256(name) == expected
            for name, expected in record.outputs.items()
        )

    @contextmanager
    def temporary(self, stage: str) -> Iterator[Path]:
        """A fresh folder for a stage to write in, on the same disk; removed afterwards."""
        path = self.path / f"{TEMPORARY}{stage.replace('/', '-')}"
        with storage_errors(path):
            path.mkdir()
        try:
            yield path
        finally:
            remove_temporary(path)

    def keep(self, work: Path, outputs: Sequence[str]) -> dict[str, str]:
        """Move a stage's outputs from its temporary folder into place.

        Returns:
            SHA-256 of each output, for the record.
        """
        hashes = {name: sha256_file(work / name) for name in outputs}
        for name in outputs:
            with storage_errors(self.path / name):
                move_file(work / name, self.path / name)
        for folder in {(self.path / name).parent for name in outputs}:
            sync_folder(folder)
        self._hashes.update(hashes)
        return hashes

    def journal(self, key: str) -> Path:
        """Where a stage keeps what it has finished until it is finished itself.

        It is no output, and is named by the stage's key: what is in it is used again by the very
        same work only.
        """
        return self.path / f"{JOURNAL_PREFIX}{key}"

    def record(self, stage: str, record: StageRecord) -> None:
        """Mark a stage as finished; its journal is needed no more."""
        self.manifest.stages[stage] = record
        _write_manifest(self.path, self.manifest)
        remove_quietly(self.journal(record.key))

    def forget_journals(self) -> None:
        """Remove the journals of stages that were begun with other settings."""
        for file in self.path.glob(f"{JOURNAL_PREFIX}*"):
            remove_quietly(file)


@contextmanager
def open_run_folder(path: Path, info: RunInfo) -> Iterator[RunFolder]:
    """Lock a run folder, make it if it is absent, and read what is already finished in it.

    Args:
        path: The run folder.
        info: What this run is asked to do; replaces what the manifest said before.

    Raises:
        RefusalCliffError: Another run is working in the folder; it holds other things than a run,
            a run of another model or seed, or one of another format; its manifest is damaged; or it
            cannot be written.
    """
    with locked(path):
        before = read_manifest(path)
        _require_same_run(path, before, info)
        manifest = Manifest(
            format=FORMAT,
            package_version=__version__,
            run=info,
            versions=versions(),
            platform=machine(),
            stages=before.stages if before else {},
        )
        for folder in path.glob(f"{TEMPORARY}*"):  # what a killed run left, as below
            remove_temporary(folder)
        remove_stale(path)
        _write_manifest(path, manifest)
        yield RunFolder(path, manifest)


def read_manifest(path: Path) -> Manifest | None:
    """What was asked of a run, and what is finished; ``None`` of an empty or new folder.

    Raises:
        RefusalCliffError: It is no run folder, or of another version, or damaged.
    """
    file = path / MANIFEST
    if not file.exists():
        if others := sorted(strangers(path, MANIFEST)):
            raise RefusalCliffError(
                f"{path} is not a run folder: it has no {MANIFEST} but holds {others[0]!r}. Choose "
                "an empty or new folder (--out DIR); nothing in this one was touched."
            )
        return None
    content = read_json(file)
    found = content.get("format") if isinstance(content, dict) else None
    if found != FORMAT:
        raise RefusalCliffError(
            f"{path} holds a run of format {found!r}; refusal-cliff {__version__} reads and writes "
            f"format {FORMAT}. Choose another folder (--out DIR), or continue it with the version "
            f"named as package_version in {file}; nothing in it was touched."
        )
    try:
        return Manifest.model_validate(content)
    except ValidationError as error:
        raise RefusalCliffError(
            f"{file} is damaged: {first_fault(error)}. Choose another folder (--out "
            "DIR): without this file it is not known which results of this folder are complete."
        ) from error


def _require_same_run(path: Path, before: Manifest | None, info: RunInfo) -> None:
    """Finished results of one model are not replaced, file by file, by those of another.

    Models and seeds may be added to a run; what was measured changes only in a new folder.
    """
    if before is None or not before.stages:
        return
    pairs = ((before.run.subjects, info.subjects), (before.run.seeds, info.seeds))
    changed = [name for old, new in pairs for name in old if new.get(name, old[name]) != old[name]]
    apart = info.subjects and before.run.subjects and not info.subjects.keys() & before.run.subjects
    if apart or changed:
        what = ", ".join(before.run.subjects) or "something else"
        seeds = ", ".join(map(str, before.run.seeds.values()))
        raise RefusalCliffError(
            f"{path} holds a run of {what} (seed {seeds}), but this command has another model, "
            "another version of it, another precision or another seed. Choose another folder "
            "(--out DIR); nothing in this one was touched."
        )


def versions() -> dict[str, str]:
    """Of the packages that results may depend on."""
    return {name: _version(name) for name in _RECORDED_PACKAGES}


def machine() -> dict[str, str]:
    """What this process runs on."""
    return {
        "python": platform.python_version(),
        "system": platform.platform(),
        "machine": platform.machine(),
        "cpus": str(os.cpu_count()),
    }


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def _write_manifest(path: Path, manifest: Manifest) -> None:
    write_json(path / MANIFEST, manifest.model_dump(mode="json"))
