"""Files are whole or absent, and a failure says what to do."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from safetensors import SafetensorError
from safetensors.numpy import save_file

from refusal_cliff.data.journal import Journal
from refusal_cliff.errors import RefusalCliffError
from refusal_cliff.io import (
    atomic_path,
    is_storage_error,
    read_as,
    read_json,
    read_rows_of_ours,
    remove_stale,
    sha256_file,
    storage_errors,
    without_folder,
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


def test_a_file_is_on_the_disk_before_it_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    replace = os.replace
    monkeypatch.setattr(os, "fsync", lambda _: done.append("sync"))
    monkeypatch.setattr(os, "replace", lambda a, b: (done.append("rename"), replace(a, b)))
    write_json(tmp_path / "a.json", 1)
    assert done == ["sync", "rename", "sync"]


def test_modes_are_those_of_the_umask(tmp_path: Path) -> None:
    (tmp_path / "plain").touch()
    save_file({"a": np.zeros(2)}, tmp_path / "private")
    with atomic_path(tmp_path / "a.safetensors") as temporary:
        save_file({"a": np.zeros(2)}, temporary)
    modes = {name: (tmp_path / name).stat().st_mode for name in ("plain", "a.safetensors")}
    assert modes["plain"] == modes["a.safetensors"]


@pytest.mark.parametrize(
    "text", ["No space left on device (os error 28)", "File too large", "unexpected pos 12 vs 3"]
)
def test_the_words_of_other_libraries_are_known(tmp_path: Path, text: str) -> None:
    with pytest.raises(RefusalCliffError, match="Could not write"), storage_errors(tmp_path):
        raise SafetensorError(f"I/O error: {text}")
    with pytest.raises(SafetensorError), storage_errors(tmp_path):
        raise SafetensorError("a header that is no header")


def test_a_name_does_not_say_where_it_lies(tmp_path: Path) -> None:
    assert without_folder(str(tmp_path / "model")) == "model"
    assert without_folder("org/model") == "org/model"
    cache = "/home/me/.cache/huggingface/hub/models--Qwen--Qwen3-8B/snapshots/c1899de289a0"
    assert without_folder(cache) == "Qwen/Qwen3-8B"


@pytest.mark.parametrize("taken", [0, 1, 10])
def test_a_disk_that_fills_in_a_journal_is_said_and_loses_no_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, taken: int
) -> None:
    path = tmp_path / "a.journal"
    with pytest.raises(RefusalCliffError, match="No space left"), Journal(path) as journal:
        journal.add({"id": "1", "text": "x" * 50})
        file = journal._file

        class Full:
            def write(self, line: bytes) -> int:
                if len(line) <= 60 - taken:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                return file.write(line[:taken]) if taken else file.write(line[:1])

            def __getattr__(self, name: str) -> object:
                return getattr(file, name)

        monkeypatch.setattr(journal, "_file", Full())
        journal.add({"id": "2", "text": "y" * 50})
    with Journal(path) as journal:
        assert list(journal.rows) == ["1"]
        journal.add({"id": "2"})
    with Journal(path) as journal:
        assert list(journal.rows) == ["1", "2"]


def test_what_a_killed_process_left_is_removed(tmp_path: Path) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    left, own, other = (
        tmp_path / name
        for name in (f".a.json.{dead.pid}.tmp", f".a.json.{os.getpid()}.tmp", ".mine.tmp")
    )
    below = tmp_path / "scores" / left.name
    below.parent.mkdir()
    for file in (left, own, other, below):
        file.touch()
    remove_stale(tmp_path)
    assert not left.exists()
    assert not below.exists()
    assert own.exists()
    assert other.exists()


@dataclass
class Kept:
    name: str
    ends: tuple[int, int]


@pytest.mark.parametrize(
    "text",
    ["", "[]", "null", "{}", '{"name": 1, "ends": [1, 2]}', '{"name": "", "ends": 3}', "[" * 9999],
)
def test_json_of_another_shape_is_damaged(tmp_path: Path, text: str) -> None:
    file = tmp_path / "kept.json"
    file.write_text('{"name": "a", "ends": [1, 2], "more": 0}')
    assert read_as(file, Kept) == Kept("a", (1, 2))
    assert [row["more"] for row in read_rows_of_ours(file, "name")] == [0]
    file.write_text(text)
    with pytest.raises(RefusalCliffError, match=r"kept\.json: .* It is damaged"):
        read_as(file, Kept)
    file.write_text('{"name": "a", "more": "\\\\ud800"}\n' + (text or "\n"))
    with pytest.raises(RefusalCliffError, match=r"kept\.json: .* It is damaged"):
        read_rows_of_ours(file, "name", "more")
