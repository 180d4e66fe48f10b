"""Three toy stages that can be killed anywhere: python toy_run.py DIR POINT [WORKERS].

POINT counts the moments at which a kill would hurt most: in the middle of each stage, and before
and after each rename. 0 means never. The stages that ran are printed.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from refusal_cliff import io
from refusal_cliff.run.folder import Headline, RunInfo
from refusal_cliff.run.pipeline import Job, Silent, Stage, run_pipeline


class Bomb:
    """Kills the process at one of the moments that it is told of."""

    def __init__(self, point: int) -> None:
        self.left = point

    def tick(self) -> None:
        self.left -= 1
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGKILL)


class Printer(Silent):
    """Prints the stages that ran."""

    def stage_started(self, name: str) -> None:
        print(name, flush=True)


def toy_stages(bomb: Bomb) -> list[Stage]:
    """Squares, their sum, and a report of both."""

    def squares(job: Job) -> Headline:
        first = job.output("squares.txt")
        first.write_text("half")
        bomb.tick()
        first.write_text(" ".join(str(i * i) for i in range(10)))
        job.output("deep/count.txt").write_text("10")
        return {"n": 10}

    def total(job: Job) -> Headline:
        numbers = [int(x) for x in job.input("squares.txt").read_text().split()]
        job.output("total.txt").write_text("")
        bomb.tick()
        job.output("total.txt").write_text(str(sum(numbers)))
        return {"total": sum(numbers)}

    def report(job: Job) -> Headline:
        bomb.tick()
        text = job.input("total.txt").read_text() + "/" + job.input("deep/count.txt").read_text()
        io.write_text(job.output("report.txt"), text)
        return {"text": text}

    return [
        Stage("squares", (), ("squares.txt", "deep/count.txt"), {"n": 10}, squares),
        Stage("total", ("squares.txt",), ("total.txt",), {}, total),
        Stage("group/report", ("total.txt", "deep/count.txt"), ("report.txt",), {}, report),
    ]


def _bomb_renames(bomb: Bomb) -> None:
    replace = os.replace

    def bombed(source: Path, target: Path) -> None:
        bomb.tick()
        replace(source, target)
        bomb.tick()

    os.replace = bombed


def main(arguments: Sequence[str]) -> None:
    folder, point = Path(arguments[0]), int(arguments[1])
    bomb = Bomb(point)
    _bomb_renames(bomb)
    workers = int(arguments[2]) if len(arguments) > 2 else 1
    info = RunInfo(command="toy", seeds={"all": 0})
    run_pipeline(folder, toy_stages(bomb), info, Printer(), workers)


if __name__ == "__main__":
    main(sys.argv[1:])
