"""Checkpoints of a training that may be killed, or run out of disk, while one is written.

The trainer writes a checkpoint file by file under its final name. Once all is there, its sizes and
what it is made from are written beside it, last; only then is the one before deleted. A checkpoint
without that file, or with other files than it lists, was never finished.
"""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path
from typing import Any

from accelerate import PartialState
from transformers.trainer_callback import TrainerCallback

from refusal_cliff.errors import RefusalCliffError
from refusal_cliff.io import read_json, sync_file, write_json

COMPLETE = "complete.json"
_NAME = re.compile(r"checkpoint-(\d+)")


class Checkpoints(TrainerCallback):
    """Vouches for each checkpoint when it is whole, and deletes those before it.

    Args:
        folder: The trainer's folder; what an earlier process left unfinished there is deleted.
        made_from: Hash of all that the training depends on.
        first: Whether this process does so for all.
    """

    def __init__(self, folder: Path, made_from: str, *, first: bool) -> None:
        self._folder, self._made_from, self._first = folder, made_from, first
        if first:
            self._keep_only(last_complete(folder, made_from))

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """All processes have written their part of a checkpoint: it counts from now on."""
        del args, control
        PartialState().wait_for_everyone()
        if self._first:
            written = self._folder / f"checkpoint-{state.global_step}"
            _vouch(written, self._made_from)
            self._keep_only(written)

    def _keep_only(self, kept: Path | None) -> None:
        for found in _checkpoints(self._folder):
            if found != kept:
                shutil.rmtree(found)


def last_complete(folder: Path, made_from: str) -> Path | None:
    """The last whole checkpoint of a training; ``None`` if it has to begin anew."""
    whole = (found for found in _checkpoints(folder) if _is_whole(found, made_from))
    return max(whole, key=_step, default=None)


def _checkpoints(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if _NAME.fullmatch(path.name) and path.is_dir()]


def _step(checkpoint: Path) -> int:
    return int(checkpoint.name.rpartition("-")[2])


def _vouch(checkpoint: Path, made_from: str) -> None:
    for name in _sizes(checkpoint):
        sync_file(checkpoint / name)
    write_json(checkpoint / COMPLETE, {"made_from": made_from, "files": _sizes(checkpoint)})


def _is_whole(checkpoint: Path, made_from: str) -> bool:
    try:
        said = read_json(checkpoint / COMPLETE)
    except RefusalCliffError:
        return False
    ours = isinstance(said, dict) and said.get("made_from") == made_from
    return ours and said.get("files") == _sizes(checkpoint)


def _sizes(checkpoint: Path) -> dict[str, int]:
    """Bytes of every file but the one that vouches for them."""
    files = (Path(top, name) for top, _, names in os.walk(checkpoint) for name in names)
    sizes = {str(file.relative_to(checkpoint)): file.stat().st_size for file in files}
    sizes.pop(COMPLETE, None)
    return sizes
