"""A key-value cache with room to grow: it does not copy all it holds for every new token."""

from __future__ import annotations

from typing import Any

import torch
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer

_LEAST_ROOM = 128
_LITTLE_ROOM = 4


class RoomyLayer(DynamicLayer):
    """Keys and values as views of blocks of memory with some room, made anew when full."""

    _blocks: tuple[torch.Tensor, torch.Tensor] | None = None

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Append [batch, heads, tokens, width] and return all keys and values."""
        used = self.get_seq_length()
        needed = used + key_states.shape[-2]
        if self._blocks is None or needed > self._blocks[0].shape[-2] or self._moved():
            self._blocks = self._taken(key_states, needed), self._taken(value_states, needed)
            if used and self.keys is not None and self.values is not None:
                self._blocks[0][..., :used, :] = self.keys
                self._blocks[1][..., :used, :] = self.values
        keys, values = self._blocks
        keys[..., used:needed, :] = key_states
        values[..., used:needed, :] = value_states
        self.keys, self.values = keys[..., :needed, :], values[..., :needed, :]
        self.dtype, self.device, self.is_initialized = keys.dtype, keys.device, True
        return self.keys, self.values

    def reset(self) -> None:
        """Forget all."""
        self._blocks = None
        super().reset()

    def _moved(self) -> bool:
        """Whether something else, such as a choice of rows, has put the keys elsewhere."""
        if self._blocks is None or self.keys is None:
            return True
        return self.keys.data_ptr() != self._blocks[0].data_ptr()

    @staticmethod
    def _taken(states: torch.Tensor, needed: int) -> torch.Tensor:
        room = max(_LEAST_ROOM, 1 << (needed - 1).bit_length())
        if states.device.type == "cpu":
            # A processor reads narrow heads half as fast where more than a few hundred bytes lie
            # between them. A GPU's allocator would keep every smaller block that was left.
            room = needed + max(_LITTLE_ROOM, needed // 16)
        return states.new_empty((*states.shape[:-2], room, states.shape[-1]))


def roomy_cache(model: PreTrainedModel) -> DynamicCache | None:
    """An empty cache for a model whose blocks all keep plain keys and values, else ``None``."""
    cache: Any = DynamicCache(config=model.config)
    if not cache.layers or any(type(layer) is not DynamicLayer for layer in cache.layers):
        return None
    cache.layers = [RoomyLayer() for _ in cache.layers]
    return cache
