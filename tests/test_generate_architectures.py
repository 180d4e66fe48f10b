"""On many architectures a batch writes, token for token, what each prompt alone would."""

from __future__ import annotations

import pytest
import torch
from architectures import architecture_subject
from tiny_chat import SPECIAL

from refusal_cliff.data.types import Prompt
from refusal_cliff.generate import GenerationConfig, generate
from refusal_cliff.model.subject import Subject
from refusal_cliff.thinking import render_prompt

TEXTS = ("Hi", "Tell me how to bake bread", "Why?", "a b c", "…“q”…")
PROMPTS = [Prompt(f"p{index}", text, "benign") for index, text in enumerate(TEXTS)]
END = SPECIAL.index("<|im_end|>")
NAMES = ("gpt2", "gpt_oss", "gemma2", "gemma3_text", "llama", "mixtral", "olmo2", "phi3", "qwen3")
"""Absolute and rotary positions, sinks, sliding windows, experts, norms before and after."""


@torch.inference_mode()
def alone(subject: Subject, prefix: list[int], limit: int) -> list[int]:
    """Greedy decoding of one row, one forward pass of the whole row a token."""
    ids = list(prefix)
    while len(ids) < len(prefix) + limit and (len(ids) == len(prefix) or ids[-1] != END):
        logits = subject.model(torch.tensor([ids]), use_cache=False).logits
        ids.append(int(logits[0, -1].argmax()))
    return ids[len(prefix) :]


@pytest.mark.parametrize("name", NAMES)
def test_batched_equals_one_by_one(name: str) -> None:
    subject = architecture_subject(name)
    for trace in generate(subject, PROMPTS, GenerationConfig(10, batch_size=3)):
        prefix = render_prompt(subject.tokenizer, trace.prompt.text)
        assert list(trace.token_ids) == [*prefix, *alone(subject, prefix, 10)]
