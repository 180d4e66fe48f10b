"""Whatever the terminal's encoding, an answer is shown: with what the terminal has."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from refusal_cliff.cli import app
from refusal_cliff.findings.wording import Finding
from refusal_cliff.live import (
    LiveView,
    print_error,
    print_findings,
    print_table,
    say,
    write_what_can_be_shown,
)

ENVIRONMENTS = {
    "ascii": {"PYTHONIOENCODING": "ascii"},
    "latin-1": {"PYTHONIOENCODING": "latin-1"},
    "C": {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    "utf-8": {"PYTHONIOENCODING": "utf-8"},
}
TEXT = "plateau → final ± 0.1 · “Größe” 漢字 \udce4 ✓ ≥ …"


def run(environment: str, *words: str, cwd: Path) -> subprocess.CompletedProcess[bytes]:
    code = "from refusal_cliff.cli import app; app()"
    others = {k: v for k, v in os.environ.items() if not k.startswith(("LC_", "LANG", "PYTHONIO"))}
    return subprocess.run(
        [sys.executable, "-c", code, *words],
        capture_output=True,
        cwd=cwd,
        env={**others, **ENVIRONMENTS[environment]},
    )


def run_here(encoding: str, *words: str) -> tuple[int, bytes]:
    """The exit status and output where an encoding of the streams is all that differs."""
    target = io.BytesIO()
    stream = io.TextIOWrapper(target, encoding=encoding)  # which closes the target when it goes
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as end:
        patch.setattr(sys, "stdout", stream)
        app(words)
    stream.flush()
    return int(str(end.value)), target.getvalue()


@pytest.mark.parametrize("environment", ENVIRONMENTS)
def test_commands_answer_in_every_encoding(environment: str, tmp_path: Path) -> None:
    rows = [
        {"id": f"é{i}", "prompt": "Wie groß?", "label": "harmful", "category": "→ “Größe” 漢字",
         "response": "Sure ✓", "verdict": "complied", "judge": "rules" if i else ""}
        for i in range(4)
    ]  # fmt: skip
    file = tmp_path / "traces.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    out = tmp_path / "rates.json"
    words = ("evaluate", "--traces", str(file), "--out", str(out))
    if environment == "C":  # where files, too, have another encoding
        done = run(environment, *words, cwd=tmp_path)
        status, told = done.returncode, done.stdout
    else:
        status, told = run_here(environment, *words)
    assert status == 0
    assert b"Judge: not named in the file, rules" in told and b"attack success" in told
    assert "→ “Größe” 漢字" in out.read_text("utf-8")
    shown = told.decode({"C": "ascii"}.get(environment, environment))
    assert ("漢字" in shown) == (environment == "utf-8")
    assert ("Größe" in shown) == (environment in ("utf-8", "latin-1"))


@pytest.mark.parametrize("environment", ENVIRONMENTS)
@pytest.mark.parametrize(
    "words", [["--help"], ["organism", "list"], ["evaluate", "--traces", "ü→.jsonl"]]
)
def test_help_and_errors_are_shown_too(environment: str, words: list[str], tmp_path: Path) -> None:
    told = run(environment, *words, cwd=tmp_path)
    assert told.returncode == (1 if words[0] == "evaluate" else 0), told.stderr
    assert b"Traceback" not in told.stderr and b"UnicodeEncodeError" not in told.stderr
    assert (told.stdout + told.stderr).decode({"C": "ascii"}.get(environment, environment))


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252", "koi8-r", "utf-8", "utf-16"])
@pytest.mark.parametrize("terminal", [True, False])
def test_everything_that_is_shown_can_be_written(
    encoding: str, terminal: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = io.BytesIO()
    stream = io.TextIOWrapper(target, encoding=encoding)
    monkeypatch.setattr(sys, "stdout", stream)
    write_what_can_be_shown()
    console = Console(force_terminal=terminal, width=100)
    print_findings(console, [Finding("Is there a cliff? → κ", TEXT, True)])
    print_table(console, ["a ±", "b →"], [[TEXT, "1"]], "Change of α → β")
    print_error(console, TEXT)
    say(console, TEXT)
    with LiveView(console, TEXT) as view:
        view.planned([TEXT])
        view.stage_started(TEXT)
        view.stage_finished(TEXT, 1.0, {"asr → after": 0.5})
        view.step(TEXT, 1)
        view.step(TEXT, 1, 2, TEXT)
    stream.flush()
    shown = target.getvalue().decode(encoding)
    assert "plateau" in shown and "cliff?" in shown
    if encoding == "ascii":
        assert 'plateau -> final +- 0.1 - "Gro?e" ?? ? + >= ...' in shown.replace("\n", " ")


@pytest.mark.parametrize("title", ["{", "}", "{task.nothing}", "{0}", "[red]", "[/]", "a{b}c"])
def test_a_path_with_braces_is_a_title(title: str) -> None:
    text = io.StringIO()
    console = Console(file=text, force_terminal=True, width=120)
    with LiveView(console, f"→ {title}") as view:
        view.step(title, 1)
    assert f"✓ {title}" in text.getvalue()
    assert f"→ {title}" in text.getvalue()


@pytest.mark.parametrize("columns", ["0", "1", "-5", "wide", "9" * 30])
def test_an_answer_is_written_whatever_the_width_is_said_to_be(columns: str) -> None:
    command = [sys.executable, "-m", "refusal_cliff", "organism", "list"]
    done = subprocess.run(
        command, env=os.environ | {"COLUMNS": columns}, capture_output=True, text=True, check=True
    )
    assert "tiny-aligned: thinks, recognises harm" in done.stdout
    assert len(done.stdout) < 10_000


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="only Linux has a disk that is full")
def test_an_output_that_cannot_be_written_is_said() -> None:
    command = [sys.executable, "-m", "refusal_cliff", "organism", "list"]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert (done.returncode, "Traceback" in done.stderr) == (1, False)
    assert "Could not write the output" in " ".join(done.stderr.split())
