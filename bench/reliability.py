"""What damage the project has been tried with, as the table of docs/results/reliability.md.

    python -m bench.reliability > table.md

Runs the tests of every kind of damage and counts them; one that fails is counted as such. Set
``REFUSAL_CLIFF_FUZZ_SECONDS=60`` to fuzz each reader for a minute.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of damage: what must hold, and the tests that try it."""

    name: str
    holds: str
    tests: Sequence[str]


KINDS = (
    Kind(
        "output folders",
        "a folder that is not the command's own keeps every byte; nothing finished is replaced by "
        "something else, in a run folder by another model or seed",
        ("test_folders.py", "test_io.py"),
    ),
    Kind(
        "kills",
        "the same command again gives the same files, and asks at most one batch again",
        ("test_kept_answers.py", "test_pipeline.py", "test_forks.py"),
    ),
    Kind(
        "training cut off, disks that fill",
        "the last whole checkpoint of the same training is continued",
        ("test_training_run.py",),
    ),
    Kind(
        "hostile rows",
        "every row is read or listed with its reason; memory is bounded",
        ("test_door.py", "test_rows.py", "test_shapes.py", "test_hostile_rows.py"),
    ),
    Kind(
        "endpoints",
        "one paragraph or a row left out; bounded in time and size; no key in any file",
        ("test_endpoint_errors.py", "test_endpoint_limits.py", "test_messages.py"),
    ),
    Kind(
        "damaged weights and adapters",
        "refused with the names; never measured as something else; no code runs",
        ("test_loading.py", "test_adapters.py", "test_template_limits.py"),
    ),
    Kind(
        "damaged probes, gates",
        "one paragraph; nothing passes a gate that was not measured",
        ("test_damaged_probes.py", "test_gate.py"),
    ),
    Kind(
        "environments and arguments",
        "every encoding is written; a wrong argument is reported before anything heavy is imported",
        ("test_encodings.py", "test_arguments.py"),
    ),
)


def counted(kind: Kind) -> tuple[int, int]:
    """Tests run, and those that passed."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        files = [f"tests/{name}" for name in kind.tests]
        command = [sys.executable, "-m", "pytest", "-q", "-n0", f"--junitxml={report}", *files]
        subprocess.run(command, stdout=sys.stderr, check=False)
        suite = ElementTree.parse(report).getroot()[0]
    tried, skipped, failed, errors = (
        int(suite.get(name, "0")) for name in ("tests", "skipped", "failures", "errors")
    )
    return tried - skipped, tried - skipped - failed - errors


def main() -> None:
    """Run all kinds, and print the table."""
    print("| kind | what must hold | tried | held | tests |\n|---|---|---|---|---|")
    for kind in KINDS:
        tried, held = counted(kind)
        files = ", ".join(f"`{name}`" for name in kind.tests)
        print(f"| {kind.name} | {kind.holds} | {tried} | {held} | {files} |", flush=True)


if __name__ == "__main__":
    main()
