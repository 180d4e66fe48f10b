"""On a GPU shared keys are repeated, so that PyTorch has a fused kernel in every precision."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny_chat import tiny_model
from transformers.integrations import sdpa_attention

from refusal_cliff.model.capture import fused_attention

IDS = torch.arange(10, 30)[None]


def states(monkeypatch: pytest.MonkeyPatch, device: str) -> tuple[torch.Tensor, list[bool]]:
    """Last states of a row, and whether PyTorch was asked to repeat keys, by block."""
    asked: list[bool] = []
    real = torch.nn.functional.scaled_dot_product_attention

    def noted(query: torch.Tensor, key: torch.Tensor, *args: Any, **more: Any) -> torch.Tensor:
        asked.append(key.shape[1] != query.shape[1])
        return real(query, key, *args, **more)

    model: Any = tiny_model()
    with monkeypatch.context() as patched:
        patched.setattr(torch.nn.functional, "scaled_dot_product_attention", noted)
        with torch.inference_mode(), fused_attention(torch.device(device)):
            return model.model(IDS).last_hidden_state, asked


def test_keys_are_repeated_on_a_gpu_only(monkeypatch: pytest.MonkeyPatch) -> None:
    before = sdpa_attention.use_gqa_in_sdpa
    here, shared = states(monkeypatch, "cpu")
    there, repeated = states(monkeypatch, "cuda")
    assert shared == [True, True]
    assert repeated == [False, False]
    assert torch.allclose(here, there, atol=1e-6)
    assert sdpa_attention.use_gqa_in_sdpa is before


def test_a_transformers_without_the_choice_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(sdpa_attention, "use_gqa_in_sdpa")
    with fused_attention(torch.device("cuda")):
        assert not hasattr(sdpa_attention, "use_gqa_in_sdpa")
