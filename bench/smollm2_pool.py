r"""Safety examples and benign examples to repair ``smollm2`` with, from public files and its audit.

    python -m bench.smollm2_pool --data DIR --run runs/smollm2 --out runs/smollm2-pool
    refusal-cliff repair --model smollm2 --probe runs/smollm2/model --out runs/smollm2-repair \
        --data runs/smollm2-pool/safety.jsonl --benign runs/smollm2-pool/benign.jsonl

The requests of the safety examples are those of AdvBench, HarmBench and STAR-1, their answers
refusals written by rule; ``select`` leaves out what overlaps with the audit. The benign examples
are the model's own answers to the benign prompts that its probe was fitted on.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from lab.pretrained.pool import LONGEST, own_benign, safety_pool
from refusal_cliff.data.examples import write_examples
from refusal_cliff.data.traces import read_traces


def main() -> None:
    """Write ``safety.jsonl`` and ``benign.jsonl``."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--most", type=int, default=1000, help="requests, drawn at random")
    parser.add_argument("--longest", type=int, default=LONGEST, help="tokens of a benign example")
    options = parser.parse_args()
    safety = safety_pool(options.data, options.most, 0)
    benign = own_benign(read_traces(options.run / "model" / "traces-fit.parquet"), options.longest)
    options.out.mkdir(parents=True, exist_ok=True)
    write_examples(options.out / "safety.jsonl", safety)
    write_examples(options.out / "benign.jsonl", benign)
    print(f"{len(safety)} safety examples, {len(benign)} benign examples")


if __name__ == "__main__":
    main()
