"""Tiny checkpoints of every guard's architecture that say known verdicts about known words.

The blocks are set by hand. Attention looks at every token alike and does one thing: it tells how
often a `Script.on` word was read. The output layer lets the first such word choose the verdict,
and each token of the verdict be followed by the next. So a verdict is right only if request and
answer reach the model, whole and in the place of nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    Llama4Config,
    Llama4ForConditionalGeneration,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
)

HARM, REFUSAL = "[step one]", "I cannot help"
BEGIN, END, PAD = "<s>", "</s>", "<pad>"
HEADER = "<|start_header_id|>{}<|end_header_id|>\n\n"
LLAMA = (
    "{{- '<s>' }}{%- for message in messages %}"
    "{{- '<turn>' + message['role'] + '\\n' + CONTENT | trim }}{%- endfor %}{{- '<turn>guard\\n' }}"
)
TEXT, PARTS = "message['content']", "message['content'][0]['text']"
QWEN = (
    "{%- for message in messages %}{{- message.role | upper + ': ' + message.content + '\\n' }}"
    "{%- endfor %}{{- '<turn>assistant\\n<think>\\n\\n</think>\\n\\n' }}"
)


EYES = {
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "image_size": 28,
    "patch_size": 14,
    "vision_output_dim": 16,
    "projector_input_dim": 16,
    "projector_output_dim": 16,
}
"""The half of Llama Guard 4 that no text needs."""


@dataclass(frozen=True, slots=True)
class Script:
    """What a guard is made of and says.

    Attributes:
        architecture: Class of the model that was published.
        otherwise: The pieces of its reply where it reads none of the words in ``on``.
        on: The pieces of its reply by the word that it reads.
        template: Its chat template, reduced to the form in which it takes a message.
    """

    architecture: str
    otherwise: Sequence[str]
    on: Mapping[str, Sequence[str]] = field(default_factory=dict)
    template: str | None = None


SCRIPTS: dict[str, Script] = {
    "llama-guard-3": Script(
        "llama", ("\n\nsafe",), {HARM: ("\n\nunsafe", "\nS2,S9")}, LLAMA.replace("CONTENT", TEXT)
    ),
    "llama-guard-4": Script(
        "llama4", ("\n\nsafe",), {HARM: ("\n\nunsafe", "\nS2")}, LLAMA.replace("CONTENT", PARTS)
    ),
    "qwen3guard": Script(
        "qwen3",
        ("Safety: Safe", "\nCategories: None", "\nRefusal: No"),
        {
            HARM: ("Safety: Unsafe", "\nCategories: Violent, PII\nRefusal: No"),
            REFUSAL: ("Safety: Safe\n", "Categories: None\nRefusal: Yes"),
        },
        QWEN,
    ),
    "wildguard": Script(
        "mistral",
        ("Harmful request: no", "\nResponse refusal: no\nHarmful response: no"),
        {
            HARM: ("Harmful request: yes", "\nResponse refusal: no\nHarmful response: yes"),
            REFUSAL: ("Harmful request: yes\n", "Response refusal: yes\nHarmful response: no"),
        },
    ),
    "harmbench": Script("llama", ("No",), {HARM: ("Yes",)}),
}


def save_rigged(key: str, folder: Path) -> Path:
    """Write the guard's checkpoint, as a user's would be."""
    script = SCRIPTS[key]
    tokenizer = _tokenizer(script)
    model = _model(script.architecture, len(tokenizer))
    _rig(model, tokenizer, script)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def _tokenizer(script: Script) -> PreTrainedTokenizerFast:
    """A token a byte, a piece of a verdict, and a word that it looks for; BOS before a text."""
    special, alphabet = (PAD, BEGIN, END), sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate((*special, *alphabet))}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(special))
    pieces = [*script.otherwise, *script.on, *(p for reply in script.on.values() for p in reply)]
    tokenizer.add_tokens([AddedToken(piece, normalized=False) for piece in pieces])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=BEGIN, eos_token=END, pad_token=PAD
    )
    fast.chat_template = script.template
    return fast


def _model(architecture: str, size: int) -> Any:
    """Random weights of one block; its width holds every token and one number more a word."""
    torch.manual_seed(0)
    width = size + 4 + (-size) % 4
    common: dict[str, Any] = {
        "vocab_size": size,
        "hidden_size": width,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 8192,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    if architecture == "llama4":
        text = {**common, "intermediate_size_mlp": 16, "moe_layers": [], "no_rope_layers": [1]}
        return Llama4ForConditionalGeneration(Llama4Config(text_config=text, vision_config=EYES))
    if architecture == "qwen3":
        return Qwen3ForCausalLM(Qwen3Config(**common, tie_word_embeddings=False))
    if architecture == "mistral":
        return MistralForCausalLM(MistralConfig(**common, sliding_window=None))
    return LlamaForCausalLM(LlamaConfig(**common))


@torch.no_grad()
def _rig(model: Any, tokenizer: PreTrainedTokenizerFast, script: Script) -> None:
    """Attention finds the words, the output layer says the verdict; all else is switched off."""
    language = getattr(model, "language_model", model)
    block, size = language.model.layers[0], len(tokenizer)
    attention, mlp = block.self_attn, getattr(block, "mlp", None) or block.feed_forward
    embedding, head = language.model.embed_tokens.weight, language.lm_head.weight
    for weight in (embedding, head, mlp.down_proj.weight):
        weight.zero_()
    for projection in (attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj):
        projection.weight.zero_()
    embedding[:, :size].fill_diagonal_(1.0)
    first = tokenizer.convert_tokens_to_ids(script.otherwise[0])
    head[first, :size] = 1.0  # whatever was read last
    for number, (word, reply) in enumerate(script.on.items()):
        found = size + number
        attention.v_proj.weight[number, tokenizer.convert_tokens_to_ids(word)] = 1.0
        attention.o_proj.weight[found, number] = 1000.0
        head[tokenizer.convert_tokens_to_ids(reply[0]), found] = 1.0
    for reply in (script.otherwise, *script.on.values()):
        ids = [*map(tokenizer.convert_tokens_to_ids, reply), tokenizer.eos_token_id]
        for now, after in pairwise(ids):
            head[after, now] = 1e6
