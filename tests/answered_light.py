"""Command lines that are answered in one process, and what heavy modules each of them imports."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

HEAVY = ("torch", "transformers", "sklearn", "scipy", "pandas", "numpy", "pyarrow", "datasets")
CODE = f"""
import importlib, json, sys
from typer.testing import CliRunner
app = importlib.import_module(sys.argv[1]).app
before = set()
for line in sys.argv[2:]:
    done = CliRunner().invoke(app, line.split())
    heavy = [m for m in {HEAVY} if m in sys.modules and m not in before]
    before.update(heavy)
    print(json.dumps([line, done.exit_code, heavy, done.stderr]))
"""


class Answer(NamedTuple):
    status: int
    heavy: list[str]
    stderr: str


def answers(module: str, lines: Sequence[str], folder: Path) -> dict[str, Answer]:
    """What the app of a module answers each command line, one after the other, in a folder."""
    command = [sys.executable, "-c", CODE, module, *lines]
    said = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    rows = [json.loads(text) for text in said.stdout.splitlines()]
    assert [row[0] for row in rows] == list(lines), said.stderr
    return {line: Answer(*answer) for line, *answer in rows}
