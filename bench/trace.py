"""What scoring every token at every layer costs, against a bare forward pass of the same tokens.

Both run the same padded batches through all blocks, without cache and without the language-model
head. They take turns, so that a machine that slows down slows both; medians are compared.

    python bench/trace.py --model tiny
"""

from __future__ import annotations

import argparse
import os
import platform
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
import transformers

from refusal_cliff.capture import TOKEN_BUDGET, Batch, ProbeScores, TokenIds, _next_batch, capture
from refusal_cliff.errors import RefusalCliffError
from refusal_cliff.models import DTYPES, Subject, load_subject


def random_traces(subject: Subject, n: int, longest: int) -> list[list[int]]:
    """Random tokens; lengths spread evenly from half of the longest up."""
    rng = np.random.default_rng(0)
    vocabulary = int(subject.model.config.get_text_config().vocab_size)
    lengths = rng.integers(longest // 2, longest, n, endpoint=True)
    return [rng.integers(vocabulary, size=length).tolist() for length in lengths]


def planned(token_ids: TokenIds, token_budget: int) -> list[Batch]:
    """The batches that `capture` makes."""
    waiting = sorted(range(len(token_ids)), key=lambda row: -len(token_ids[row]))
    batches: list[Batch] = []
    while waiting:
        batches.append(_next_batch(token_ids, waiting, token_budget))
        waiting = waiting[len(batches[-1].rows) :]
    return batches


@torch.inference_mode()
def bare_pass(subject: Subject, token_ids: TokenIds, batches: list[Batch]) -> None:
    """The decoder alone on the batches that `capture` makes."""
    decoder: Any = subject.model.base_model
    for batch in batches:
        ids = torch.zeros(len(batch.rows), max(batch.lengths), dtype=torch.long)
        mask = torch.zeros_like(ids)
        for place, row, length in batch.items():
            ids[place, :length] = torch.tensor(token_ids[row])
            mask[place, :length] = 1
        ids, mask = ids.to(subject.device), mask.to(subject.device)
        decoder(input_ids=ids, attention_mask=mask, use_cache=False)


def score_every_token(subject: Subject, token_ids: TokenIds, token_budget: int) -> None:
    """One probe a layer, at every layer."""
    rng = np.random.default_rng(1)
    layers = range(1, subject.n_layers + 1)
    reader = ProbeScores(
        {layer: (rng.normal(size=subject.width), 0.0) for layer in layers}, len(token_ids)
    )
    capture(subject, token_ids, [reader], token_budget=token_budget)


def seconds(work: Callable[[], None]) -> float:
    """Wall-clock time of one call, with the device's queue empty before and after."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    start = time.perf_counter()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def machine(subject: Subject) -> str:
    """Where the numbers were taken."""
    device = subject.device.type
    if device == "cuda":
        device = torch.cuda.get_device_name()
    return (
        f"{device}, {platform.machine()}, {os.cpu_count()} cores, "
        f"{torch.get_num_threads()} threads, Python {platform.python_version()}, "
        f"torch {torch.__version__}, transformers {transformers.__version__}"
    )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="tiny", help="folder, embedded or Hugging Face name")
    parser.add_argument("--dtype", default="float32", choices=DTYPES)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--traces", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=256, help="tokens of the longest trace")
    parser.add_argument("--token-budget", type=int, default=TOKEN_BUDGET)
    parser.add_argument("--repeats", type=int, default=9, help="pairs of runs; at least 5")
    options = parser.parse_args()
    if options.repeats < 5:
        parser.error("--repeats must be at least 5")

    try:
        subject = load_subject(options.model, dtype=options.dtype, device=options.device)
    except RefusalCliffError as error:
        parser.error(str(error))
    token_ids = random_traces(subject, options.traces, options.tokens)
    batches = planned(token_ids, options.token_budget)

    def bare() -> None:
        bare_pass(subject, token_ids, batches)

    def scored() -> None:
        score_every_token(subject, token_ids, options.token_budget)

    bare()
    scored()  # neither pays for the first use of the machine
    pairs = []
    for turn in range(options.repeats):
        order = (bare, scored) if turn % 2 == 0 else (scored, bare)
        times = {work: seconds(work) for work in order}
        pairs.append((times[bare], times[scored]))
    tokens = sum(map(len, token_ids))
    bare_time, scored_time = (median(times) for times in zip(*pairs, strict=True))
    ratios = [scored_time / bare_time for bare_time, scored_time in pairs]

    shape = f"{subject.n_layers} blocks of width {subject.width}, {options.dtype}"
    print(f"model           {Path(options.model).name}: {shape}")
    print(f"tokens          {tokens} in {len(token_ids)} traces, without padding")
    print(f"forward passes  {len(batches)} in either run")
    print(f"bare forward    {tokens / bare_time:.0f} tokens/s")
    print(f"every score     {tokens / scored_time:.0f} tokens/s, at all {subject.n_layers} layers")
    print(
        f"time ratio      {scored_time / bare_time:.3f}: medians of {options.repeats} runs each, "
        f"in turns; pairs from {min(ratios):.3f} to {max(ratios):.3f}"
    )
    print(f"machine         {machine(subject)}")


if __name__ == "__main__":
    main()
