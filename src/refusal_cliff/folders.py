"""Output folders: whose a folder is, decided before any work; and results that arrive whole.

A folder belongs to the command whose description it holds, the first file that a command writes
there. A command writes only into a folder that is absent, empty or its own, and only what is made
from the same: nothing finished is ever replaced by something else. What is being made stands in
``.tmp-…`` inside the folder and is moved into place by rename once it is whole. Nothing but these
temporary folders is ever deleted.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from refusal_cliff.errors import RefusalCliffError
from refusal_cliff.io import (
    move_file,
    on_disk,
    read_json,
    remove_stale,
    storage_error,
    storage_errors,
    sync_folder,
    write_json,
)

DESCRIPTIONS: dict[str, str] = {
    "demo": "manifest.json",
    "audit": "manifest.json",
    "generate": "generate.json",
    "judge": "judge.json",
    "trace": "trace.json",
    "select": "select.json",
    "train": "train.json",
    "repair": "repair.json",
    "check": "check.json",
    "ablate": "ablate.json",
    "compare": "compare.json",
    "report": "report.json",
    "figures": "figures.json",
    "adapters": "adapters.json",
}
"""What each command that writes a folder calls its description; other packages add theirs."""
LOCK = ".lock"
TEMPORARY = ".tmp-"
_STAGED = f"{TEMPORARY}result"
_LARGEST_RESULT = 1 << 24  # bytes: whether a file is ours is not worth reading more
_NOTHING_TOUCHED = "Nothing in it was touched. Choose a new or empty folder ({option})."


def require_output(
    out: Path, command: str, inputs: Iterable[str | Path | None] = (), *, option: str = "--out DIR"
) -> None:
    """Refuse a folder that a command must not write into; to be called before any work.

    Args:
        out: The output folder, which need not exist.
        command: A key of ``DESCRIPTIONS``.
        inputs: What the command reads; those that are no paths on this machine do not matter.
        option: How the user names another folder.

    Raises:
        RefusalCliffError: It is a link or a file, holds an input or the working directory, is not
            empty, or belongs to another command.
    """
    with storage_errors(out):
        _require_folder(out, option)
        _require_apart(out, inputs, option)
        _require_own(out, command, option)


def require_file(path: Path | None, command: str, inputs: Iterable[str | Path | None] = ()) -> None:
    """Refuse a file that a command must not write: anything but an earlier result of its own.

    Raises:
        RefusalCliffError: It is a link, a folder, an input, or someone else's.
    """
    if path is None:
        return
    with storage_errors(path):
        if path.is_symlink() or (path.exists() and not path.is_file()):
            kind = "a symbolic link" if path.is_symlink() else "not an ordinary file"
            raise RefusalCliffError(f"{path} is {kind}. Name a new file (--out FILE).")
        if not path.exists():
            return
        if any(path.samefile(found) for found in _existing(inputs)):
            raise RefusalCliffError(f"{path} is an input. Name another file (--out FILE).")
        if path.stat().st_size > _LARGEST_RESULT or _command_of(path) != command:
            raise RefusalCliffError(
                f"{path} exists and was not written by refusal-cliff {command}. It was not touched."
                " Name a new file (--out FILE)."
            )


def claim(out: Path, command: str, made_from: Mapping[str, Any], holds: str) -> None:
    """Make a folder the command's own, or check that it is, and is made from the same.

    Args:
        out: The folder; made if absent.
        command: A key of ``DESCRIPTIONS``.
        made_from: All that the folder's other files depend on, as JSON values.
        holds: What these files are, for the message: ``scores``.

    Raises:
        RefusalCliffError: See `require_output`; or the folder is made from something else, or
            cannot be written.
    """
    require_output(out, command)
    require_same(out, command, made_from, holds)
    remove_stale(out)
    if not is_claimed(out, command, made_from):
        write_json(out / DESCRIPTIONS[command], {"command": command, **made_from})


def is_claimed(out: Path, command: str, made_from: Mapping[str, Any]) -> bool:
    """Whether `claim` has made a folder the command's own, with this description."""
    path = out / DESCRIPTIONS[command]
    if not path.is_file():
        return False
    described = json.loads(json.dumps({"command": command, **made_from}))
    return _object(path) == described


def require_same(out: Path, command: str, made_from: Mapping[str, Any], holds: str) -> None:
    """Refuse a folder that holds something made from something else.

    A description with nothing beside it, of work that failed at once, may be replaced.

    Raises:
        RefusalCliffError: The two differ; the message names in what.
    """
    path = out / DESCRIPTIONS[command]
    if not path.is_file() or set(strangers(out, path.name)) == {path.name}:
        return
    found = _object(path)
    other = [key for key, value in made_from.items() if found.get(key) != value]
    if other:
        raise RefusalCliffError(
            f"{out} holds {holds} with other settings: {', '.join(other)} differ from {path}. "
            f"Choose a new folder (--out DIR), or delete {out}; nothing in it was touched."
        )


@contextmanager
def locked(out: Path) -> Iterator[None]:
    """Hold a folder's lock; the operating system drops it when the process dies.

    Raises:
        RefusalCliffError: Another process holds it, or the folder cannot be written.
    """
    lock = FileLock(out / LOCK, timeout=0)
    try:
        out.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout as error:
        raise RefusalCliffError(
            f"Another process is working on {out}. Wait until it ends, stop it, or choose a new "
            "folder (--out DIR)."
        ) from error
    except OSError as error:
        raise storage_error(out, error) from error
    try:
        yield
    finally:
        lock.release()


@contextmanager
def staged(out: Path, last: Sequence[str] = ()) -> Iterator[Path]:
    """Yield a fresh folder inside a claimed one; move its files into place if the body succeeds.

    Args:
        out: The claimed folder.
        last: Names of files to be moved after all others, in this order: those without which
            nobody takes the rest for a result.

    Raises:
        RefusalCliffError: The folder cannot be written, or the disk is full.
    """
    work = out / _STAGED
    with storage_errors(out):
        remove_temporary(work)
        work.mkdir(parents=True)
        try:
            yield work
            _move_all(work, out, last)
        finally:
            remove_temporary(work)


def staging(out: Path) -> Path:
    """Where `staged` puts what is being made: for processes that write together."""
    return out / _STAGED


def remove_temporary(folder: Path) -> None:
    """Delete a temporary folder of ours; a failure to do so must not hide an earlier error.

    Raises:
        ValueError: It is not called as ours are.
    """
    if not folder.name.startswith(TEMPORARY):
        raise ValueError(f"{folder} is not a temporary folder")
    shutil.rmtree(folder, ignore_errors=True)


def _move_all(work: Path, out: Path, last: Sequence[str]) -> None:
    found = sorted(path.relative_to(work) for path in work.rglob("*") if path.is_file())
    order = {name: at for at, name in enumerate(last)}
    for file in sorted(found, key=lambda file: order.get(file.name, -1)):
        move_file(work / file, out / file)
    sync_folder(out)


def _require_folder(out: Path, option: str) -> None:
    if out.is_symlink():
        raise RefusalCliffError(
            f"{out} is a symbolic link: what it points to could be anyone's. Name the folder "
            f"itself, or a new one ({option})."
        )
    above = next((path for path in (out, *out.parents) if path.exists()), out)
    if above.exists() and not above.is_dir():
        raise RefusalCliffError(
            f"Could not write {out}: {above} is a file. Choose a folder that is new or empty "
            f"({option})."
        )


def _require_apart(out: Path, inputs: Iterable[str | Path | None], option: str) -> None:
    """No output folder is or holds the working directory or an input."""
    if not out.exists():
        return
    for path in (Path.cwd(), *_existing(inputs)):
        whole = path.resolve()
        if any(out.samefile(folder) for folder in (whole, *whole.parents)):
            what = "the working directory" if path == Path.cwd() else f"the input {path}"
            raise RefusalCliffError(
                f"{out} is or holds {what}: results need a folder of their own. "
                + _NOTHING_TOUCHED.format(option=option)
            )


def _existing(inputs: Iterable[str | Path | None]) -> list[Path]:
    return [Path(found) for found in inputs if found is not None and on_disk(found)]


def _require_own(out: Path, command: str, option: str) -> None:
    description = out / DESCRIPTIONS[command]
    if description.is_file():
        found = _command_of(description)
        if found != command:
            said = f"refusal-cliff {found}" if found else "something else"
            raise RefusalCliffError(
                f"{out} belongs to {said}, as {description.name} says, not to refusal-cliff "
                f"{command}. " + _NOTHING_TOUCHED.format(option=option)
            )
        return
    others = sorted(strangers(out, description.name)) if out.is_dir() else []
    if others:
        raise RefusalCliffError(
            f"{out} is not empty and holds no {description.name} of refusal-cliff {command}, but "
            f"{others[0]!r}. " + _NOTHING_TOUCHED.format(option=option)
        )


def strangers(out: Path, description: str) -> list[str]:
    """What in a folder is neither a lock nor a description that a kill left unfinished."""
    return [
        path.name
        for path in out.iterdir()
        if not (path.name == LOCK or path.name.startswith(f".{description}."))
        or path.is_symlink()
        or not path.is_file()
    ]


def _command_of(description: Path) -> str | None:
    """The command that wrote a description or a manifest; ``None`` if it was none of ours."""
    try:
        content = _object(description)
    except RefusalCliffError:
        return None
    run = content.get("run")
    found = content.get("command", run.get("command") if isinstance(run, dict) else None)
    return found if isinstance(found, str) else None


def _object(path: Path) -> dict[str, Any]:
    content = read_json(path)
    if not isinstance(content, dict):
        raise RefusalCliffError(
            f"{path} is damaged: it is not a JSON object. Restore it from a backup, or choose a "
            "new folder (--out DIR)."
        )
    return content
