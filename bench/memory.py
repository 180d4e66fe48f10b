"""Memory of `refusal-cliff trace` over many rows: it must not grow with their number.

    python -m bench.memory --rows 100000

Writes that many rows (prompts of the organisms' language, with a short thinking and answer), scores
every token of them in shards, and prints the resident memory along the way.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from refusal_cliff.cliff.shards import measure_shards, score_source
from refusal_cliff.model.subject import Subject, load_subject
from refusal_cliff.organisms import language
from refusal_cliff.probe.fit import Probe, ProbeSet
from refusal_cliff.probe.quality import Quality


def random_probe(subject: Subject) -> ProbeSet:
    """A random direction: what it says does not matter here, what it costs does."""
    weight = np.random.default_rng(0).normal(size=subject.width).astype(np.float32)
    nothing = Quality(0.5, (0, 1), 0.5, (0, 1), 0.5, (0, 1))
    probe = Probe(subject.n_layers, weight, 0.0, 0.0, 0.5, nothing, 0.5, 0.0)
    return ProbeSet((probe,), subject.n_layers, "refused-vs-benign", "logistic", 0)


def write_rows(path: Path, n: int) -> None:
    """One JSON object a row."""
    prompts = language.prompts("test", "harmful", 100, 0)
    with path.open("w", encoding="utf-8") as file:
        for number in range(n):
            row = {
                "id": f"r{number}",
                "prompt": prompts[number % len(prompts)].text,
                "label": "harmful",
                "thinking": "This could hurt someone.",
                "response": "I cannot help with that.",
            }
            file.write(json.dumps(row) + "\n")


def resident(kind: str = "VmRSS") -> float:
    """MiB of this process now; ``RssAnon`` are those that are no file's."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(kind)) / 1024


def main() -> None:
    """Write, score and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--model", default="tiny")
    options = parser.parse_args()
    torch.set_num_threads(1)
    subject = load_subject(options.model, device="cpu")
    seen: list[tuple[int, float]] = []
    with tempfile.TemporaryDirectory() as folder:
        source, out = Path(folder) / "rows.jsonl", Path(folder) / "scores"
        write_rows(source, options.rows)
        start = time.perf_counter()
        score_source(
            subject,
            random_probe(subject),
            str(source),
            out,
            progress=lambda done: seen.append((done, resident())),
        )
        seconds = time.perf_counter() - start
        rows = measure_shards(out).rows
        print(f"scored    {len(rows):,} of {options.rows:,} rows in {seconds:.0f} s, one thread")
    for tenth in range(1, 11):
        done, memory = seen[len(seen) * tenth // 10 - 1]
        print(f"{done:>9,} rows {memory:7.0f} MiB")
    print(f"{'':>9} with the cliff of every row {resident():7.0f} MiB")


if __name__ == "__main__":
    main()
