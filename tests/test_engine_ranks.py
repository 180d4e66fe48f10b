"""Two processes of a launch, and any number of killed ones, write what one process writes."""

from __future__ import annotations

import random
import shutil
import time
from pathlib import Path

import pytest
from engines import COMMANDS, arguments, results, run_here, started, write_files
from test_candidate_run import root

__all__ = ["root"]
KILLS = 3


@pytest.fixture(scope="module")
def wholes(root: Path) -> dict[str, dict[str, bytes]]:
    write_files(root)
    for command in COMMANDS:
        run_here(root, command, root / f"whole-{command}")
    return {command: results(root / f"whole-{command}") for command in COMMANDS}


def launch(root: Path, command: str, out: Path, ranks: int) -> list[int | None]:
    """Exit codes of all processes of a launch."""
    world = {"WORLD_SIZE": str(ranks)}
    processes = [
        started(arguments(root, command, out), {**world, "RANK": str(n), "LOCAL_RANK": str(n)})
        for n in range(ranks)
    ]
    for process in processes:
        process.join(120)
    return [process.exitcode for process in processes]


@pytest.mark.parametrize("command", COMMANDS)
def test_two_ranks_write_the_same(
    command: str, root: Path, wholes: dict[str, dict[str, bytes]], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    assert launch(root, command, out, 2) == [0, 0]
    assert results(out) == wholes[command]
    assert not list(out.glob(".tmp-*"))


def test_answers_that_one_process_left_unjudged_are_judged(
    root: Path, wholes: dict[str, dict[str, bytes]], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    shutil.copytree(root / "whole-generate", out)
    for path in (*out.glob("judge-*"), out / "rates.json"):
        path.unlink()
    assert launch(root, "generate", out, 2) == [0, 0]
    assert results(out) == wholes["generate"]


@pytest.mark.parametrize("command", COMMANDS)
def test_killed_at_any_moment_on_any_number_of_ranks(
    command: str, root: Path, wholes: dict[str, dict[str, bytes]], tmp_path: Path
) -> None:
    out, draw = tmp_path / "out", random.Random(command)
    start = time.monotonic()
    assert launch(root, command, tmp_path / "timed", 1) == [0]
    seconds = time.monotonic() - start
    for _ in range(KILLS):
        world = draw.choice((1, 2))
        running = [
            started(arguments(root, command, out), {"RANK": str(n), "WORLD_SIZE": str(world)})
            for n in range(world)
        ]
        time.sleep(seconds * draw.uniform(0.3, 1))
        for process in running:
            process.kill()
            process.join()
    run_here(root, command, out)
    assert results(out) == wholes[command]
    assert not list(out.glob(".tmp-*"))
