"""The demo runs for real, and a demo killed again and again ends with the same summary."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from refusal_cliff.findings.summary import read_summary
from refusal_cliff.findings.wording import findings_of

SCRIPT = Path(__file__).parent / "small_demo.py"
KILLED_IN = ("tiny/generate", "tiny/select", "tiny/repair-random", "tiny-diffuse/ablate")
MOMENT = 0.3


def start(folder: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, str(SCRIPT), str(folder)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "TOKENIZERS_PARALLELISM": "false"},
    )


def lines(process: subprocess.Popen[str]) -> Iterator[tuple[str, str]]:
    assert process.stdout is not None
    for line in process.stdout:
        what, _, name = line.strip().partition(" ")
        yield what, name


def run_and_kill(folder: Path, stage: str) -> set[str]:
    """Kill the run in the middle of a stage; return the stages finished by then."""
    finished: set[str] = set()
    process = start(folder)
    for what, name in lines(process):
        if what in ("done", "kept"):
            finished.add(name)
        if (what, name) == ("start", stage):
            time.sleep(MOMENT)
            process.send_signal(signal.SIGKILL)
            break
    assert process.wait() == -signal.SIGKILL
    return finished


def without_times(folder: Path) -> dict[str, object]:
    content: dict[str, object] = json.loads((folder / "summary.json").read_text())
    seconds = content.pop("seconds")
    assert isinstance(seconds, dict)
    return content


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    process = start(folder)
    assert all(what == "start" or what == "done" for what, _ in lines(process))
    assert process.wait() == 0
    return folder


def test_the_demo_finds_something_to_say(whole: Path) -> None:
    summary = read_summary(whole / "summary.json")
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
    folder = tmp_path / "run"
    finished: set[str] = set()
    for stage in KILLED_IN:
        finished = run_and_kill(folder, stage)
        assert stage not in finished
    process = start(folder)
    events = list(lines(process))
    assert process.wait() == 0
    again = {name for what, name in events if what == "start"}
    assert not again & finished, "a finished stage ran again"
    assert without_times(folder) == without_times(whole)
    assert not [path for path in folder.iterdir() if path.name.startswith(".tmp-")]
