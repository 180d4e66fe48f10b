"""Small checkpoints and adapters on the disk, and ways to damage them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from tiny_chat import SPECIAL, tiny_tokenizer
from transformers import AutoConfig, AutoModelForImageTextToText, PreTrainedModel

Tensors = dict[str, torch.Tensor]
VOCABULARY = len(SPECIAL) + 256
TEXT: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "initializer_range": 0.3,
    "eos_token_id": SPECIAL.index("<|im_end|>"),
    "pad_token_id": SPECIAL.index("<|endoftext|>"),
    "bos_token_id": None,
    "tie_word_embeddings": False,
}
VISION: dict[str, Any] = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "depth": 2,
    "num_attention_heads": 2,
    "num_heads": 2,
    "out_hidden_size": 32,
    "image_size": 28,
    "patch_size": 14,
}
MULTIMODAL: dict[str, dict[str, Any]] = {
    "gemma3": {"text_config": {"sliding_window": 16}},
    "gemma4": {"text_config": {"hidden_size_per_layer_input": 8, "sliding_window": 16}},
    "mistral3": {"text_config": {"model_type": "mistral"}},
    "qwen2_5_vl": {
        "text_config": {
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 1e4,
                "mrope_section": [1, 1, 2],
            }
        }
    },
    "qwen3_vl": {},
    "llava": {
        "text_config": {"model_type": "llama"},
        "vision_config": {"model_type": "clip_vision_model"},
    },
}


def save_with_tokenizer(model: PreTrainedModel, folder: Path) -> Path:
    """A checkpoint as a user has it."""
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def edited(
    source: Path, folder: Path, edit: Callable[[Tensors], Mapping[str, torch.Tensor]]
) -> Path:
    """A copy of a checkpoint or adapter with other tensors in it."""
    shutil.copytree(source, folder)
    for name in ("model.safetensors", "adapter_model.safetensors"):
        if (folder / name).is_file():
            tensors = {k: v.clone().contiguous() for k, v in edit(load_file(folder / name)).items()}
            save_file(tensors, folder / name, {"format": "pt"})
    return folder


def with_config(folder: Path, name: str = "config.json", **fields: Any) -> Path:
    """Change fields of a configuration."""
    file = folder / name
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))
    return folder


def save_adapter(model: Any, base: Path | str, folder: Path, seed: int = 0, **config: Any) -> Any:
    """A LoRA adapter of random weights on a model; returns the model with it, unmerged."""
    torch.manual_seed(seed)
    fields = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "o_proj"], **config}
    adapted = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **fields))
    with torch.no_grad():
        for name, value in adapted.named_parameters():
            if "lora_B" in name or "embedding_A" in name:
                value.normal_(std=0.2)
            elif "modules_to_save" in name or "trainable_tokens_delta" in name:
                value.add_(torch.randn_like(value) * 0.3)
    adapted.peft_config["default"].base_model_name_or_path = str(base)
    adapted.save_pretrained(str(folder))
    return adapted.eval()


def multimodal_model(name: str) -> PreTrainedModel:
    """A random model of that kind, of a vision tower and a decoder as small as they may be."""
    own = MULTIMODAL[name]
    known = AutoConfig.for_model(name)
    text = {**TEXT, **own.get("text_config", {})}
    vision = {**VISION, **own.get("vision_config", {})}
    fields: dict[str, Any] = {
        "text_config": text,
        "vision_config": vision,
        "tie_word_embeddings": False,
    }
    for key in (
        "image_token_id",
        "image_token_index",
        "video_token_id",
        "vision_start_token_id",
        "vision_end_token_id",
    ):
        if hasattr(known, key):
            fields[key] = 5
    torch.manual_seed(0)
    config = type(known)(**fields)
    model: Any = AutoModelForImageTextToText.from_config(config)
    return model.eval()
