"""The four commands that run over rows, on small files: whole in this process, or in others."""

from __future__ import annotations

import json
import multiprocessing
import os
from collections.abc import Mapping, Sequence
from multiprocessing.context import ForkServerProcess
from pathlib import Path

import torch
from typer.testing import CliRunner

from refusal_cliff.cli import app

COMMANDS = ("generate", "judge", "trace", "select")
N = 22
_SHARED = multiprocessing.get_context("forkserver")
_LOADED = (
    *("refusal_cliff.cliff.shards", "refusal_cliff.answers.answering"),
    *("refusal_cliff.select.selection_run", "transformers.models.qwen3.modeling_qwen3"),
)


def write_files(root: Path) -> None:
    """Prompts and answers, some of them bad, beside the files of `test_candidate_run`."""
    asked = [{"id": f"p{n}", "prompt": f"Do {'it ' * (n % 4)}{n}"} for n in range(N)]
    asked[5] = {"id": "p5", "prompt": "word " * 300}
    answers = [
        {
            "id": f"a{n}",
            "prompt": f"Do {n}",
            "label": "harmful" if n % 2 else "benign",
            "thinking": "This is " + "quite " * (n % 5) + "fine.",
            "response": "I cannot help with that." if n % 3 == 0 else f"Sure: [step {n}].",
        }
        for n in range(N)
    ]
    answers[7] = {"id": "a7", "label": "benign"}
    answers[9]["response"] = ""
    for name, rows in (("prompts", asked), ("answers", answers)):
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (root / f"{name}.jsonl").write_text(lines, encoding="utf-8")


def arguments(root: Path, command: str, out: Path, *more: str) -> list[str]:
    """A command of the four, as a user types it."""
    model = ("--model", str(root / "model"), "--device", "cpu")
    probed = (*model, "--probe", str(root / "probe"), "--shard-size", "4")
    options = {
        "generate": (
            *(*model, "--prompts", str(root / "prompts.jsonl"), "--label", "harmful"),
            *("--max-new-tokens", "12", "--batch-size", "2"),
        ),
        "judge": ("--traces", str(root / "answers.jsonl")),
        "trace": (*probed, "--traces", str(root / "answers.jsonl"), "--every-layer"),
        "select": (
            *(*probed, "--data", str(root / "data.jsonl"), "--n", "5", "--thinking", "data"),
            *("--evaluation", str(root / "asked.jsonl")),
        ),
    }
    return [command, *options[command], "--out", str(out), *more]


def run_here(root: Path, command: str, out: Path, *more: str) -> str:
    """What a command says, run in this process on one thread, as the others are."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        done = CliRunner().invoke(app, arguments(root, command, out, *more))
    finally:
        torch.set_num_threads(threads)
    assert done.exit_code == 0, done.output
    return done.output


def started(typed: Sequence[str], environment: Mapping[str, str]) -> ForkServerProcess:
    """A process of its own that runs a command; all of them share what they import."""
    _SHARED.set_forkserver_preload(list(_LOADED))
    process = _SHARED.Process(target=_run, args=(list(typed), dict(environment)), daemon=True)
    process.start()
    return process


def _run(typed: Sequence[str], environment: Mapping[str, str]) -> None:
    os.environ |= environment
    torch.set_num_threads(1)
    app(list(typed))


def results(folder: Path) -> dict[str, bytes]:
    """All files of a folder but what says how they were made: locks, journals and options."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
        and path.suffix != ".journal"
        and path.name not in (".lock", "config.toml")
    }
