"""Every reader fuzzed: what a file or a server holds is used, listed, or refused in a paragraph.

    python -m bench.fuzz --minutes 60 > table.md

Gives each reader its share of the time, draws other inputs every round, and prints a table of what
was drawn; an input that breaks the promise is printed with the seed that draws it again, and the
others go on. `tests/test_door.py` runs the same readers for a moment with fixed seeds.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, Phase, given, seed, settings

from bench.fuzz.readers import Reader, readers
from refusal_cliff.model.subject import load_subject

_CHECKS = (
    *(HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large),
    HealthCheck.large_base_example,
)


def fuzz(reader: Reader, seconds: float, first: int = 0, examples: int = 10) -> int:
    """Draw inputs until the time is over, at least one round of them.

    Args:
        reader: What is fuzzed.
        seconds: How long.
        first: Seed of the first round; the next ones follow.
        examples: Inputs of one round.

    Returns:
        How many inputs held.
    """
    checked = settings(
        max_examples=examples,
        deadline=None,
        database=None,
        phases=(Phase.generate, Phase.shrink),
        suppress_health_check=_CHECKS,
    )
    end, done = time.monotonic() + seconds, 0

    def check(value: Any) -> None:
        nonlocal done
        reader.check(value)
        done += 1

    for turn in range(1_000_000):
        seed(first + turn)(checked(given(reader.drawn)(check)))()
        if time.monotonic() >= end:
            break
    return done


def main() -> int:
    """Fuzz every reader, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=60.0, help="for all readers together")
    parser.add_argument("--seed", type=int, help="of the first round; drawn if left out")
    parser.add_argument("--only", action="append", help="name of a reader; repeatable")
    asked = parser.parse_args()
    begin = random.randrange(1 << 31) if asked.seed is None else asked.seed
    broken = 0
    print(f"First seed: {begin}\n\n| reader | seconds | inputs | broken |\n|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        every = readers(Path(folder), load_subject("tiny", device="cpu"))
        chosen = asked.only or list(every)
        for name in chosen:
            started, done, faults = time.monotonic(), 0, 0
            end = started + 60 * asked.minutes / len(chosen)
            for turn in range(1_000_000):
                try:
                    done += fuzz(every[name], 0, begin + turn, 100)
                except Exception:  # of any kind: it is what is looked for
                    faults += 1
                    print(f"{name}, seed {begin + turn}", file=sys.stderr)
                    traceback.print_exc()
                if time.monotonic() >= end:
                    break
            broken += faults
            spent = time.monotonic() - started
            print(f"| {name} | {spent:.0f} | {done:,} | {faults} |", flush=True)
    return min(broken, 1)


if __name__ == "__main__":
    sys.exit(main())
