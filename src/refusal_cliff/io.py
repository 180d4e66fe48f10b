"""Files that are whole or absent: write to a temporary name, then rename."""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any, TypeVar, cast

from refusal_cliff.errors import RefusalCliffError

if TYPE_CHECKING:
    from pydantic import ValidationError

T = TypeVar("T")
_FULL_OR_READ_ONLY = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG})
_IN_WORDS = tuple(map(os.strerror, _FULL_OR_READ_ONLY))
"""Libraries in other languages have exceptions of their own, which give the reason as text."""
_OF_TORCH = ("PytorchStreamWriter failed", "iostream error", "unexpected pos ")
"""What ``torch.save`` says on a full disk: no reason at all."""
_UMASK = os.umask(0)
os.umask(_UMASK)  # it can only be asked by setting it


def is_storage_error(error: BaseException) -> bool:
    """Whether a full or read-only disk caused the error, whichever library raised it."""
    if isinstance(error, OSError) and error.errno in _FULL_OR_READ_ONLY:
        return True
    return any(words in str(error) for words in (*_IN_WORDS, *_OF_TORCH))


def storage_error(path: Path, error: BaseException) -> RefusalCliffError:
    """The paragraph for a file or folder that could not be written."""
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    if any(words in reason for words in _OF_TORCH):
        reason = f"{os.strerror(errno.ENOSPC)}, as it seems ({reason})"
    return RefusalCliffError(
        f"Could not write {path}: {reason}. Nothing was left half-written. "
        "Choose a folder that you may write to and that has free space (--out DIR), "
        "then run the same command again: finished stages are kept."
    )


@contextmanager
def storage_errors(path: Path) -> Iterator[None]:
    """Turn what goes wrong in writing ``path``, whichever library raises it, into the paragraph.

    Raises:
        RefusalCliffError: The path cannot be written, or the disk is full.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, OSError) or is_storage_error(error):
            raise storage_error(path, error) from error
        raise


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary neighbour of ``path``; rename it to ``path`` if the body succeeds.

    Raises:
        RefusalCliffError: The folder cannot be written, or the disk is full.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with storage_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            yield temporary
            move_file(temporary, path)
            sync_folder(path.parent)
    finally:
        remove_quietly(temporary)


def first_fault(error: ValidationError) -> str:
    """Where a file of ours is wrong first, and how: ``place: what``."""
    first = error.errors()[0]
    place = ".".join(map(str, first["loc"])) or "the whole"
    return f"{place}: {first['msg']}"


def remove_stale(folder: Path) -> None:
    """Remove what `atomic_path` left in a folder of ours, or below, when its process was killed.

    Only files that are named as it names them, by a process that is no more: another one may be
    writing its own at this moment.
    """
    for file in folder.rglob(".*.tmp"):
        pid = file.name.removesuffix(".tmp").rpartition(".")[2]
        if pid.isdecimal() and not _is_alive(int(pid)):
            remove_quietly(file)


def _is_alive(pid: int) -> bool:
    if os.name != "posix":  # elsewhere there is no signal that does nothing
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):  # someone else's process, or no number of one
        return True
    return True


def make_readable(path: Path) -> None:
    """Give a file, or a folder with its files, the mode that the umask says.

    Some libraries write files that only their owner may read; what is whole under its own name is
    meant for everyone.
    """
    if path.is_dir():
        for child in path.iterdir():
            make_readable(child)
    path.chmod((0o777 if path.is_dir() else 0o666) & ~_UMASK)


def move_file(source: Path, target: Path) -> None:
    """Rename a file into place once all of it is on the disk, readable as any other file."""
    make_readable(source)
    sync_file(source)
    target.parent.mkdir(parents=True, exist_ok=True)
    os.replace(source, target)


def sync_file(path: Path) -> None:
    """Wait until a file's bytes are on the disk."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Put the names in a folder on the disk, where the operating system can."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:  # some network disks cannot
            raise
    finally:
        os.close(descriptor)


def remove_quietly(path: Path) -> None:
    """Remove a file if it is there; a failure to do so must not hide an earlier error."""
    try:
        path.unlink(missing_ok=True)
    except OSError:
        return


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write JSON atomically.

    Raises:
        RefusalCliffError: See `_json`, or the file cannot be written.
    """
    write_text(path, _json(path, value, indent=2, ensure_ascii=False) + "\n")


def write_as(path: Path, value: Any) -> None:
    """Write a dataclass atomically, so that `read_as` with its class gives it back.

    Raises:
        RefusalCliffError: As for `write_json`.
    """
    from pydantic import TypeAdapter  # slow to import

    write_json(path, TypeAdapter(type(value)).dump_python(value, mode="json"))


def write_json_lines(path: Path, rows: Iterable[Any]) -> None:
    """Write one line of JSON a row, atomically; all of it ASCII, as a row may hold anything."""
    write_text(path, "".join(_json(path, row, ensure_ascii=True) + "\n" for row in rows))


def _json(path: Path, value: Any, **form: Any) -> str:
    """JSON that every tool reads.

    Raises:
        RefusalCliffError: There is NaN or infinity in it: what cannot be measured is null, with a
            reason, and to write it as a number would be a lie.
    """
    try:
        return json.dumps(value, allow_nan=False, **form)
    except ValueError as error:
        place = _not_finite(value, "")
        if place is None:
            raise
        raise RefusalCliffError(
            f"Could not write {path}: {place} is not a finite number, so an earlier value could "
            "not be measured. The weights of the model or of the probe are damaged, or too large "
            "for this precision. Check them, or try --dtype float32."
        ) from error


def finite_json(value: Any) -> Any:
    """A JSON value with null in the place of every number that is not finite."""
    if isinstance(value, dict):
        return {key: finite_json(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [finite_json(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _not_finite(value: Any, place: str) -> str | None:
    """Where the first number stands that is NaN or infinite; ``None`` where there is none."""
    if isinstance(value, float):
        return None if math.isfinite(value) else place.lstrip(".") or "the value"
    inside: Iterable[tuple[Any, Any]] = ()
    if isinstance(value, Mapping):
        inside = cast("Mapping[Any, Any]", value).items()
    elif isinstance(value, list | tuple):
        inside = enumerate(cast("Sequence[Any]", value))
    found = (_not_finite(part, f"{place}.{name}") for name, part in inside)
    return next((one for one in found if one is not None), None)


def read_text(path: Path) -> str:
    """Read a text file.

    Raises:
        RefusalCliffError: It is missing, cannot be read, or is not UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise RefusalCliffError(
            f"There is no file {path}. Check the path, or run the command that writes it again."
        ) from error
    except (OSError, ValueError) as error:
        raise _unreadable(path, error) from error


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        RefusalCliffError: The file is missing or is not JSON.
    """
    try:
        return json.loads(read_text(path))
    except (ValueError, RecursionError) as error:
        raise _unreadable(path, error) from error


def read_as(path: Path, kind: type[T]) -> T:
    """Read a JSON file of ours; nothing of another shape gets through.

    Args:
        path: The file.
        kind: What it holds: a dataclass, a ``TypedDict`` …; keys that it does not name are left.

    Raises:
        RefusalCliffError: The file is missing, is not JSON, or holds something else.
    """
    from pydantic import TypeAdapter, ValidationError  # slow to import

    text = read_text(path)
    try:
        return TypeAdapter(kind).validate_json(text, strict=True)
    except ValidationError as error:
        raise _unreadable(path, first_fault(error)) from error


def read_rows_of_ours(path: Path, *texts: str) -> list[dict[str, Any]]:
    """Read JSON Lines that `write_json_lines` wrote, whatever their texts hold.

    Args:
        path: The file.
        texts: Fields that every row must hold, as a text.

    Raises:
        RefusalCliffError: The file is missing or damaged.
    """
    try:
        rows = [json.loads(line) for line in read_text(path).splitlines()]
    except (ValueError, RecursionError) as error:
        raise _unreadable(path, error) from error
    for number, row in enumerate(rows, start=1):
        if not (isinstance(row, dict) and all(isinstance(row.get(name), str) for name in texts)):
            raise _unreadable(path, f"row {number} is no row of ours")
    return rows


def _unreadable(path: Path, error: Exception | str) -> RefusalCliffError:
    return RefusalCliffError(
        f"Could not read {path}: {error}. It is damaged, or another version of refusal-cliff wrote "
        "it. Run the command that writes it again, into a new folder if necessary."
    )


def fields_of(value: Any) -> dict[str, Any]:
    """The fields of a dataclass by name, as they are: for one that adds some."""
    return {field.name: getattr(value, field.name) for field in fields(value)}


def on_disk(name: str | Path) -> bool:
    """Whether there is a file or folder of that name; any text may be asked for."""
    try:
        return Path(name).exists()
    except (OSError, ValueError):  # too long, or with a zero byte
        return False


def without_folder(name: str) -> str:
    """What a user called a model, without where that lies: for titles and published files.

    A folder of the hub's cache is called as on the hub.
    """
    path = PurePath(name)
    cached = next((part for part in path.parts if part.startswith("models--")), None)
    if cached is not None:
        return "/".join(cached.split("--")[1:])
    return path.name if path.is_absolute() else name


def sha256_file(path: Path) -> str:
    """SHA-256 of a file's bytes, as hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
