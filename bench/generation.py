r"""How fast a local model answers, against Transformers' own generate in batches of the same size.

    python -m bench.generation --data DIR --model smollm2

Ours: prompts of one label and of like length together, a batch is left when most rows have ended
and its stragglers go on together, keys and values do not move, the unembedding is given the last
states as one block of memory, and float32 weights are laid out once. Each part is taken out in
turn. The prompts are those of the recorded audit, drawn at random. Both sides write greedily; how
many answers are the same tells what rounding does in that precision.
"""

from __future__ import annotations

import argparse
import platform
import random
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, cast
from unittest.mock import patch

import torch
import transformers

from lab.pretrained.sources import recorded_sources
from refusal_cliff.data.types import Prompt
from refusal_cliff.generate import GenerationConfig, drafts, generate
from refusal_cliff.model import packing
from refusal_cliff.model.subject import Subject, load_subject
from refusal_cliff.thinking import render_prompt
from refusal_cliff.workflows.audit_prompts import audit_prompts


@torch.inference_mode()
def plain(subject: Subject, prompts: Sequence[Prompt], config: GenerationConfig) -> list[list[int]]:
    """What a script would do: batches in the order given, each until its last row has ended."""
    tokenizer = subject.tokenizer
    tokenizer.padding_side = "left"
    found: list[list[int]] = []
    for start in range(0, len(prompts), config.batch_size):
        rows = [
            render_prompt(tokenizer, p.text) for p in prompts[start : start + config.batch_size]
        ]
        batch = cast("Any", tokenizer.pad({"input_ids": rows}, return_tensors="pt"))
        output = cast("Any", subject.model).generate(
            **batch,
            max_new_tokens=config.max_new_tokens,
            do_sample=False,
            pad_token_id=tokenizer.eos_token_id,
        )
        found += output[:, batch["input_ids"].shape[1] :].tolist()
    return found


def main() -> None:
    """Print answers a second of each."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--prompts", type=int, default=128)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--dtype", default="bfloat16")
    options = parser.parse_args()
    subject = load_subject(options.model, dtype=options.dtype, device="cpu")
    every = audit_prompts(recorded_sources(options.data), 0).test
    prompts = random.Random(0).sample(every, min(options.prompts, len(every)))
    config = GenerationConfig(160, options.batch_size)

    def ours() -> list[list[int]]:
        starts = [len(render_prompt(subject.tokenizer, prompt.text)) for prompt in prompts]
        traces = generate(subject, prompts, config)
        return [list(t.token_ids[n:]) for t, n in zip(traces, starts, strict=True)]

    def without(module: Any = drafts, **patches: Any) -> Callable[[], list[list[int]]]:
        def run() -> list[list[int]]:
            with patch.multiple(module, **patches):
                return ours()

        return run

    sides: dict[str, Callable[[], list[list[int]]]] = {
        "transformers' generate": lambda: plain(subject, prompts, config),
        "ours": ours,
        "ours, last states as a slice": without(_contiguous_last_states=lambda _: nullcontext()),
        "ours, batches to their last row": without(_MOST=1.0),
        "ours, a cache that moves": without(roomy_cache=lambda _: None),
        "ours, weights as they are": without(packing, _layers=lambda _: []),
    }
    ours()  # warm
    rates: dict[str, float] = {}
    written: dict[str, list[list[int]]] = {}
    for name, run in sides.items():
        started = time.perf_counter()
        written[name] = run()
        rates[name] = len(prompts) / (time.perf_counter() - started)
        print(f"{name:32} {rates[name]:6.2f} answers a second")
    ratio = rates["ours"] / rates["transformers' generate"]
    pairs = zip(written["ours"], written["transformers' generate"], strict=True)
    same = sum(ours == theirs[: len(ours)] for ours, theirs in pairs)
    print(f"{'ratio':32} {ratio:6.2f} times as fast; {same} of {len(prompts)} answers the same")
    print(
        f"{len(prompts)} prompts, batches of {config.batch_size}, {options.dtype}, "
        f"{torch.get_num_threads()} thread(s), {platform.machine()}, torch {torch.__version__}, "
        f"transformers {transformers.__version__}"
    )


if __name__ == "__main__":
    main()
