"""A pool of two Ray actors, one of them killed, gives the rows that one process gives."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path

import psutil
import pytest
from test_candidate_run import (
    assert_equal_scores,
    plan_of,
    root,
    source_of,
    subject,
    whole,
)

from refusal_cliff.select.selection_run import Choice, run_selection
from refusal_cliff.select.shards import scores_path

__all__ = ["root", "subject", "whole"]
pytest.importorskip("ray", reason="Ray is not installed: pip install 'refusal-cliff[ray]'")


def kill_an_actor(out: Path, killed: list[int]) -> None:
    """Once a shard is there, end one actor process with signal 9."""
    while not any(scores_path(out, number).is_file() for number in range(10)):
        time.sleep(0.01)
    for child in psutil.Process().children(recursive=True):
        if "MapWorker" in " ".join(child.cmdline()):
            os.kill(child.pid, signal.SIGKILL)
            killed.append(child.pid)
            return


def test_two_actors_one_killed(
    root: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tests = str(Path(__file__).parent)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join((tests, os.environ.get("PYTHONPATH", ""))))
    out, killed = tmp_path / "out", []
    killer = threading.Thread(target=kill_an_actor, args=(out, killed), daemon=True)
    killer.start()
    done = run_selection(plan_of(root, out), source_of(root), Choice(n=5), engine="ray", actors=2)
    killer.join(timeout=60)
    assert done is not None
    assert len(killed) == 1, "no actor was killed: the test shows nothing"
    assert_equal_scores(out, whole)
