"""The roomy cache holds what an ordinary one holds, through growth and choices of rows."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from architectures import architecture_model
from hypothesis import given
from hypothesis import strategies as st
from transformers.cache_utils import DynamicLayer

from refusal_cliff.generate.cache import RoomyLayer, roomy_cache


def states(tokens: int, seed: int, batch: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    drawn = torch.Generator().manual_seed(seed)
    keys = torch.randn(batch, 2, tokens, 4, generator=drawn)
    return keys, torch.randn(batch, 2, tokens, 6, generator=drawn)


@given(st.lists(st.integers(1, 150), min_size=1, max_size=6))
def test_it_grows_like_an_ordinary_cache(lengths: Sequence[int]) -> None:
    roomy, plain = RoomyLayer(), DynamicLayer()
    for seed, length in enumerate(lengths):
        got, expected = roomy.update(*states(length, seed)), plain.update(*states(length, seed))
        assert got[0].equal(expected[0])
        assert got[1].equal(expected[1])
        assert roomy.get_seq_length() == plain.get_seq_length()
        assert roomy.get_mask_sizes(1) == plain.get_mask_sizes(1)


def test_rows_can_be_chosen_and_repeated_and_tokens_removed() -> None:
    roomy, plain = RoomyLayer(), DynamicLayer()
    for layer in (roomy, plain):
        layer.update(*states(5, 0))
        layer.batch_select_indices(torch.tensor([2, 0]))
        layer.update(*states(1, 1, batch=2))
        layer.batch_repeat_interleave(2)
        layer.update(*states(1, 2, batch=4))
        layer.crop(-3)
        layer.update(*states(2, 3, batch=4))
    assert roomy.keys is not None
    assert plain.keys is not None
    assert roomy.keys.equal(plain.keys)
    roomy.reset()
    assert roomy.get_seq_length() == 0
    assert roomy.update(*states(2, 4))[0].equal(states(2, 4)[0])


@pytest.mark.parametrize("name", ["llama", "gemma2", "lfm2", "deepseek_v3"])
def test_text_is_the_same_with_it(name: str) -> None:
    model = architecture_model(name)
    cache = roomy_cache(model)
    assert (cache is None) == (name in ("gemma2", "lfm2"))
    ids = torch.arange(10, 30).reshape(2, 10)
    texts = [
        model.generate(  # pyright: ignore[reportCallIssue]
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=140,
            do_sample=False,
            past_key_values=kind,
        )
        for kind in (cache, None)
    ]
    assert texts[0].equal(texts[1])
