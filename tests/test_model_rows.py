"""Whole rows are read by fused kernels: keys are repeated where no kernel shares them; no mask."""

from __future__ import annotations

from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from architectures import WIDTH, architecture_model
from tiny_chat import tiny_model, tiny_tokenizer
from transformers.integrations import sdpa_attention

from refusal_cliff.errors import RefusalCliffError
from refusal_cliff.model import rows
from refusal_cliff.model.capture import PositionResiduals, capture
from refusal_cliff.model.memory import BatchLimit
from refusal_cliff.model.rows import (
    alike_above,
    fused_attention,
    next_batch,
    padded,
    read_whole,
    shares_keys,
)
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


def test_keys_of_float32_are_repeated_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    before = sdpa_attention.use_gqa_in_sdpa
    here, shared = states(monkeypatch, "cpu")
    monkeypatch.setattr(rows, "shares_keys", lambda key: False)
    there, repeated = states(monkeypatch, "cuda")
    assert shared == [True, True]
    assert repeated == [False, False]
    assert torch.allclose(here, there, atol=1e-6)
    assert sdpa_attention.use_gqa_in_sdpa is before


@pytest.mark.parametrize(("mask", "shared"), [(None, True), (torch.ones(1, 1, 3, 3), False)])
def test_keys_are_shared_where_transformers_and_the_kernel_allow_it(
    monkeypatch: pytest.MonkeyPatch, mask: torch.Tensor | None, shared: bool
) -> None:
    key = torch.zeros(1, 2, 3, 4)
    monkeypatch.setattr(rows, "shares_keys", lambda key: True)
    with fused_attention(torch.device("cuda")):
        assert sdpa_attention.use_gqa_in_sdpa(mask, key, key) is shared
        monkeypatch.setattr(rows, "shares_keys", lambda key: False)
        assert sdpa_attention.use_gqa_in_sdpa(mask, key, key) is False


def test_what_overlaps_leaves_nothing_behind() -> None:
    before = sdpa_attention.use_gqa_in_sdpa
    first, second = (fused_attention(torch.device("cuda")) for _ in range(2))
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    second.__exit__(None, None, None)
    assert sdpa_attention.use_gqa_in_sdpa is before


def test_whole_rows_are_read_by_fused_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def noted(device: torch.device) -> Any:
        asked.append(device.type)
        return nullcontext()

    monkeypatch.setattr(rows, "fused_attention", noted)
    subject = subject_of("tiny", tiny_model(), tiny_tokenizer())
    with torch.inference_mode():
        read_whole(subject, IDS)
    assert asked == ["cpu"]


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
    key: Any = SimpleNamespace(dtype=dtype, device=torch.device("cuda"))
    assert shares_keys(key) is shared
    monkeypatch.setattr(torch.version, "cuda", None)  # ROCm's kernels share none
    assert not shares_keys(key)
    assert shares_keys(torch.zeros(1, 2, 3, 4, dtype=dtype))  # processors share in all


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


def test_a_batch_holds_little_padding_and_every_row_is_in_one() -> None:
    lengths = np.random.default_rng(0).integers(1, 900, 300)
    token_ids = [[0] * int(n) for n in lengths]
    waiting = sorted(range(300), key=lambda row: -len(token_ids[row]))
    seen: list[int] = []
    while waiting:
        batch = next_batch(token_ids, waiting, 4096)
        assert len(batch.rows) * max(batch.lengths) <= 4096
        seen += batch.rows
        waiting = waiting[len(batch.rows) :]
    assert sorted(seen) == list(range(300))


@pytest.mark.parametrize(
    ("lengths", "together", "alike"),
    [
        ((1000, 873, 871), 2, None),  # at most 128 tokens of padding
        ((400, 301, 299), 2, None),  # a quarter
        ((60, 29, 27), 2, None),  # 32 are never too many
        ((60, 60, 59), 2, 48),  # beyond what positions are made for, like with like
        ((48, 47, 30), 3, 48),
    ],
)
def test_how_much_shorter_a_row_of_a_batch_may_be(
    lengths: tuple[int, ...], together: int, alike: int | None
) -> None:
    token_ids = [[0] * length for length in lengths]
    batch = next_batch(token_ids, range(len(lengths)), 10**6, alike)
    assert batch.lengths == lengths[:together]


SCALED: dict[str, dict[str, Any]] = {
    "llama": {
        "max_position_embeddings": 48,
        "rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0},
    },
    "phi3": {
        "original_max_position_embeddings": 48,
        "rope_parameters": {
            "rope_type": "longrope",
            "rope_theta": 1e4,
            "short_factor": [1.0] * 4,
            "long_factor": [3.0] * 4,
            "original_max_position_embeddings": 48,
            "partial_rotary_factor": 1.0,
        },
    },
}


@pytest.mark.parametrize("name", SCALED)
def test_positions_depend_on_the_row_alone(name: str) -> None:
    """Both kinds of positions have other frequencies for long texts, for all rows of a batch."""
    drawn = np.random.default_rng(0)
    ids = [drawn.integers(10, 250, length).tolist() for length in (52, 60, 40, 52, 45)]
    last = [len(row) - 1 for row in ids]
    together = PositionResiduals(last, [3], WIDTH)
    model = architecture_model(name, **SCALED[name])
    subject = subject_of(name, model, tiny_tokenizer())
    assert alike_above(model) == 48
    capture(subject, ids, [together], limit=BatchLimit(10**6))
    for number, (row, at) in enumerate(zip(ids, last, strict=True)):
        alone = PositionResiduals([at], [3], WIDTH)
        fresh = subject_of(name, architecture_model(name, **SCALED[name]), tiny_tokenizer())
        capture(fresh, [row], [alone])
        np.testing.assert_allclose(together.values[number], alone.values[0], atol=1e-4)
    assert alike_above(architecture_model("llama")) is None


def test_a_model_that_looks_ahead_is_refused() -> None:
    model: Any = tiny_model()
    for block in model.model.layers:
        block.self_attn.is_causal = False
    with pytest.raises(RefusalCliffError, match="look back only"):
        subject_of("tiny", model, tiny_tokenizer())
