"""The blocks of a decoder: what each adds to the residual stream, and its heads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from refusal_cliff.errors import RefusalCliffError


@dataclass(frozen=True)
class Part:
    """A module of a block whose output is added to the residual stream.

    Attributes:
        module: Attention, MLP, state-space mixer, …
        norm: Norm that its output passes through first (Gemma 2, OLMo 2), if any.
        factor: What the result is multiplied by (Granite's residual multiplier), mostly 1.
        gain: [d] such that ``norm(x) = gain ⊙ x`` times one number a token; ``None`` without norm.
    """

    module: nn.Module
    norm: nn.Module | None
    factor: float
    gain: torch.Tensor | None = None


@dataclass(frozen=True)
class Block:
    """One layer of a decoder: ``output = carry × input + Σ factor × norm(part)``.

    Attributes:
        layer: Its number, from 1.
        module: The layer.
        attention: The part with softmax heads; ``None`` where there is none.
        others: All other parts.
        carry: What the block's input is multiplied by, mostly 1.
        projection: The attention's output projection, a linear layer.
        n_heads: Softmax heads; 0 where there are none.
        skipped: Why there are no heads to measure; empty where there are.
    """

    layer: int
    module: nn.Module
    attention: Part | None
    others: tuple[Part, ...]
    carry: float
    projection: nn.Module | None
    n_heads: int
    skipped: str = ""

    def columns(self) -> torch.Tensor:
        """The projection's weight by heads, [d, heads, head width], float32.

        Read off the layer's own outputs where the weight is stored in another form (4 and 8 bits).
        """
        if self.projection is None:
            raise ValueError(f"block {self.layer} has no heads: {self.skipped}")
        return linear_weight(self.projection).unflatten(1, (self.n_heads, -1))


def decoder_of(model: PreTrainedModel) -> Any:
    """The decoder without its language-model head."""
    decoder = model.get_decoder() if hasattr(model, "get_decoder") else None
    found: Any = model.base_model if decoder is None else decoder
    if found is model:  # some classes name themselves; then it is the first model inside
        parts = (part for part in model.children() if isinstance(part, PreTrainedModel))
        found = next(parts, model)
    return found


def input_device(model: PreTrainedModel) -> torch.device:
    """Where token ids must be put, also where accelerate keeps the weights elsewhere."""
    device = model.device
    if device.type != "meta":
        return device
    hook = getattr(model.get_input_embeddings(), "_hf_hook", None)
    return torch.device(getattr(hook, "execution_device", None) or "cpu")


def linear_weight(projection: nn.Module) -> torch.Tensor:
    """Weight of a linear layer, [out, in], float32.

    Raises:
        RefusalCliffError: The layer holds only a slice of its weight (tensor parallelism).
    """
    check_whole(projection)
    weight = getattr(projection, "weight", None)
    if isinstance(projection, nn.Linear) and isinstance(weight, torch.Tensor):
        plain = weight.is_floating_point() and weight.dim() == 2 and weight.element_size() > 1
        if plain and weight.device.type != "meta":
            return weight.detach().float()
    return _weight_by_running(projection)


def check_whole(projection: nn.Module) -> None:
    """Refuse a layer of which this process holds only a slice.

    Raises:
        RefusalCliffError: Its weight is spread over processes (tensor parallelism).
    """
    weight = getattr(projection, "weight", None)
    if type(weight).__name__ == "DTensor" or hasattr(weight, "device_mesh"):
        raise RefusalCliffError(
            "The model is loaded in tensor parallel, so no process holds whole heads. Load it with "
            "device_map (pipeline over devices) instead."
        )


@torch.inference_mode()
def _weight_by_running(projection: nn.Module) -> torch.Tensor:
    """Outputs for unit vectors, less the output for zero: exact for whatever is linear.

    For weights that are quantised, or that accelerate keeps elsewhere until the layer runs.
    """
    weight: Any = projection.weight
    width = in_features(projection)
    kept = (value.dtype for value in projection.state_dict().values() if value.dim())
    dtype = next((kind for kind in kept if kind.is_floating_point), torch.float16)
    device = torch.device("cpu") if weight.device.type == "meta" else weight.device
    zero = torch.zeros(1, width, dtype=dtype, device=device)
    offset = projection(zero).float()
    units = torch.eye(width, dtype=dtype, device=device)
    columns = [projection(part).float() - offset for part in units.split(1024)]
    return torch.cat(columns).T.contiguous()


def in_features(projection: nn.Module) -> int:
    """Inputs of a linear layer."""
    if hasattr(projection, "in_features"):
        return int(projection.in_features)  # pyright: ignore[reportArgumentType]
    weight: Any = projection.weight
    return int(weight.shape[0])  # GPT-2's Conv1D: [in, out]
