"""Tiny random models of many architectures, built from their configuration classes alone."""

from __future__ import annotations

from typing import Any

import torch
from tiny_chat import SPECIAL, tiny_tokenizer
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from refusal_cliff.model.subject import Subject, subject_of

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
    "initializer_range": 0.2,
    "eos_token_id": SPECIAL.index("<|im_end|>"),
    "pad_token_id": SPECIAL.index("<|endoftext|>"),
    "bos_token_id": None,
    "tie_word_embeddings": False,
    "num_local_experts": 4,
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
    "shared_expert_intermediate_size": 16,
    "head_dim": 12,
    "sliding_window": 6,
}
MLA: dict[str, Any] = {
    "num_key_value_heads": HEADS,
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 8,
    "qk_head_dim": 16,
    "head_dim": 8,
    "v_head_dim": 12,
}
ROUTED: dict[str, Any] = {
    "n_routed_experts": 4,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 1,
    "n_shared_experts": 1,
}
HYBRID: dict[str, Any] = {
    "layer_types": ["linear_attention", "full_attention", "linear_attention"],
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 2,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
}
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "afmoe": {"num_dense_layers": 1, "global_attn_every_n_layers": 2},
    "apertus": {},
    "arcee": {},
    "bitnet": {},
    "cohere": {},
    "cohere2": {},
    "cwm": {},
    "deepseek_v2": {**MLA, **ROUTED},
    "deepseek_v3": {**MLA, **ROUTED},
    "ernie4_5": {},
    "ernie4_5_moe": {"moe_num_experts": 4, "moe_k": 2},
    "exaone4": {"sliding_window_pattern": 2},
    "falcon": {"head_dim": None, "multi_query": True},
    "falcon_h1": {"mamba_d_ssm": 32, "mamba_n_heads": 4, "mamba_d_head": 8, "mamba_d_state": 8},
    "flex_olmo": {},
    "gemma": {},
    "gemma2": {},
    "gemma3_text": {},
    "gemma4_text": {"head_dim": None, "hidden_size_per_layer_input": 8},
    "glm": {},
    "glm4": {},
    "glm4_moe": ROUTED,
    "gpt2": {},
    "gpt_bigcode": {},
    "gpt_neox": {},
    "gpt_oss": {},
    "granite": {"residual_multiplier": 0.22, "attention_multiplier": 0.1},
    "granitemoe": {"residual_multiplier": 0.22},
    "granitemoeshared": {"residual_multiplier": 0.22, "shared_intermediate_size": 16},
    "helium": {"head_dim": 8},
    "hunyuan_v1_dense": {},
    "hunyuan_v1_moe": {"moe_topk": 2},
    "lfm2": {"layer_types": ["conv", "full_attention", "conv"]},
    "llama": {"attention_bias": True},
    "llama4_text": {"intermediate_size_mlp": 48},
    "minimax_m2": {},
    "ministral": {},
    "mistral": {},
    "mixtral": {},
    "nanochat": {},
    "nemotron": {},
    "nemotron_h": {
        "layers_block_type": ["mamba", "attention", "moe"],
        "mamba_num_heads": 4,
        "mamba_head_dim": 8,
        "ssm_state_size": 8,
        "n_groups": 1,
        "n_routed_experts": 4,
        "moe_latent_size": None,
    },
    "olmo": {},
    "olmo2": {},
    "olmo3": {},
    "olmo_hybrid": HYBRID,
    "olmoe": {},
    "opt": {"word_embed_proj_dim": WIDTH, "ffn_dim": 48},
    "persimmon": {},
    "phi": {},
    "phi3": {},
    "phimoe": {},
    "qwen2": {},
    "qwen2_moe": {},
    "qwen3": {},
    "qwen3_5_text": HYBRID,
    "qwen3_moe": {},
    "qwen3_next": HYBRID,
    "recurrent_gemma": {"block_types": ["recurrent", "attention"], "lru_width": WIDTH},
    "seed_oss": {},
    "smollm3": {},
    "stablelm": {},
    "starcoder2": {},
    "youtu": {**MLA},
}
"""What each needs besides ``SHARED``, of which a configuration takes what it knows."""

UNSUPPORTED: dict[str, dict[str, Any]] = {
    "bloom": {},
    "deepseek_v4": {**MLA, **ROUTED},
    "doge": {},
    "falcon_mamba": {},
    "jetmoe": {},
    "minimax": {},
    "mpt": {},
    "rwkv": {},
}
"""Architectures that are refused, with the reason."""


def architecture_config(name: str, **fields: Any) -> Any:
    """A small configuration."""
    known = AutoConfig.for_model(name)
    wanted = {key: value for key, value in SHARED.items() if _has(known, key)}
    own = {**ARCHITECTURES, **UNSUPPORTED}[name]
    wanted = {**wanted, **own, **fields}
    return type(known)(**{key: value for key, value in wanted.items() if value is not None})


def _has(config: Any, key: str) -> bool:
    try:
        return hasattr(config, key)
    except Exception:  # a field that differs by layer
        return False


def architecture_model(name: str, seed: int = 0, **fields: Any) -> PreTrainedModel:
    """A random model whose biases and gains are random too."""
    torch.manual_seed(seed)
    model: Any = AutoModelForCausalLM.from_config(architecture_config(name, **fields))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(torch.randn_like(parameter) * 0.2)
    return model.eval()


ILL_CONDITIONED = ("gemma4_text",)
"""Random weights of these blow up what float32 rounds off; their exactness is tested in float64."""


def architecture_subject(name: str, seed: int = 0) -> Subject:
    """A subject of that architecture."""
    model: Any = architecture_model(name, seed)
    dtype = torch.float64 if name in ILL_CONDITIONED else torch.float32
    return subject_of(name, model.to(dtype), tiny_tokenizer())
