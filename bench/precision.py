"""What another precision or device changes: traces of a finished run, read again.

    python -m bench.precision RUN/KEY --model M --dtype float32 --device cpu > table.md

A run in bfloat16 on a GPU has scores that are rounded otherwise than those of float32 on a
processor. The same tokens are scored again with the same probes; how the answers came about does
not matter here.
"""

from __future__ import annotations

import argparse
import platform
import random
from pathlib import Path

import numpy as np
from scipy.special import expit

from refusal_cliff.cliff.curves import cliff_of
from refusal_cliff.cliff.scores import read_scores, score_traces
from refusal_cliff.data.traces import closed, read_traces
from refusal_cliff.model.subject import load_subject
from refusal_cliff.probe.files import read_probes


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path)
    parser.add_argument("--model", required=True)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--n", type=int, default=24, help="traces, drawn at random")
    asked = parser.parse_args()
    probes = read_probes(asked.run / "probes.safetensors", asked.run / "probes.json")
    subject = load_subject(asked.model, dtype=asked.dtype, device=asked.device)
    every = closed(read_traces(asked.run / "traces-test.parquet"))
    chosen = {trace.prompt.id for trace in random.Random(0).sample(every, min(asked.n, len(every)))}
    traces = [trace for trace in every if trace.prompt.id in chosen]
    before = [
        scores for scores in read_scores(asked.run / "scores.parquet") if scores.trace_id in chosen
    ]
    after = score_traces(subject, traces, probes)
    pairs = list(zip(before, after, strict=True))
    row = probes.row
    gaps = np.concatenate([np.abs(expit(a.logits[row]) - expit(b.logits[row])) for a, b in pairs])
    cliffs = [(cliff_of(a, row), cliff_of(b, row)) for a, b in pairs]
    moved = {
        name: np.array([getattr(b, name) - getattr(a, name) for a, b in cliffs])
        for name in ("plateau", "final", "cliff")
    }
    print("| scores of | mean difference | largest |\n|---|---|---|")
    print(f"| {len(gaps):,} tokens | {gaps.mean():.4f} | {gaps.max():.3f} |")
    for name, by in moved.items():
        print(f"| {name}, {len(by)} traces | {by.mean():+.4f} | {np.abs(by).max():.3f} |")
    print(
        f"\n{asked.dtype} on {asked.device} ({platform.machine()}) against the run; block "
        f"{probes.layer}; mean of tokens without sign, of the others with it"
    )


if __name__ == "__main__":
    main()
