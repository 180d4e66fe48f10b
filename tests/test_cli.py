"""Commands teach, hand over to one function, and turn user errors into a paragraph and exit 1."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
from typer.testing import CliRunner

from refusal_cliff.cli import _with_home, app
from refusal_cliff.errors import RefusalCliffError
from refusal_cliff.findings.wording import Finding

RUNNER = CliRunner()
STEPS = (
    *("generate", "judge", "probe", "trace", "cliff"),
    *("heads", "ablate", "select", "repair", "report"),
)
COMMANDS = [found.callback.__name__ for found in app.registered_commands if found.callback]
HEAVY = ("torch", "transformers", "sklearn", "pandas", "numpy")


@pytest.fixture
def fake_demo(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    module = ModuleType("refusal_cliff.workflows.demo")
    module.__dict__["WORKERS"] = 2
    monkeypatch.setitem(sys.modules, "refusal_cliff.workflows.demo", module)
    yield module


def test_help_names_every_step_and_command() -> None:
    result = RUNNER.invoke(app, ["--help"])
    assert result.exit_code == 0
    for word in (*STEPS, "demo", "audit", "organism"):
        assert word in result.output


@pytest.mark.parametrize(
    "command",
    [
        ["demo"],
        ["audit"],
        ["generate"],
        ["judge"],
        ["judge", "calibrate"],
        ["evaluate"],
        ["organism"],
        *(["organism", x] for x in ("list", "card")),
    ],
)
def test_every_command_has_help(command: list[str]) -> None:
    result = RUNNER.invoke(app, [*command, "--help"])
    assert result.exit_code == 0
    assert "Usage" in result.output


def test_help_does_not_import_what_is_heavy() -> None:
    code = (
        "import sys\nfrom refusal_cliff.cli import app\n"
        "try: app(['--help'])\n"
        f"except SystemExit: print('HEAVY', [m for m in {HEAVY} if m in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "HEAVY []" in result.stdout, result.stderr


def test_demo_shows_findings(fake_demo: ModuleType, tmp_path: Path) -> None:
    def run_demo(
        out: Path,
        seed: int,
        organisms: Path | None,
        observer: object,
        workers: int,
        command: str,
    ) -> list[Finding]:
        assert (out, seed, organisms, workers) == (tmp_path / "run", 7, None, 2)
        assert command == f"refusal-cliff demo --out {out} --seed 7"
        return [Finding("Is there a cliff?", "yes [red]0.61[/red] \x1b[31m", True)]

    fake_demo.__dict__["run_demo"] = run_demo
    result = RUNNER.invoke(app, ["demo", "--out", str(tmp_path / "run"), "--seed", "7"])
    assert result.exit_code == 0, result.output
    assert "yes [red]0.61[/red]" in result.output
    assert "\x1b" not in result.output
    assert str(tmp_path / "run" / "summary.json") in result.output


def test_a_user_error_is_a_paragraph_on_stderr(fake_demo: ModuleType) -> None:
    def run_demo(*_: object, **__: object) -> list[Finding]:
        raise RefusalCliffError("prompts.csv, row 3: no prompt. Fill it in.")

    fake_demo.__dict__["run_demo"] = run_demo
    result = RUNNER.invoke(app, ["demo"])
    assert result.exit_code == 1
    assert result.stderr == "Error: prompts.csv, row 3: no prompt. Fill it in.\n"
    assert "Traceback" not in result.output


@pytest.mark.parametrize("asked", [[], ["--json"], ["-q"], ["-q", "--json"]])
def test_what_is_shown_is_what_is_asked(
    fake_demo: ModuleType, tmp_path: Path, asked: list[str]
) -> None:
    def run_demo(out: Path, *_: object, **__: object) -> list[Finding]:
        out.mkdir()
        (out / "summary.json").write_text('{"found": "é"}')
        return [Finding("Is there a cliff?", "yes", True)]

    fake_demo.__dict__["run_demo"] = run_demo
    result = RUNNER.invoke(app, ["demo", "--out", str(tmp_path / "run"), *asked])
    assert result.exit_code == 0, result.output
    shown = result.stderr if "--json" in asked else result.stdout
    assert ("Is there a cliff?" in shown) is ("-q" not in asked)
    if "--json" in asked:
        assert result.stdout == '{"found": "é"}\n'
    else:
        assert result.stderr == ""
    if "-q" in asked:
        assert result.stderr == ""


@pytest.mark.parametrize("command", ["list", "card tiny"])
def test_an_organism_is_shown_as_it_is_asked(command: str) -> None:
    asked = ["organism", *command.split()]
    usual, quiet, told = (RUNNER.invoke(app, [*asked, *more]) for more in ([], ["-q"], ["--json"]))
    assert "tiny" in usual.stdout and quiet.output == ""
    assert "tiny" in json.dumps(json.loads(told.stdout))


def test_a_verbose_error_says_where_it_came_from(fake_demo: ModuleType) -> None:
    def run_demo(*_: object, **__: object) -> list[Finding]:
        raise RefusalCliffError("No.")

    fake_demo.__dict__["run_demo"] = run_demo
    quiet, told = (RUNNER.invoke(app, ["demo", *more]) for more in ([], ["-v"]))
    assert (quiet.exit_code, told.exit_code) == (1, 1)
    assert "run_demo" not in quiet.stderr
    assert "run_demo" in told.stderr
    assert told.stderr.endswith("Error: No.\n")


def test_on_a_terminal_something_stands_at_once(
    fake_demo: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: list[str] = []

    def run_demo(*_: object, **__: object) -> list[Finding]:
        assert shown == ["refusal-cliff demo: loading …"], "before the work, not after it"
        return []

    fake_demo.__dict__["run_demo"] = run_demo
    monkeypatch.setattr("refusal_cliff.live.Console.is_terminal", True)
    monkeypatch.setattr(
        "refusal_cliff.live.Console.print", lambda _, *what, **__: shown.append(str(what[0]))
    )
    monkeypatch.setattr("refusal_cliff.live.LiveView.__enter__", lambda view: view)
    assert RUNNER.invoke(app, ["demo"]).exit_code == 0


@pytest.mark.parametrize(
    "command", [*COMMANDS, "judge", "judge calibrate", "organism list", "organism card"]
)
def test_every_command_takes_the_same(command: str) -> None:
    result = RUNNER.invoke(app, [*command.split(), "--help"])
    for option in ("--quiet", "-q", "--verbose", "-v", "--json", "--config"):
        assert option in result.output


def test_an_interrupt_says_how_to_go_on(fake_demo: ModuleType) -> None:
    def run_demo(*_: object, **__: object) -> list[Finding]:
        raise KeyboardInterrupt

    fake_demo.__dict__["run_demo"] = run_demo
    result = RUNNER.invoke(app, ["demo"])
    assert result.exit_code == 130
    assert "same command again" in result.stderr


def test_a_bug_is_not_dressed_up_as_a_user_error(fake_demo: ModuleType) -> None:
    def run_demo(*_: object, **__: object) -> list[Finding]:
        raise ZeroDivisionError

    fake_demo.__dict__["run_demo"] = run_demo
    assert isinstance(RUNNER.invoke(app, ["demo"]).exception, ZeroDivisionError)


def test_wrong_usage_exits_with_2() -> None:
    assert RUNNER.invoke(app, ["audit", "--model", "x"]).exit_code == 2
    assert RUNNER.invoke(app, ["demo", "--seed", "-1"]).exit_code == 2


def test_version() -> None:
    assert RUNNER.invoke(app, ["--version"]).output.startswith("refusal-cliff ")


def test_a_tilde_of_a_user_is_that_users_home_and_of_nobody_a_name() -> None:
    assert _with_home("~root/x") == str(Path("~root/x").expanduser())
    assert _with_home("--out=~root/x") == "--out=" + str(Path("~root/x").expanduser())
    assert _with_home("~no-such-user/x") == "~no-such-user/x"


@pytest.mark.parametrize("form", [["--out", "~/run"], ["--out=~/run"]])
def test_a_tilde_that_the_shell_has_left_is_the_home_folder(
    fake_demo: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: list[str]
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    seen: list[Path] = []

    def run_demo(out: Path, *_: object, **__: object) -> list[Finding]:
        seen.append(out)
        return []

    fake_demo.__dict__["run_demo"] = run_demo
    assert RUNNER.invoke(app, ["demo", *form]).exit_code == 0
    assert seen == [tmp_path / "run"]


@pytest.mark.parametrize(
    "where",
    [
        "import interrupted",
        "os.kill(os.getpid(), signal.SIGINT)",
        "raise KeyboardInterrupt",
    ],
)
def test_an_interrupt_is_answered_in_words_from_the_first_import_on(
    tmp_path: Path, where: str
) -> None:
    kill = "import os, signal\n"
    (tmp_path / "interrupted.py").write_text(
        f"{kill}try:\n    os.kill(os.getpid(), signal.SIGINT)\nexcept BaseException:\n    pass\n"
    )
    (tmp_path / "program.py").write_text(
        f"{kill}import sys, types\nfrom refusal_cliff.__main__ import main\n"
        f"def app():\n    {where}\n"
        "sys.modules['refusal_cliff.cli'] = types.SimpleNamespace(app=app)\nmain()\n"
    )
    program = [sys.executable, str(tmp_path / "program.py")]
    done = subprocess.run(program, capture_output=True, text=True, timeout=600)
    assert done.returncode == 130, done.stderr
    assert done.stderr.startswith("Error: Interrupted. Run the same command again")
    assert done.stderr.count("\n") == 1
