"""The demo at a reduced size, for a process that a test can kill."""

from __future__ import annotations

from pathlib import Path

from refusal_cliff.run.folder import Headline
from refusal_cliff.run.pipeline import Silent
from refusal_cliff.workflows import demo
from refusal_cliff.workflows.demo import DemoSizes, run_demo

SIZES = DemoSizes(
    fit=40,
    test=12,
    pool=30,
    benign=12,
    reference=8,
    head_traces=6,
    random_sets=1,
    sets=1,
    steps=2,
)
FRACTIONS = (0, 0.01, 0.03)


class Printer(Silent):
    """Prints what starts, ends and is skipped, one line each."""

    def stage_started(self, name: str) -> None:
        print("start", name, flush=True)

    def stage_finished(self, name: str, seconds: float, headline: Headline) -> None:
        print("done", name, flush=True)

    def stage_skipped(self, name: str, headline: Headline) -> None:
        print("kept", name, flush=True)


def small_demo(folder: Path) -> None:
    """Run, or continue, the demo in a process of its own, whose fractions it changes."""
    demo.FRACTIONS = FRACTIONS
    run_demo(folder, 0, None, Printer(), SIZES, workers=2)
