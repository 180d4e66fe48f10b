"""Whole rows are read by fused kernels: keys are repeated where no kernel shares them; no mask."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny_chat import tiny_model, tiny_tokenizer
from transformers.integrations import sdpa_attention

from refusal_cliff.model.capture import fused_attention, padded, read_whole, shares_keys
from refusal_cliff.model.subject import subject_of

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


@pytest.mark.parametrize(
    ("dtype", "capability", "shared"),
    [
        (torch.bfloat16, (9, 0), True),
        (torch.float16, (8, 0), True),
        (torch.float32, (9, 0), False),
        (torch.float16, (7, 5), False),  # a T4 has no flash attention
    ],
)
def test_keys_are_shared_where_a_gpu_has_a_kernel_for_it(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, capability: tuple[int, int], shared: bool
) -> None:
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    key = torch.zeros(1, 2, 3, 4, dtype=dtype)
    assert shares_keys(key) is shared
    monkeypatch.setattr(torch.version, "cuda", None)  # ROCm's kernels share none
    assert not shares_keys(key)


def test_rows_of_unlike_length_are_read_without_a_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    masks: list[Any] = []
    real = torch.nn.functional.scaled_dot_product_attention

    def noted(*args: Any, attn_mask: Any = None, **more: Any) -> torch.Tensor:
        masks.append((attn_mask, more["is_causal"]))
        return real(*args, attn_mask=attn_mask, **more)

    subject = subject_of("tiny", tiny_model(), tiny_tokenizer())
    long, short = list(range(10, 30)), list(range(40, 47))
    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", noted)
    with torch.inference_mode():
        both = read_whole(subject, padded([long, short], subject.device)[0])
        assert masks == [(None, True)] * subject.n_layers
        for row, ids in zip(both, (long, short), strict=True):
            alone = read_whole(subject, torch.tensor([ids]))[0]
            assert torch.allclose(row[: len(ids)], alone, atol=1e-5)
