"""What rounding explains; with TensorFloat-32 more than in float32."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny_chat import tiny_model, tiny_tokenizer

from refusal_cliff.errors import RefusalCliffError
from refusal_cliff.model.rounding import multiplied_in, tolerance
from refusal_cliff.model.subject import subject_of


@pytest.fixture
def tf32(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A GPU whose program allows TensorFloat-32."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    yield
    torch.set_float32_matmul_precision(before)


def coarse_in_a_batch() -> Any:
    """A model whose first block gives a little more in a batch than for a row alone."""
    model: Any = tiny_model()
    scale = 1 + 5e-4

    def coarser(module: torch.nn.Module, args: object, output: torch.Tensor) -> torch.Tensor:
        del module, args
        return output * scale if len(output) > 1 else output

    model.model.layers[0].self_attn.o_proj.register_forward_hook(coarser)
    return model


def test_precision_of_products() -> None:
    assert multiplied_in(torch.float32) == torch.float32
    assert tolerance(torch.float32) < tolerance(torch.float16) < tolerance(torch.bfloat16)


def test_tensor_float_32_is_as_coarse_as_float16(tf32: None) -> None:
    assert multiplied_in(torch.float32) == torch.float16
    assert multiplied_in(torch.float64) == torch.float64


def test_a_difference_that_rounding_does_not_explain_is_told_with_its_size() -> None:
    with pytest.raises(
        RefusalCliffError, match=r"relative difference 0\.0002, rounding explains 1e-04"
    ):
        subject_of("coarse", coarse_in_a_batch(), tiny_tokenizer())


def test_a_model_loads_where_tensor_float_32_is_allowed(tf32: None) -> None:
    assert subject_of("coarse", coarse_in_a_batch(), tiny_tokenizer()).n_layers
