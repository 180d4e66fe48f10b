"""Models of a known shape with random weights, and what a forward pass through them costs.

Time and memory do not depend on the weights, so that large models are measured without a download.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, Qwen2Config

from refusal_cliff.model.subject import Subject, subject_of
from refusal_cliff.organisms import embedded_path

SHAPES: dict[str, dict[str, int]] = {
    "qwen2.5-1.5b": {
        "hidden_size": 1536,
        "intermediate_size": 8960,
        "num_hidden_layers": 28,
        "num_attention_heads": 12,
        "num_key_value_heads": 2,
        "vocab_size": 151936,
    },
    "qwen2.5-7b": {
        "hidden_size": 3584,
        "intermediate_size": 18944,
        "num_hidden_layers": 28,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
        "vocab_size": 152064,
    },
}
"""Qwen2.5 and the models that were distilled into it, from their config.json."""


def of_shape(shape: str, dtype: str, device: str) -> Subject:
    """A model of this shape with random weights, and the tokenizer of ``tiny``.

    Args:
        shape: A key of ``SHAPES``.
        dtype: Precision, such as ``bfloat16``.
        device: ``auto``, or a device of PyTorch.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    with torch.device(device):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(
            Qwen2Config.from_dict(SHAPES[shape]), dtype=getattr(torch, dtype)
        )
    tokenizer: Any = AutoTokenizer.from_pretrained(embedded_path("tiny"))
    return subject_of(shape, model, tokenizer)


def arithmetic(subject: Subject, tokens: int, blocks: int) -> float:
    """Operations that a trace needs in the first blocks: linear layers, and causal attention.

    A multiplication and an addition are two. A token attends to half of the trace on average.
    """
    weights = sum(
        part.weight.numel()
        for block in subject.blocks[:blocks]
        for part in block.module.modules()
        if isinstance(part, torch.nn.Linear)
    )
    return 2.0 * tokens * weights + 2.0 * blocks * subject.width * tokens * tokens


def matrix_rate(subject: Subject, size: int = 8192, times: int = 20) -> float:
    """Operations a second of a large product of random matrices in the model's precision."""
    left, right, product = (
        torch.randn(size, size, device=subject.device, dtype=subject.model.dtype) for _ in range(3)
    )
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    for turn in range(times + 3):
        if turn == 3:
            start.record()
        torch.mm(left, right, out=product)
    end.record()
    torch.cuda.synchronize()
    return 2.0 * size**3 * times / (start.elapsed_time(end) / 1000)
