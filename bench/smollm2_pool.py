r"""Safety examples and benign examples to repair ``smollm2`` with, from public files and its audit.

    python bench/smollm2_pool.py --data DIR --run runs/smollm2 --out runs/smollm2-pool
    refusal-cliff repair --model smollm2 --probe runs/smollm2/model --out runs/smollm2-repair \
        --data runs/smollm2-pool/safety.jsonl --benign runs/smollm2-pool/benign.jsonl

The requests of the safety examples are those of AdvBench, HarmBench and STAR-1, their answers
refusals written by rule; ``select`` leaves out what overlaps with the audit. The benign examples
are the model's own answers to the benign prompts that its probe was fitted on.
"""

from __future__ import annotations

import argparse
import random
from pathlib import Path

from refusal_cliff.data.examples import write_examples
from refusal_cliff.data.prompt_files import usable_rows
from refusal_cliff.data.traces import Prompt, SafetyExample, read_traces
from refusal_cliff.organisms.pretrained.reasoning import REFUSALS
from refusal_cliff.organisms.pretrained.sources import HARMFUL, find_file

POOL = (*HARMFUL, "star1")


def main() -> None:
    """Write ``safety.jsonl`` and ``benign.jsonl``."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--most", type=int, default=1000, help="requests, drawn at random")
    parser.add_argument("--longest", type=int, default=200, help="tokens of a benign example")
    options = parser.parse_args()
    rng = random.Random(0)
    asked = [
        str(row["prompt"])
        for name in POOL
        for _, row in usable_rows(find_file(options.data, name))
        if not isinstance(row, str)
    ]
    chosen = rng.sample(asked, min(options.most, len(asked)))
    safety = [
        SafetyExample(Prompt(f"pool-{i}", text, "harmful"), "", rng.choice(REFUSALS))
        for i, text in enumerate(chosen)
    ]
    traces = read_traces(options.run / "model" / "traces-fit.parquet")
    benign = [
        SafetyExample(trace.prompt, trace.thinking, trace.response)
        for trace in traces
        if trace.prompt.label == "benign" and trace.verdict == "complied" and trace.complete
        if len(trace.token_ids) <= options.longest
    ]
    options.out.mkdir(parents=True, exist_ok=True)
    write_examples(options.out / "safety.jsonl", safety)
    write_examples(options.out / "benign.jsonl", benign)
    print(f"{len(safety)} safety examples of {len(asked)} requests, {len(benign)} benign examples")


if __name__ == "__main__":
    main()
