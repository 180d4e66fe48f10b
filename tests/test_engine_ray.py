"""Two Ray actors, one of them killed, write what one process writes."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from engines import arguments, results, run_here, write_files
from test_candidate_run import root
from typer.testing import CliRunner

from refusal_cliff.cli import app

__all__ = ["root"]
ray = pytest.importorskip("ray", reason="Ray is not installed: pip install 'refusal-cliff[ray]'")
FIRST = {
    "generate": ".tmp-parts-2/*/answers.journal",
    "judge": "judge.json",
    "trace": "scores-*.parquet",
    "select": "scores/scores-*.parquet",
}
"""What is there when a command has begun, long before its end."""


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """One local cluster for all tests."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


def actors() -> list[int]:
    """The processes that do shards."""
    found = psutil.Process().children(recursive=True)
    return [child.pid for child in found if "ShardActor" in " ".join(child.cmdline())]


def kill_an_actor(out: Path, first: str, killed: list[int], ended: threading.Event) -> None:
    """Once a command has begun, end one actor process with signal 9."""
    while not ended.wait(0.01):
        if any(out.glob(first)) and (running := actors()):
            os.kill(running[0], signal.SIGKILL)
            killed.append(running[0])
            return


@pytest.mark.parametrize(
    "command",
    [
        "trace",
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("generate", "judge", "select")),
    ],  # the same engine; a minute each
)
def test_two_actors_one_killed(command: str, root: Path, tmp_path: Path, cluster: None) -> None:
    write_files(root)
    whole, out = tmp_path / "whole", tmp_path / "out"
    run_here(root, command, whole)
    killed: list[int] = []
    ended = threading.Event()
    killer = threading.Thread(
        target=kill_an_actor, args=(out, FIRST[command], killed, ended), daemon=True
    )
    killer.start()
    try:
        run_here(root, command, out, "--engine", "ray", "--actors", "2")
    finally:
        ended.set()
        killer.join()
    assert len(killed) == 1, "no actor was killed: the test shows nothing"
    assert results(out) == results(whole)
    assert not list(out.glob(".tmp-*"))


def test_what_a_user_can_mend_is_said_as_in_one_process(
    root: Path, tmp_path: Path, cluster: None
) -> None:
    write_files(root)
    typed = arguments(root, "generate", tmp_path / "out", "--engine", "ray")
    done = CliRunner().invoke(app, [*typed, "--judge", "qwen3guard", "--judge-model", "absent"])
    assert done.exit_code == 1
    assert "Could not load the judge 'absent'" in " ".join(done.stderr.split())
    assert "Traceback" not in done.output
