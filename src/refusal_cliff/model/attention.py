"""Attention that does not hold whole matrices of tokens × tokens on a GPU."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from transformers.integrations import sdpa_attention

_CHOICE = "use_gqa_in_sdpa"


@contextmanager
def fused_attention(device: torch.device) -> Iterator[None]:
    """Repeat keys and values for every query head where several heads share them.

    Where nothing is masked, Transformers leaves the repetition to PyTorch, which then has no fused
    kernel in float32 and quietly computes tokens² numbers a head: 75 GB for a trace of 16,000
    tokens and 28 heads. The repeated keys are small. A processor has a kernel of its own for it.

    Args:
        device: Where the model computes.
    """
    chosen = getattr(sdpa_attention, _CHOICE, None)  # private: another version may lack it
    if device.type == "cpu" or chosen is None:
        yield
        return
    setattr(sdpa_attention, _CHOICE, lambda *_: False)
    try:
        yield
    finally:
        setattr(sdpa_attention, _CHOICE, chosen)
