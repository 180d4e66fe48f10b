"""Tiny random models of several architectures, and traces made by hand for them."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tiny_chat import SPECIAL, tiny_tokenizer
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from refusal_cliff.data.types import Prompt, Trace
from refusal_cliff.model.ablation import ablated
from refusal_cliff.model.capture import ProbeScores, capture
from refusal_cliff.model.subject import Head, Subject, subject_of
from refusal_cliff.probe.fit import Probe
from refusal_cliff.probe.quality import Quality
from refusal_cliff.thinking import Spans

VOCABULARY = len(SPECIAL) + 256
WIDTH, LAYERS, HEADS = 32, 3, 4
SHARED: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": WIDTH,
    "intermediate_size": 48,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "tie_word_embeddings": False,
    "initializer_range": 0.2,
    "eos_token_id": SPECIAL.index("<|im_end|>"),
    "pad_token_id": SPECIAL.index("<|endoftext|>"),
    "bos_token_id": None,
}
FAMILIES = ("qwen3", "llama", "gpt2", "gemma2")
HEAD_WIDTH = {"qwen3": 12, "llama": 8, "gpt2": 8, "gemma2": 16}
"""Not always width / heads = 8."""


def family_model(family: str, **config: Any) -> PreTrainedModel:
    fields = {**SHARED, "head_dim": HEAD_WIDTH[family], **config}
    if family == "qwen3":
        return Qwen3ForCausalLM(Qwen3Config(**fields))
    if family == "llama":
        return LlamaForCausalLM(LlamaConfig(**fields, attention_bias=True))
    if family == "gemma2":
        return Gemma2ForCausalLM(Gemma2Config(**fields))
    del fields["num_key_value_heads"], fields["head_dim"]
    names = {"intermediate_size": "n_inner", **GPT2Config.attribute_map}
    return GPT2LMHeadModel(GPT2Config(**{names.get(key, key): fields[key] for key in fields}))


def family_subject(family: str, seed: int = 0) -> Subject:
    """A subject of 3 blocks with 4 heads; biases are random too, where a model has them."""
    torch.manual_seed(seed)
    model = family_model(family)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(std=0.2)
    return subject_of(family, model, tiny_tokenizer())


def random_ids(n: int, seed: int) -> tuple[int, ...]:
    drawn = torch.Generator().manual_seed(seed)
    return tuple(torch.randint(len(SPECIAL), VOCABULARY, (n,), generator=drawn).tolist())


def closed_trace(
    prompt: int, thinking: int, closing: int, response: int, seed: int = 0, **prompt_fields: Any
) -> Trace:
    """A trace of random tokens whose four parts have these lengths."""
    spans = Spans(*accumulate((prompt, thinking, closing, response)))
    fields = {"id": f"t{seed}", "text": "?", "label": "harmful", **prompt_fields}
    return Trace(Prompt(**fields), random_ids(spans.total, seed), spans, "", "", complete=True)


def linear_probe(layer: int, weight: NDArray[np.float32]) -> Probe:
    """A probe with that direction; its quality is made up."""
    quality = Quality(1.0, (1.0, 1.0), 1.0, (1.0, 1.0), 0.0, (0.0, 0.0))
    return Probe(layer, weight, -0.7, 1.0, 1.0, quality, 0.5, 0.02)


def final_logit(subject: Subject, trace: Trace, reading: Probe) -> float:
    """Score logit at the last closing token, by a forward pass of the whole trace."""
    assert trace.spans is not None
    reader = ProbeScores({reading.layer: (reading.weight, reading.bias)}, 1)
    capture(subject, [trace.token_ids], [reader])
    return float(reader.logits[0][0, trace.spans.last_closing])


def causal_by_whole_passes(subject: Subject, trace: Trace, reading: Probe, head: Head) -> float:
    """Causal effect of a head by its definition: two forward passes of the whole trace."""
    assert trace.spans is not None
    plain = final_logit(subject, trace, reading)
    where = torch.arange(len(trace.token_ids))[None] >= trace.spans.thinking
    with ablated(subject, [head], where=where):
        return final_logit(subject, trace, reading) - plain


@torch.inference_mode()
def logits_of(subject: Subject, trace: Trace, reading: Probe) -> NDArray[np.float64]:
    """Score logit of every token less the probe's bias, in the model's own precision."""
    kept: list[torch.Tensor] = []

    def keep(module: torch.nn.Module, args: object, output: Any) -> None:
        del module, args
        kept.append(output[0] if isinstance(output, tuple) else output)

    handle = subject.blocks[reading.layer - 1].module.register_forward_hook(keep)
    subject.model(torch.tensor([trace.token_ids]))
    handle.remove()
    return kept[0].reshape(-1, WIDTH).double().numpy() @ reading.weight.astype(np.float64)


@torch.inference_mode()
def next_token(subject: Subject, trace: Trace, heads: Sequence[Head]) -> torch.Tensor:
    """Distribution of the first answer token, by a forward pass of the whole trace."""
    assert trace.spans is not None
    where = torch.arange(len(trace.token_ids))[None] >= trace.spans.thinking
    with ablated(subject, heads, where=where):
        logits = subject.model(torch.tensor([trace.token_ids])).logits
    return logits[0, trace.spans.last_closing].double().softmax(-1)


LENGTHS = ((5, 9, 4, 3), (8, 30, 1, 5), (3, 0, 6, 2), (12, 17, 2, 1), (4, 9, 4, 0))
TRACES = [closed_trace(*lengths, seed=seed) for seed, lengths in enumerate(LENGTHS)]
BENIGN = [closed_trace(6, 8, 3, 4, seed=seed, label="benign") for seed in range(20, 23)]


def probe(layer: int = LAYERS) -> Probe:
    """A probe with a random direction."""
    return linear_probe(layer, np.random.default_rng(3).normal(size=WIDTH).astype(np.float32))


def planted(head: Head) -> Subject:
    """A model where one head, and no other so strongly, writes against the probe's direction."""
    subject = family_subject("llama")
    attention = subject.blocks[head.layer - 1].module.get_submodule("self_attn")
    against = -torch.from_numpy(probe().weight)
    width = subject.head_width(head.layer)
    group = head.index * 2 // HEADS
    with torch.no_grad():
        attention.get_parameter("v_proj.bias")[group * width : (group + 1) * width] = 3.0
        columns = attention.get_parameter("o_proj.weight").unflatten(1, (HEADS, width))
        columns[:, head.index] = against[:, None]
    return subject
