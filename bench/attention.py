"""Which kernel PyTorch has for attention on a GPU: time and memory of one block's attention.

    python -m bench.attention > table.md

The shape is that of Qwen2.5-7B: 28 heads of width 128 that share the keys of 4. *Shared* lets
PyTorch repeat the keys, *repeated* gives it repeated ones; with *a mask* the kernel is told what
may be looked at, without one it knows and leaves the rest out.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention as attention

HEADS, SHARED, WIDTH = 28, 4, 128
WAYS = {
    "shared keys": {"enable_gqa": True, "is_causal": True},
    "repeated keys": {"is_causal": True},
    "repeated keys, a mask": {},
}


def cost(work: Callable[[], object], times: int = 5) -> tuple[float, float]:
    """Milliseconds of one call, and the MiB that it takes at most."""
    work()  # the first one chooses a kernel
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(times):
        work()
    end.record()
    torch.cuda.synchronize()
    peak = (torch.cuda.max_memory_allocated() - before) / 2**20
    return start.elapsed_time(end) / times, peak


@torch.inference_mode()
def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=4095)
    asked = parser.parse_args()
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}; {asked}\n")
    print("| precision | way | ms | MiB |\n|---|---|---|---|")
    mask = torch.ones(asked.rows, 1, asked.tokens, asked.tokens, dtype=torch.bool, device="cuda")
    mask = mask.tril()
    for dtype in (torch.bfloat16, torch.float32):
        query, key, value = (
            torch.randn(
                asked.rows, asked.tokens, heads, WIDTH, device="cuda", dtype=dtype
            ).transpose(1, 2)
            for heads in (HEADS, SHARED, SHARED)
        )
        each = [part.repeat_interleave(HEADS // SHARED, 1) for part in (key, value)]
        for name, told in WAYS.items():
            keys = (key, value) if "enable_gqa" in told else each
            more: dict[str, Any] = told or {"attn_mask": mask}
            time, peak = cost(partial(attention, query, *keys, **more))
            print(f"| {str(dtype)[6:]} | {name} | {time:.2f} | {peak:,.0f} |")


if __name__ == "__main__":
    main()
