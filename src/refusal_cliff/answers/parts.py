"""Answers and verdicts that several processes make, each in a folder of its own, and joined.

While they work, ``.tmp-parts-N`` holds a folder for each part of what is missing, made by the same
functions as the whole: it has their journals, so that a kill costs what it costs there. `join` puts
the rows of all of them into the journals of the whole; then nothing is missing there.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Generic, TypeVar

from refusal_cliff.data.journal import Journal
from refusal_cliff.folders import TEMPORARY, remove_temporary
from refusal_cliff.io import write_text
from refusal_cliff.judges.interface import digest
from refusal_cliff.progress import Count
from refusal_cliff.settings import Engine
from refusal_cliff.sharded import Rank, Work, run_shards, workers

_PARTS = f"{TEMPORARY}parts-"
_DONE = "done"
_EACH = 4
"""Parts of every process, so that none waits long for another."""
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Part(Generic[T]):
    """What one process does at a time, and where."""

    folder: Path
    items: tuple[T, ...]


def in_parts(
    out: Path,
    missing: Callable[[], Mapping[str, T]],
    start: Callable[[], Callable[[Part[T]], object]],
    engine: Engine,
    progress: Count | None = None,
) -> bool:
    """Do this process's share of what is missing in a claimed folder; `join` is still to be called.

    Args:
        out: The folder.
        missing: What is to be done, by the names that its journals have; the same in all processes.
        start: Makes what does a part, see `Work`.
        engine: Where.
        progress: Called with the number of items that are done.

    Returns:
        Whether this process is the first, which goes on when all parts are done.
    """
    rank, mine = Rank.here(), out / f"{_PARTS}{workers(engine)}"

    def others() -> list[Path]:
        return [folder for folder in out.glob(f"{_PARTS}*") if folder != mine]

    if rank.first:  # what another number of processes has left
        join(out, others())
    else:
        rank.wait_for(lambda: not others() or None)
    items = missing()
    size = max(1, math.ceil(len(items) / (_EACH * workers(engine))))
    names = list(items)
    parts = [
        Part(
            mine / f"{at:07}-{digest(names[at : at + size])}",
            tuple(items[name] for name in names[at : at + size]),
        )
        for at in range(0, len(names), size)
    ]
    done = 0

    def told(part: Part[T]) -> None:
        nonlocal done
        done += len(part.items)
        if progress is not None:
            progress(done)

    run_shards(lambda: parts, Work(partial(_marking, start), _is_done), engine, told)
    return rank.first


def _marking(start: Callable[[], Callable[[Part[T]], object]]) -> Callable[[Part[T]], None]:
    do = start()

    def marked(part: Part[T]) -> None:
        do(part)
        write_text(part.folder / _DONE, "")

    return marked


def _is_done(part: Part[T]) -> bool:
    return (part.folder / _DONE).is_file()


def join(out: Path, folders: list[Path] | None = None) -> None:
    """Put the rows of parts into the journals of the whole, and remove the parts.

    Args:
        out: The folder, which no other process writes into.
        folders: Of parts; all that are there by default.
    """
    for folder in out.glob(f"{_PARTS}*") if folders is None else folders:
        for path in sorted(folder.glob("*/*.journal")):
            with Journal(path) as part, Journal(out / path.name) as whole:
                whole.add(*(r for key, r in part.rows.items() if whole.rows.get(key) != r))
        remove_temporary(folder)
