"""Quantised checkpoints: read as what they stand for, or refused; never taken for other weights."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from refusal_cliff.data.types import shortened
from refusal_cliff.errors import RefusalCliffError

_FLOATS = frozenset({"F64", "F32", "F16", "BF16"})
CACHE_SCALE = re.compile(
    r"(?:attn|attention)\.(?:(?:[kvq]_proj\.|qkv_proj\.)?[kvq]_(?:scale|zero_point)|kv_scale"
    r"|[kv]_proj\.output_scale)$"
)
"""Scales of a quantised cache of keys and values, which is not used here."""
_OWN_PARTS = re.compile(
    r"\.(?:weight_(?:scale|scale_inv|scale_2|packed|shape|zero_point|g_idx)|input_scale|q?scales"
    r"|qweight|qzeros|g_idx|SCB|absmax|quant_map|nested_absmax|quant_state\S*|blocks)$"
)
"""Names that only tensors of quantised weights have."""
REMEDY = (
    "Give the checkpoint that was quantised, before it was, or save this one again dequantised."
)


def require_floats(file: Path, kinds: Mapping[str, str]) -> None:
    """Refuse weights whose numbers mean nothing without the scales of a quantisation.

    ``kinds`` is what safetensors calls the type of each tensor, by its name.

    Raises:
        RefusalCliffError: Some are whole numbers, or have 8 bits.
    """
    weights = {key: kind for key, kind in kinds.items() if key.endswith(".weight")}
    odd = sorted(key for key, kind in weights.items() if kind not in _FLOATS)
    if odd:
        raise RefusalCliffError(
            f"{file} holds {len(odd)} weights that are not ordinary floating-point numbers, such "
            f"as {shortened(odd[0])} ({shortened(weights[odd[0]], 40)}), and config.json names no "
            f"quantisation that explains them. {REMEDY}"
        )


def settled(
    name: str, model: PreTrainedModel, quantised: bool, dtype: torch.dtype | str
) -> PreTrainedModel:
    """A model of a checkpoint that may be quantised, in one precision if it was dequantised.

    Args:
        name: What the user called it.
        model: As it was loaded.
        quantised: Whether its configuration announces a quantisation.
        dtype: The precision that was asked for; ``auto`` takes any.

    Raises:
        RefusalCliffError: The quantisation is one that transformers does not know and ignored.
    """
    if not quantised or getattr(model, "is_quantized", False):
        return model
    ignored = getattr(model.config, "quantization_config", None)
    if ignored is not None:
        method = ignored.get("quant_method") if isinstance(ignored, Mapping) else ignored
        raise RefusalCliffError(
            f"The config.json of {name!r} says that it is quantised by {str(method)[:60]!r}, which "
            f"this version of transformers does not know and would ignore. {REMEDY}"
        )
    moved: Any = model
    return model if isinstance(dtype, str) else moved.to(dtype)


def remedy_of(unexpected: Collection[str]) -> str:
    """What mends a checkpoint that holds tensors for which the model has no place."""
    if any(map(_OWN_PARTS.search, unexpected)):
        return f"It is quantised in a way that its config.json does not say. {REMEDY}"
    return (
        "Download the checkpoint again, save it again with save_pretrained, or give it the "
        "config.json that it was saved with."
    )
