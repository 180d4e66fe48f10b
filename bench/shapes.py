"""Models of a known shape with random weights, and what a forward pass through them costs.

Time and memory do not depend on the weights, so that large models are measured without a download.
"""

from __future__ import annotations

import argparse
import platform
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, Qwen2Config

from refusal_cliff.model.subject import Subject, load_subject, subject_of
from refusal_cliff.organisms import embedded_path
from refusal_cliff.settings import DTYPES

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


def add_model_options(parser: argparse.ArgumentParser, model: str, device: str) -> None:
    """Which model is measured, and where; both are the defaults."""
    parser.add_argument("--model", default=model, help="folder, embedded or Hugging Face name")
    parser.add_argument("--shape", choices=SHAPES, help="random weights of this shape, no --model")
    parser.add_argument("--dtype", default="float32", choices=DTYPES)
    parser.add_argument("--device", default=device)


def chosen(options: argparse.Namespace) -> Subject:
    """The model that the options of `add_model_options` name."""
    if options.shape:
        return of_shape(options.shape, options.dtype, options.device)
    return load_subject(options.model, dtype=options.dtype, device=options.device)


def place(subject: Subject) -> str:
    """What computes: the name of the GPU, or the threads of the processor."""
    if subject.device.type == "cuda":
        return torch.cuda.get_device_name()
    return f"{torch.get_num_threads()} thread(s), {platform.machine()}"


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
