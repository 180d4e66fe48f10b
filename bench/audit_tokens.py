"""How many tokens an audit wrote, and how many it would have with every thought written anew.

    python -m bench.audit_tokens NAME=RUN/KEY … > table.md

Reads finished runs. What would have been is an estimate: the answers whose thoughts were kept,
times the mean length of those that were thought anew, or of the model's own where none was.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from refusal_cliff.data.traces import read_traces
from refusal_cliff.heads.result import AblationResult
from refusal_cliff.io import read_as

HEADING = (
    *("model", "answers", "tokens of an answer", "without heads, anew", "thoughts kept"),
    *("tokens written / once", "if all were anew"),
)


def row(name: str, folder: Path) -> Sequence[str]:
    """One line of the table."""
    written = read_as(folder / "ablation.json", AblationResult).written
    before, anew, kept = (written[key] for key in ("before", "anew", "kept"))
    mean = before.tokens / before.answers
    asked = sum(len(read_traces(folder / f"traces-{part}.parquet")) for part in ("fit", "test"))
    once = asked * mean
    told = [f"{part.answers:,} answers, {part.tokens:,} tokens" for part in (anew, kept)]
    length = anew.tokens / anew.answers if anew.answers else mean
    estimate = kept.answers * length
    ratios = ((once + anew.tokens + more) / once for more in (kept.tokens, estimate))
    return (name, f"{asked:,}", f"{mean:.0f}", *told, *(f"{ratio:.2f}" for ratio in ratios))


def main() -> None:
    """Print the table."""
    rows = [row(name, Path(folder)) for name, _, folder in (a.partition("=") for a in sys.argv[1:])]
    for cells in (HEADING, ["---"] * len(HEADING), *rows):
        print(f"| {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
