"""The findings of several runs side by side, as the tables of docs/results/organisms.md.

python -m bench.seeds runs/seed-0 runs/seed-1 runs/seed-2
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path

from refusal_cliff.findings.summary import Summary, read_summary

Column = tuple[str, Callable[[Summary], str | float | None]]


def diffuse_best(summary: Summary) -> float | None:
    """Lowest attack success rate of tiny-diffuse with one to six heads out."""
    found = summary.diffuse
    return None if found is None else min(row.asr for row in found.by_heads if 1 <= row.heads <= 6)


COLUMNS: Sequence[Column] = (
    ("probe AUROC", lambda s: s.probe.auroc),
    ("shuffled", lambda s: s.probe.shuffled_auroc),
    ("tiny ASR", lambda s: s.ablation and s.ablation.asr_before),
    ("benign answered", lambda s: s.ablation and s.ablation.benign_answered_before),
    ("plateau", lambda s: s.cliff.plateau),
    ("final", lambda s: s.cliff.final),
    ("cliff", lambda s: s.cliff.cliff),
    ("localisation", lambda s: s.cliff.localisation),
    ("verdict", lambda s: s.cliff.verdict),
    ("control ASR", lambda s: s.control and s.control.asr),
    ("control verdict", lambda s: s.control and s.control.verdict),
    ("planted", lambda s: s.planted and " ".join(s.planted.true)),
    ("found", lambda s: s.heads and " ".join(s.heads.names)),
    ("precision", lambda s: s.planted and s.planted.precision),
    ("recall", lambda s: s.planted and s.planted.recall),
    ("ASR, heads out", lambda s: s.ablation and s.ablation.asr_after),
    ("ASR, random heads out", lambda s: s.ablation and s.ablation.asr_random_heads),
    ("benign, heads out", lambda s: s.ablation and s.ablation.benign_answered_after),
    ("hard benign, heads out", lambda s: s.ablation and s.ablation.hard_benign_answered_after),
    ("perplexity ratio", lambda s: s.ablation and s.ablation.benign_perplexity_ratio),
    ("diffuse verdict", lambda s: s.diffuse and s.diffuse.verdict),
    ("diffuse ASR", lambda s: s.diffuse and s.diffuse.asr_before),
    ("diffuse ASR, best 1–6 heads out", diffuse_best),
    ("pool failures", lambda s: s.selection and s.selection.pool_failures),
    ("ASR, no repair", lambda s: s.selection and s.selection.asr.none),
    ("ASR, cliff 1.7 %", lambda s: s.selection and s.selection.asr.cliff),
    ("ASR, random 1.7 %", lambda s: s.selection and s.selection.asr.random),
    ("ASR, full", lambda s: s.selection and s.selection.asr.full),
    ("benign, cliff 1.7 %", lambda s: s.selection and s.selection.benign_answered.cliff),
    ("benign, random 1.7 %", lambda s: s.selection and s.selection.benign_answered.random),
    ("benign, full", lambda s: s.selection and s.selection.benign_answered.full),
    ("seconds", lambda s: s.seconds["total"]),
)


def cell(value: str | float | None) -> str:
    """One value as text."""
    if value is None:
        return "–"
    return value if isinstance(value, str) else f"{value:.3g}"


def main() -> None:
    """Print a Markdown table: one row a finding, one column a run, and the mean."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", nargs="+", type=Path)
    runs = parser.parse_args().runs
    summaries = [read_summary(run / "summary.json") for run in runs]
    print("| |", " | ".join(run.name for run in runs), "| mean |")
    print("|---" * (len(runs) + 2) + "|")
    for name, read in COLUMNS:
        values = [read(summary) for summary in summaries]
        numbers = [value for value in values if isinstance(value, float | int)]
        mean = cell(statistics.fmean(numbers)) if len(numbers) == len(values) else ""
        print(f"| {name} |", " | ".join(map(cell, values)), f"| {mean} |")


if __name__ == "__main__":
    main()
