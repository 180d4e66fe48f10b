"""Every command that a page shows exists as it is written, and the tutorial does what it says.

The tutorial on the embedded model is run in full (``make slow``); of all other pages each command
is held against the command line.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

import refusal_cliff as rc
from lab.__main__ import app as lab
from refusal_cliff.cli import app

ROOT = Path(__file__).parent.parent
PAGES = [*sorted((ROOT / "docs").rglob("*.md")), ROOT / "README.md", ROOT / "CONTRIBUTING.md"]
BLOCK = re.compile(r"^[ >]*```(\w*)[^\n]*\n(.*?)^[ >]*```", re.M | re.S)
SHELLS = ("", "bash", "console", "yaml")
HELP = ("--help", "-h", "--version", "…")
INLINE = re.compile(r"`((?:refusal-cliff|python -m lab) [^`\n]+)`")
CALL = re.compile(r"(?:^|[\s/(])(refusal-cliff|python -m lab)\)? (?=[a-z-]+)(.*)")
PROGRAMS: dict[str, Any] = {"refusal-cliff": get_command(app), "python -m lab": get_command(lab)}
STEPS = ("install", "five-minutes", "audit", "data", "ci-gate")
"""The path of a stranger: install, demo, own model, own data, gate."""


def commands_of(page: Path) -> Iterator[list[str]]:
    """The program of every command on a page, and the words after it."""
    text = page.read_text(encoding="utf-8")
    blocks = [code.replace("\\\n", " ") for kind, code in BLOCK.findall(text) if kind in SHELLS]
    for line in [*"\n".join(blocks).splitlines(), *INLINE.findall(text)]:
        if found := CALL.search(line):
            words = shlex.split(re.split(r" (?:[|>&]{1,2}|→) ", found[2])[0], comments=True)
            yield [found[1], *words]


def wrong_in(words: Sequence[str]) -> str | None:
    """What a command line has that the command does not know."""
    command, rest = PROGRAMS[words[0]], deque(words[1:])
    while rest and not rest[0].startswith("-") and (inner := getattr(command, "commands", {})):
        if rest[0] not in inner:
            return f"no command {rest[0]}"
        command = inner[rest.popleft()]
    options = {flag: option for option in command.params for flag in option.opts}
    arguments = any(not flag.startswith("-") for flag in options)
    while rest:
        name, equals, _ = rest.popleft().partition("=")
        if name in HELP or name.startswith("$") or (not name.startswith("--") and arguments):
            continue
        if name not in options:
            return f"no option {name}"
        values = 0 if equals or getattr(options[name], "is_flag", False) else options[name].nargs
        if len(rest) < values:
            return f"{name} has no value"
        for _ in range(values):
            rest.popleft()
    return None


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_command_of_a_page_exists(page: Path) -> None:
    wrong = {" ".join(words): wrong_in(words) for words in commands_of(page)}
    assert {line: why for line, why in wrong.items() if why} == {}


def test_commands_are_found_and_mistakes_are_seen() -> None:
    assert sum(len(list(commands_of(page))) for page in PAGES) > 80
    assert wrong_in(["refusal-cliff", *shlex.split("audit --model tiny --quick")]) is None
    assert wrong_in(["refusal-cliff", *shlex.split("audit --modell tiny")]) == "no option --modell"
    assert wrong_in(["refusal-cliff", *shlex.split("audits --model tiny")]) == "no command audits"
    assert wrong_in(["python -m lab", "train", "tiny", "--seeds"]) == "no option --seeds"
    assert wrong_in(["refusal-cliff", *shlex.split("audit --model")]) == "--model has no value"


def test_every_bench_is_run_as_a_module() -> None:
    """``python bench/X.py`` finds neither the laboratory nor the other benches."""
    texts = [path.read_text(encoding="utf-8") for path in (*PAGES, *(ROOT / "bench").rglob("*.py"))]
    assert not [text for text in texts if re.search(r"python\s+bench/", text)]
    names = {name for text in texts for name in re.findall(r"python -m bench\.(\w+)", text)}
    there = {path.stem for path in (ROOT / "bench").iterdir()}
    assert len(names) > 20 and names <= there


def test_the_reference_has_every_public_name() -> None:
    page = (ROOT / "docs/reference/api.md").read_text(encoding="utf-8")
    assert sorted(re.findall(r"^::: refusal_cliff\.(\w+)$", page, re.M)) == sorted(rc.__all__)


def test_every_step_of_the_path_is_one_click_from_the_readme() -> None:
    links = re.findall(r"\]\(([^)]+)\)", (ROOT / "README.md").read_text(encoding="utf-8"))
    names = {Path(link.split("#")[0]).stem for link in links}
    assert set(STEPS) <= names


@pytest.mark.slow
def test_the_tutorial_does_what_it_says(tmp_path: Path) -> None:
    page = (ROOT / "docs/tutorial/five-minutes.md").read_text(encoding="utf-8")
    blocks = BLOCK.findall(page)
    (script,) = [code for kind, code in blocks if kind == "python"]
    (tmp_path / "write_prompts.py").write_text(script, encoding="utf-8")
    named = {"python": "", "refusal-cliff": "-m refusal_cliff"}
    for name, module in named.items():
        start = tmp_path / "bin" / name
        start.parent.mkdir(exist_ok=True)
        start.write_text(f'#!/bin/sh\nexec "{sys.executable}" {module} "$@"\n')
        start.chmod(0o755)
    path = f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}"
    statuses = [
        subprocess.run(
            ["bash", "-c", code], cwd=tmp_path, env={**os.environ, "PATH": path}
        ).returncode
        for kind, code in blocks
        if kind == "bash"
    ]
    assert statuses == [0, 0, 3, 0, 0]
    summary = json.loads((tmp_path / "runs/tiny/summary.json").read_text())
    assert summary["cliff"]["verdict"] == "cliff"
    assert sorted(summary["heads"]["list"]) == ["7.0", "7.6", "7.7"]
    assert (tmp_path / "runs/tiny/report.html").is_file()
