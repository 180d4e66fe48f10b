"""The demo runs for real, and a demo killed again and again ends with the same summary."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from killable import Killable
from small_demo import small_demo

from refusal_cliff.findings.summary import read_summary
from refusal_cliff.findings.wording import findings_of
from refusal_cliff.stages.report import SUMMARY
from refusal_cliff.workflows import demo
from refusal_cliff.workflows.demo import MAIN

KILLED_IN = ("tiny/generate", "tiny/select", "tiny/repair-random", "tiny/ablate")
MOMENT = 0.3

GPUS = ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES")


def events(process: Killable) -> Iterator[tuple[str, str]]:
    for line in process.lines():
        what, _, name = line.partition(" ")
        yield what, name


def run_and_kill(folder: Path, stage: str) -> set[str]:
    """Kill the run in the middle of a stage; return the stages finished by then."""
    finished: set[str] = set()
    process = Killable(small_demo, folder)
    for what, name in events(process):
        if what in ("done", "kept"):
            finished.add(name)
        if (what, name) == ("start", stage):
            time.sleep(MOMENT)
            process.kill()
            break
    assert process.wait() == -signal.SIGKILL
    return finished


def without_times(folder: Path) -> dict[str, object]:
    content: dict[str, object] = json.loads((folder / SUMMARY).read_text())
    seconds = content.pop("seconds")
    assert isinstance(seconds, dict)
    return content


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    process = Killable(small_demo, folder)
    assert all(what in ("start", "done") for what, _ in events(process))
    assert process.wait() == 0
    return folder


def test_the_demo_finds_something_to_say(whole: Path) -> None:
    summary = read_summary(whole / SUMMARY)
    assert summary.planted is not None
    assert summary.selection is not None
    assert summary.control is not None
    for found in (summary.cliff, summary.control):  # 12 prompts of each kind decide nothing
        assert found.verdict == "undecided"
        assert "Give more" in found.reason
    assert summary.cliff.cliff > 0.4 > summary.control.cliff
    assert summary.second is not None
    read = summary.second.readings
    assert {"own probe", "own probe, relative to the place", "next-token margin"} <= set(read)
    assert read["own probe"].share == summary.cliff.share_with_cliff
    assert len(findings_of(summary)) >= 9
    page = (whole / "report.html").read_text()
    assert page.startswith("<!DOCTYPE html>")
    assert summary.planted.true[0] in page


def test_killed_anywhere_it_ends_with_the_same_summary(whole: Path, tmp_path: Path) -> None:
    """All of ``tiny`` is made again; the others, whose stages are of the same kinds, stay."""
    folder = tmp_path / "run"
    shutil.copytree(whole, folder)
    shutil.rmtree(folder / MAIN)
    (folder / SUMMARY).unlink()
    finished: set[str] = set()
    for stage in KILLED_IN:
        finished = run_and_kill(folder, stage)
        assert stage not in finished
    process = Killable(small_demo, folder)
    again = {name for what, name in events(process) if what == "start"}
    assert process.wait() == 0
    assert not again & finished, "a finished stage ran again"
    assert without_times(folder) == without_times(whole)
    assert not [path for path in folder.iterdir() if path.name.startswith(".tmp-")]


def test_processes_of_the_demo_see_no_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that its parent has asked for fails in a fork, where optimisers ask again."""
    seen: dict[str, str | None] = {}

    def first_use(*_: object, **__: object) -> None:
        seen.update({name: os.environ.get(name) for name in GPUS})
        raise KeyboardInterrupt

    for name in GPUS:
        monkeypatch.setenv(name, "0")
    monkeypatch.setattr(demo, "load_subject", first_use)
    monkeypatch.setattr(demo.torch, "set_num_threads", lambda n: None)  # of the tests after it
    for workers, visible in ((1, "0"), (2, "")):
        with pytest.raises(KeyboardInterrupt):
            demo.run_demo(tmp_path, workers=workers)
        assert seen == dict.fromkeys(GPUS, visible)
