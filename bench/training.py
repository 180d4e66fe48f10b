"""What a training costs: seconds a step and peak memory of `repair`, on rows of real reasoning.

    python -m bench.training --model NAME --data DIR --set rows_at_once=1 first_block=13

Trains on the longest rows of at most --max-length tokens, which is the worst case, in a folder that
is then deleted. --set gives fields of `RepairConfig`.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import transformers
import trl

from lab.pretrained.reasoner import traces_in
from refusal_cliff.model.subject import load_subject
from refusal_cliff.repair.training import encode_example, repair, trainable
from refusal_cliff.settings import RepairConfig


def main() -> None:
    """Print what the steps cost."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--rows", type=int, default=4)
    parser.add_argument("--max-length", type=int, default=700)
    parser.add_argument("--set", nargs="*", default=[], metavar="NAME=JSON")
    options = parser.parse_args()
    subject = load_subject(options.model, device="cpu")
    every = [trace for file in sorted(options.data.glob("*.jsonl")) for trace in traces_in(file)]
    found, _ = trainable(subject, every, options.max_length)
    length = {e.prompt.id: len(encode_example(subject, e, 10**6)["input_ids"]) for e in found}
    chosen = sorted(found, key=lambda e: -length[e.prompt.id])[: options.steps * options.rows]
    more: dict[str, Any] = {
        name: json.loads(value) for name, value in (one.split("=", 1) for one in options.set)
    }
    config = RepairConfig(
        steps=options.steps,
        batch_size=options.rows,
        benign_share=0.0,
        max_length=options.max_length,
        **more,
    )
    tokens = sum(length[e.prompt.id] for e in chosen)
    print(
        f"model       {options.model}: {subject.n_parameters:,} parameters, {subject.model.dtype}"
    )
    print(f"rows        {len(chosen)} of {tokens:,} tokens, {options.rows} a step; {more}")
    loaded = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    times = [time.perf_counter()]
    processor = [time.process_time()]

    def told(step: int, steps: int, loss: float) -> None:
        times.append(time.perf_counter())
        processor.append(time.process_time())
        took, worked = times[-1] - times[-2], processor[-1] - processor[-2]
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        print(
            f"step {step}/{steps}  {took:6.1f} s ({worked:6.1f} s of cores), loss {loss:.4f}, "
            f"peak {peak:.1f} GiB",
            flush=True,
        )

    with tempfile.TemporaryDirectory() as folder:
        repair(subject, chosen, [], config, Path(folder) / "out", told=told)
    spent, worked = times[-1] - times[0], processor[-1] - processor[0]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"memory      {loaded:.1f} GiB loaded, {peak:.1f} GiB at most")
    print(
        f"time        {spent:.0f} s, {worked:.0f} s of cores: "
        f"{tokens / worked:.1f} tokens a second of a core, {tokens / spent:.1f} a second"
    )
    print(
        f"machine     {torch.get_num_threads()} threads of {os.cpu_count()} cores, "
        f"{platform.machine()}, torch {torch.__version__}, transformers "
        f"{transformers.__version__}, trl {trl.__version__}"
    )


if __name__ == "__main__":
    main()
