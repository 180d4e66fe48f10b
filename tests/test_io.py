"""Files are whole or absent, and a failure says what to do."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from refusal_cliff.errors import RefusalCliffError
from refusal_cliff.io import (
    atomic_path,
    is_storage_error,
    read_json,
    sha256_file,
    write_json,
    write_json_lines,
)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_json_round_trip_leaves_no_temporary_file(tmp_path: Path) -> None:
    write_json(tmp_path / "deep" / "a.json", {"é": [1, 0.5, None]})
    assert read_json(tmp_path / "deep" / "a.json") == {"é": [1, 0.5, None]}
    assert names(tmp_path / "deep") == ["a.json"]


def test_nan_is_refused_and_the_old_file_stays(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    write_json(file, 1)
    with pytest.raises(RefusalCliffError, match=r"Could not write .*: a\.1\.b is not a finite"):
        write_json(file, {"a": [1.0, {"b": float("nan")}]})
    with pytest.raises(RefusalCliffError, match="the value is not a finite number"):
        write_json(file, float("inf"))
    with pytest.raises(RefusalCliffError, match="0 is not a finite number"):
        write_json_lines(file, [[float("-inf")]])
    assert read_json(file) == 1


def test_a_failing_writer_leaves_the_old_file_and_no_other(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_text("old")
    with pytest.raises(KeyError), atomic_path(file) as temporary:
        temporary.write_text("new")
        raise KeyError
    assert file.read_text() == "old"
    assert names(tmp_path) == ["a.txt"]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.EACCES])
def test_a_disk_that_refuses_is_explained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(RefusalCliffError, match=rf"a\.json: {os.strerror(code)}.*--out"):
        write_json(tmp_path / "a.json", 1)
    assert names(tmp_path) == []


def test_a_path_below_a_file_is_explained(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RefusalCliffError, match="Choose a folder"):
        write_json(tmp_path / "file" / "a.json", 1)


@pytest.mark.parametrize("content", [None, b"{", b"\xff"])
def test_unreadable_json_names_the_file(tmp_path: Path, content: bytes | None) -> None:
    file = tmp_path / "a.json"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(RefusalCliffError, match=r"a\.json"):
        read_json(file)


def test_storage_errors_are_told_from_others() -> None:
    assert is_storage_error(OSError(errno.ENOSPC, "full"))
    assert is_storage_error(RuntimeError("I/O error: No space left on device (os error 28)"))
    assert not is_storage_error(FileNotFoundError(errno.ENOENT, "absent"))
    assert not is_storage_error(ValueError("bug"))


def test_sha256_of_known_bytes(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    assert sha256_file(tmp_path / "a").startswith("ba7816bf8f01cfea")
