"""No command touches a folder that is not its own: every byte stays, whatever --out names."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import pytest
from typer.testing import CliRunner

from lab.__main__ import app as lab
from refusal_cliff.cli import app
from refusal_cliff.errors import RefusalCliffError
from refusal_cliff.folders import (
    DESCRIPTIONS,
    claim,
    locked,
    remove_temporary,
    require_output,
    require_same,
    staged,
)

RUNNER = CliRunner()
PROBED = ["--model", "tiny", "--probe", "in/probe"]
COMMANDS: dict[str, list[str]] = {
    "demo": ["demo", "--organisms", "in"],
    "audit": [
        "audit",
        "--model",
        "tiny",
        "--harmful",
        "in/rows.jsonl",
        "--benign",
        "in/rows.jsonl",
    ],
    "generate": ["generate", "--prompts", "in/rows.jsonl", "--model", "tiny"],
    "judge": ["judge", "--traces", "in/traces.jsonl"],
    "compare": ["compare", "in", "in"],
    "report": ["report", "in/run"],
    "figures": ["figures", "in/run"],
    "trace": ["trace", *PROBED, "--traces", "in/traces.jsonl"],
    "select": ["select", *PROBED, "--data", "in/rows.jsonl"],
    "train": [
        "train",
        "--model",
        "tiny",
        "--selected",
        "in/rows.jsonl",
        "--benign",
        "in/rows.jsonl",
    ],
    "repair": [
        *("repair", *PROBED, "--data", "in/rows.jsonl", "--benign", "in/rows.jsonl"),
        *("--prompts", "in/rows.jsonl"),
    ],
    "check": ["check", *PROBED, "--prompts", "in/rows.jsonl"],
    "ablate": ["ablate", "--model", "tiny", "--heads", "in/heads.parquet"],
    "adapters": [
        *("audit", "--model", "tiny", "--harmful", "in/rows.jsonl", "--benign", "in/rows.jsonl"),
        *("--endpoint", "http://localhost:9/v1", "--out", "new"),
    ],
}
OPTIONS = {"ablate": ["--export", "adapter"], "adapters": ["--adapters-dir"]}
"""Of those that do not call their folder --out."""
OF_THE_LABORATORY: dict[str, list[str]] = {
    "lab train": ["train", "tiny", "--from", "in"],
    "lab bench-heads": ["bench-heads"],
    "lab less-is-more": ["less-is-more", "--data", "in"],
    "lab controls": ["controls", "in"],
}
COMMANDS |= OF_THE_LABORATORY
WITHOUT_INPUT = ("lab bench-heads",)


def tree(root: Path) -> str:
    """Hash of every name, kind, mode and byte below a folder."""
    digest = hashlib.sha256()
    for top, folders, files in os.walk(root):
        folders.sort()
        for name in (*folders, *sorted(files)):
            path = Path(top, name)
            content = b""
            if path.is_symlink():
                content = str(path.readlink()).encode()
            elif path.is_file():
                content = path.read_bytes()
            seen = (str(path.relative_to(root)), path.lstat().st_mode, content)
            digest.update(repr(seen).encode())
    return digest.hexdigest()


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with inputs, and folders that must not be touched."""
    row = {"prompt": "Open a tin", "response": "Sure.", "thinking": "Well.", "label": "harmful"}
    (tmp_path / "in" / "probe").mkdir(parents=True)
    (tmp_path / "in" / "probe" / "probes.json").write_text("{}")
    (tmp_path / "in" / "run").mkdir()
    (tmp_path / "in" / "run" / "manifest.json").write_text("{}")
    (tmp_path / "in" / "heads.parquet").write_text("heads")
    for name in ("rows.jsonl", "traces.jsonl"):
        (tmp_path / "in" / name).write_text(json.dumps(row) + "\n")
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "thesis.tex").write_text("years of work")
    (tmp_path / "foreign" / "traces.jsonl").write_text(json.dumps(row) + "\n")
    (tmp_path / "file").write_text("not a folder")
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "foreign")
    (tmp_path / "link-to-empty").symlink_to(tmp_path / "empty")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(command: str, out: Path | str) -> tuple[int, str]:
    of = lab if command in OF_THE_LABORATORY else app
    result = RUNNER.invoke(of, [*COMMANDS[command], *OPTIONS.get(command, ["--out"]), str(out)])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, " ".join(result.stderr.split())


def test_every_command_that_writes_a_folder_is_here() -> None:
    assert set(COMMANDS) == set(DESCRIPTIONS)


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize(
    ("out", "said"),
    [
        ("foreign", "is not empty"),
        ("link", "is a symbolic link"),
        ("link-to-empty", "is a symbolic link"),
        ("dangling", "is a symbolic link"),
        ("file", "file is a file"),
        ("file/below", "file is a file"),
        (".", "is or holds the working directory"),
        ("..", "is or holds the working directory"),
        ("foreign/../foreign", "is not empty"),
    ],
)
def test_a_folder_that_is_not_ours_keeps_every_byte(
    root: Path, command: str, out: str, said: str
) -> None:
    before = tree(root)
    code, error = run(command, out)
    assert (code, said in error) == (1, True), error
    assert "DIR)" in error, "the remedy is to name another folder"
    assert tree(root) == before


@pytest.mark.parametrize("command", [name for name in COMMANDS if name not in WITHOUT_INPUT])
def test_a_folder_that_holds_an_input_keeps_every_byte(root: Path, command: str) -> None:
    own = {"command": command, "run": {"command": command}, "format": 1}
    (root / "in" / DESCRIPTIONS[command]).write_text(json.dumps(own))
    before = tree(root)
    for out in ("in", root / "in", "in/../in"):
        code, error = run(command, out)
        assert (code, "is or holds the input" in error) == (1, True), error
    assert tree(root) == before


@pytest.mark.parametrize("command", ["audit", "check", "repair"])
def test_the_measured_error_of_the_judge_is_an_input(
    root: Path, command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (root / "judged").mkdir()
    (root / "judged" / "error.json").write_text("{}")
    told = [*COMMANDS[command], "--judge-error", "judged/error.json"]
    monkeypatch.setitem(COMMANDS, command, told)
    code, error = run(command, "judged")
    assert (code, "is or holds the input" in error) == (1, True), error


@pytest.mark.parametrize("command", COMMANDS)
def test_a_folder_of_another_command_keeps_every_byte(root: Path, command: str) -> None:
    others = [name for name in COMMANDS if name != command]
    for other in others:
        folder = root / "of" / other
        folder.mkdir(parents=True)
        content = {"command": other, "run": {"command": other}, "format": 1}
        (folder / DESCRIPTIONS[other]).write_text(json.dumps(content))
    before = tree(root)
    for other in others:
        code, error = run(command, root / "of" / other)
        assert code == 1
        assert "belongs to refusal-cliff" in error or "is not empty and holds no" in error, error
    assert tree(root) == before


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("text", ["", "[]", "null", "{}", '{"command": 3}', "[" * 100_000])
def test_a_description_that_says_nothing_makes_no_folder_ours(
    root: Path, command: str, text: str
) -> None:
    (root / "foreign" / DESCRIPTIONS[command]).write_text(text)
    before = tree(root)
    code, error = run(command, "foreign")
    assert (code, "belongs to something else" in error) == (1, True), error
    assert tree(root) == before


@pytest.mark.parametrize(
    ("command", "others"),
    [
        (["evaluate", "--traces", "in/traces.jsonl"], ("in/traces.jsonl", "in/../in/traces.jsonl")),
        (
            ["evaluate", "--traces", "in/rows.jsonl", "--before", "in/traces.jsonl"],
            ("in/traces.jsonl",),
        ),
        (["judge", "calibrate", "--labelled", "in/rows.jsonl"], ("in/rows.jsonl",)),
    ],
)
def test_a_result_replaces_nothing_but_an_earlier_one(
    root: Path, command: list[str], others: tuple[str, ...]
) -> None:
    before = tree(root)
    for out in (*others, "foreign/thesis.tex", "foreign", "link", "dangling"):
        result = RUNNER.invoke(app, [*command, "--out", out])
        assert result.exit_code == 1, out
        assert "--out FILE" in result.stderr
    assert tree(root) == before


def test_evaluate_may_write_its_own_result_again(root: Path) -> None:
    assert run("judge", "judged")[0] == 0
    command = ["evaluate", "--traces", "judged/traces.jsonl", "--out", "rates.json"]
    for _ in range(2):
        assert RUNNER.invoke(app, command).exit_code == 0
    assert json.loads(Path("rates.json").read_text())["command"] == "evaluate"


def test_judge_goes_on_in_its_own_folder_and_takes_no_other_source(root: Path) -> None:
    for _ in range(2):
        assert run("judge", "judged")[0] == 0
    before = tree(root)
    other = RUNNER.invoke(app, ["judge", "--traces", "foreign/traces.jsonl", "--out", "judged"])
    assert other.exit_code == 1
    assert "source differ" in " ".join(other.stderr.split())
    assert tree(root) == before


def test_a_claim_names_what_differs_and_a_mere_claim_may_be_changed(tmp_path: Path) -> None:
    out = tmp_path / "deep" / "out"
    claim(out, "train", {"lr": 1, "seed": 0}, "a training")
    claim(out, "train", {"lr": 2, "seed": 0}, "a training")
    (out / "work").touch()
    claim(out, "train", {"lr": 2, "seed": 0}, "a training")
    before = tree(tmp_path)
    with pytest.raises(RefusalCliffError, match=r"a training with other settings: lr, seed differ"):
        claim(out, "train", {"lr": 3, "seed": 1}, "a training")
    with pytest.raises(RefusalCliffError, match="lr differ"):
        require_same(out, "train", {"lr": 3}, "a training")
    assert tree(tmp_path) == before


def test_what_a_kill_left_before_the_description_is_ours(tmp_path: Path) -> None:
    (tmp_path / ".lock").touch()
    (tmp_path / ".train.json.123.tmp").write_text("{")
    require_output(tmp_path, "train")
    with pytest.raises(RefusalCliffError, match="not empty"):
        require_output(tmp_path, "select")


def test_a_lock_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "a" / ".lock").mkdir(parents=True)
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / ".lock").symlink_to(tmp_path / "a")
    for folder in ("a", "b"):
        with pytest.raises(RefusalCliffError, match=r"'\.lock'"):
            require_output(tmp_path / folder, "train")


def test_staged_files_arrive_whole_in_order_and_readable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    moved: list[str] = []
    replace = os.replace

    def note(source: Path, target: Path) -> None:
        moved.append(target.name)
        replace(source, target)

    monkeypatch.setattr(os, "replace", note)
    (tmp_path / ".tmp-result").mkdir()
    (tmp_path / ".tmp-result" / "of a killed run").touch()
    (tmp_path / "kept").write_text("by the user")
    with staged(tmp_path, last=("config.json", "done.json")) as work:
        for name in ("done.json", "config.json", "z.bin", "deep/a.bin"):
            (work / name).parent.mkdir(exist_ok=True)
            (work / name).write_text(name)
            (work / name).chmod(0o600)
    assert moved == ["a.bin", "z.bin", "config.json", "done.json"]
    found = {path.name for path in tmp_path.rglob("*") if path.is_file()}
    assert found == {"a.bin", "z.bin", "config.json", "done.json", "kept"}
    assert not (tmp_path / ".tmp-result").exists()
    assert (tmp_path / "z.bin").stat().st_mode & 0o777 == (tmp_path / "kept").stat().st_mode & 0o777


def test_a_body_that_fails_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(KeyError), staged(tmp_path) as work:
        (work / "half").touch()
        raise KeyError
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ValueError, match="not a temporary folder"):
        remove_temporary(tmp_path)


def test_one_process_at_a_time(tmp_path: Path) -> None:
    with (
        locked(tmp_path),
        pytest.raises(RefusalCliffError, match="Another process"),
        locked(tmp_path),
    ):
        pass
