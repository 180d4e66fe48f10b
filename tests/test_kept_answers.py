"""A kill costs one batch of answers, and the results are those of a run that nobody killed."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_chat import SPECIAL, save_tiny

from refusal_cliff.data.journal import Journal
from refusal_cliff.data.types import Prompt, Trace
from refusal_cliff.generate import GenerationConfig, drafts, generate
from refusal_cliff.io import read_json
from refusal_cliff.model.subject import Head, Subject, load_subject
from refusal_cliff.run.folder import MANIFEST, Headline, RunInfo
from refusal_cliff.run.forks import CAN_FORK
from refusal_cliff.run.pipeline import Job, Stage, run_pipeline, stage_key
from refusal_cliff.stages.report import PAGE, RECIPE, SUMMARY
from refusal_cliff.stages.study import Study

SCRIPT = Path(__file__).with_name("killed_audit.py")
CONFIG = GenerationConfig(max_new_tokens=12, batch_size=4)
PROMPTS = [
    Prompt(f"p{row}", "a" * (row % 5) + "?" * (row % 3), ("benign", "harmful")[row % 2])
    for row in range(14)
]
HEADS = (Head(1, 0), Head(2, 3))
WAYS: dict[str, tuple[GenerationConfig, dict[str, Any]]] = {
    "greedy": (CONFIG, {}),
    "drawn": (replace(CONFIG, temperature=1.0), {}),
    "budget": (replace(CONFIG, thinking_budget=5), {}),
    "heads": (CONFIG, {"row_heads": [HEADS if row % 3 else () for row in range(14)]}),
    "begun": (CONFIG, {"begun": [[4, *range(10, 10 + row % 4)] for row in range(14)]}),
    "at some tokens": (
        CONFIG,
        {"row_heads": [HEADS] * 14, "row_tokens": [range(20, 25 + row) for row in range(14)]},
    ),
    "twice the same": (CONFIG, {"row_heads": [HEADS] * 14, "renormalised": True}),
}


class Killed(Exception):
    """Stands for a kill within one process."""


@pytest.fixture(scope="module")
def subject(tmp_path_factory: pytest.TempPathFactory) -> Subject:
    folder = save_tiny(tmp_path_factory.mktemp("tiny"))
    path = folder / "generation_config.json"
    ends = [SPECIAL.index("<|im_end|>"), 144, 100, 77]  # or it would hardly ever end
    path.write_text(f'{{"eos_token_id": {ends}}}')
    return load_subject(str(folder), device="cpu")


class Asked:
    """The rows of every batch that the model is asked for; killed in the middle of one of them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, kill_at: int = 0) -> None:
        self.rows: list[list[list[int]]] = []
        greedy_tokens = drafts.greedy_tokens

        def asked(model: Any, ids: torch.Tensor, *args: Any, **options: Any) -> torch.Tensor:
            self.rows.append(ids.tolist())
            if len(self.rows) == kill_at:
                raise Killed
            return greedy_tokens(model, ids, *args, **options)

        monkeypatch.setattr(drafts, "greedy_tokens", asked)


def write(subject: Subject, way: str, journal: Journal | None, size: int = 4) -> list[Trace]:
    config, options = WAYS[way]
    return generate(subject, PROMPTS, replace(config, batch_size=size), journal=journal, **options)


@pytest.mark.parametrize("way", WAYS)
def test_after_a_kill_the_same_batches_are_asked(
    way: str, subject: Subject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(drafts, "_MOST", 0.5)  # so that there are stragglers
    with monkeypatch.context() as patch:
        whole = Asked(patch)
        expected = write(subject, way, None)
    assert len(whole.rows) > 4
    for call in (1, 3, len(whole.rows) // 2 + 1, len(whole.rows)):
        path = tmp_path / str(call)
        with monkeypatch.context() as patch, Journal(path) as journal, pytest.raises(Killed):
            Asked(patch, kill_at=call)
            write(subject, way, journal)
        with path.open("a") as file:
            file.write('{"id": "half a ro')
        with monkeypatch.context() as patch, Journal(path) as journal:
            again = Asked(patch)
            assert write(subject, way, journal) == expected
        assert again.rows == whole.rows[call - 1 :]


def test_what_is_kept_answers_nothing_else(
    subject: Subject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Journal(tmp_path / "kept") as journal:
        write(subject, "greedy", journal)
        asked = Asked(monkeypatch)
        write(subject, "greedy", journal)
        assert asked.rows == []
        write(subject, "greedy", journal, size=3)  # how is not what
        assert asked.rows == []
        for way in sorted({*WAYS} - {"greedy"}):
            before = len(asked.rows)
            assert write(subject, way, journal) == write(subject, way, None)
            assert len(asked.rows) > before
        other = replace(subject, fingerprint="another model")
        before = len(asked.rows)
        write(other, "greedy", journal)
        assert len(asked.rows) > before


def test_progress_begins_with_what_is_known(subject: Subject, tmp_path: Path) -> None:
    told: list[int] = []
    with Journal(tmp_path / "kept") as journal:
        generate(subject, PROMPTS[:5], CONFIG, journal=journal)
        generate(subject, PROMPTS, CONFIG, journal=journal, progress=told.append)
    assert (told[0], sum(told)) == (5, len(PROMPTS))


def test_the_key_says_what_not_how(subject: Subject) -> None:
    def key(config: GenerationConfig, model: Subject = subject) -> str:
        return stage_key(Study("m", model, 0, config).stage("a", (), ("b",), lambda job: {}), {})

    assert key(CONFIG) == key(replace(CONFIG, batch_size=99))
    ending = replace(subject.ending, stops=frozenset([1]))
    others = [
        key(replace(CONFIG, max_new_tokens=13)),
        key(replace(CONFIG, temperature=0.5)),
        key(CONFIG, replace(subject, fingerprint="other")),
        key(CONFIG, replace(subject, ending=ending)),
    ]
    assert len({key(CONFIG), *others}) == 5


def journals(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob(".journal*"))


def counting(name: str, config: dict[str, object], wrong_at: int = -1) -> Stage:
    """Counts to 5, and keeps how far it is."""

    def run(job: Job) -> Headline:
        assert job.journal is not None
        with Journal(job.journal) as journal:
            known = len(journal.rows)
            for number in range(known, 5):
                if number == wrong_at:
                    raise Killed
                journal.add({"id": str(number)})
        job.output(f"{name}.txt").write_text("5")
        return {"known": known}

    return Stage(name, (), (f"{name}.txt",), config, run)


@pytest.mark.parametrize(
    "workers", [1, pytest.param(2, marks=pytest.mark.skipif(not CAN_FORK, reason="Linux only"))]
)
def test_a_journal_belongs_to_a_key_and_goes_with_its_stage(tmp_path: Path, workers: int) -> None:
    info = RunInfo(command="toy")

    def run(*stages: Stage) -> dict[str, Headline]:
        done = run_pipeline(tmp_path, stages, info, workers=workers)
        return {name: record.headline for name, record in done.stages.items()}

    killed = Killed if workers == 1 else (Killed, RuntimeError)
    with pytest.raises(killed):
        run(counting("a", {"k": 1}, wrong_at=3))
    with pytest.raises(killed):
        run(counting("a", {"k": 2}, wrong_at=2))
    assert len(journals(tmp_path)) == 2
    assert not (tmp_path / "a.txt").exists()
    assert run(counting("a", {"k": 1})) == {"a": {"known": 3}}
    assert journals(tmp_path) == []
    assert sorted(path.name for path in tmp_path.iterdir()) == [".lock", "a.txt", MANIFEST]
    assert run(counting("a", {"k": 2})) == {"a": {"known": 0}}


@pytest.mark.slow
def test_a_killed_audit_leaves_the_files_of_a_whole_one(tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole" / "run", tmp_path / "killed" / "run"
    rows, _ = audit(whole)
    for call, expected in ((4, rows[:4]), (8, rows[3:11])):
        assert audit(killed, call) == (expected, -signal.SIGKILL)
        assert len(journals(killed)) == 1
    assert audit(killed) == (rows[10:], 0)
    assert files_of(killed) == files_of(whole)
    assert audit(killed, 0, 5) == ([], 0)  # another batch size keeps all


def audit(folder: Path, call: int = 0, batch_size: int = 16) -> tuple[list[int], int]:
    """The sizes of the batches that were asked, and the exit status."""
    folder.parent.mkdir(exist_ok=True)
    command: Sequence[str] = (sys.executable, str(SCRIPT), str(folder), str(call), str(batch_size))
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode in (0, -signal.SIGKILL), done.stderr
    return [int(n) for n in re.findall(r"asked (\d+)", done.stdout)], done.returncode


def files_of(folder: Path) -> dict[str, bytes]:
    """All that a run leaves, but for its seconds, its date and its place."""
    told = dict(read_json(folder / RECIPE)["provenance"])
    summary = read_json(folder / SUMMARY)
    del summary["seconds"]
    found = {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name not in (MANIFEST, SUMMARY, ".lock")
    }
    for name in (PAGE, RECIPE):
        for own in (told["finished"], str(folder.parent)):
            found[name] = found[name].replace(own.encode(), b"")
    return {**found, SUMMARY: json.dumps(summary).encode()}
