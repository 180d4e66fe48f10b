"""Projections are read however they are stored, or refused; models are measured however loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import cpu_offload, disk_offload, dispatch_model
from tiny_chat import tiny_model, tiny_tokenizer
from tiny_families import random_ids
from transformers.pytorch_utils import Conv1D

from refusal_cliff.errors import RefusalCliffError
from refusal_cliff.model.blocks import linear_weight
from refusal_cliff.model.capture import PositionResiduals, TokenContributions, capture
from refusal_cliff.model.memory import BatchLimit
from refusal_cliff.model.subject import Subject, subject_of

IDS = [random_ids(n, seed) for seed, n in enumerate((7, 19, 4))]
LAYERS = (1, 2)


class Int8Linear(torch.nn.Linear):
    """Weights in 8 bits with one scale a row, as a quantised checkpoint holds them."""

    def __init__(self, plain: torch.nn.Linear) -> None:
        super().__init__(plain.in_features, plain.out_features, bias=plain.bias is not None)
        self.bias = plain.bias
        scale = plain.weight.detach().abs().amax(1, keepdim=True) / 127
        rounded = (plain.weight.detach() / scale).round().to(torch.int8)
        self.weight = torch.nn.Parameter(rounded, requires_grad=False)
        self.scale = torch.nn.Parameter(scale, requires_grad=False)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        weight = (self.weight.float() * self.scale).to(input.dtype)
        return torch.nn.functional.linear(input, weight, self.bias)


def measured(subject: Subject) -> tuple[np.ndarray[Any, Any], list[np.ndarray[Any, Any]]]:
    """Residuals at the last token, and contributions of all heads at all tokens."""
    direction = np.random.default_rng(0).normal(size=subject.width)
    residuals = PositionResiduals([len(ids) - 1 for ids in IDS], LAYERS, subject.width)
    heads = TokenContributions(subject, [len(ids) for ids in IDS], direction, 2)
    capture(subject, IDS, [residuals, heads], limit=BatchLimit(24))
    return residuals.values, heads.values


def error(got: Any, expected: Any) -> float:
    return float(np.abs(got - expected).max() / np.abs(expected).max())


@pytest.fixture(scope="module")
def plain() -> tuple[np.ndarray[Any, Any], list[np.ndarray[Any, Any]]]:
    return measured(subject_of("plain", tiny_model(), tiny_tokenizer()))


@pytest.mark.parametrize("bias", [True, False])
def test_weights_of_a_linear_layer_and_of_its_transpose(bias: bool) -> None:
    linear = torch.nn.Linear(6, 4, bias=bias)
    assert linear_weight(linear).equal(linear.weight.detach())
    transposed = Conv1D(4, 6)
    torch.testing.assert_close(linear_weight(transposed), transposed.weight.detach().T)


def test_quantised_weights_are_those_that_the_layer_uses() -> None:
    linear = Int8Linear(torch.nn.Linear(6, 4))
    used = linear.weight.float() * linear.scale
    assert error(linear_weight(linear).numpy(), used.numpy()) < 1e-3


def test_a_slice_of_a_weight_is_refused() -> None:
    class DTensor(torch.nn.Parameter):
        pass

    linear = torch.nn.Linear(6, 4)
    linear.weight = DTensor(linear.weight.detach())
    with pytest.raises(RefusalCliffError, match="tensor parallel"):
        linear_weight(linear)


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-4), (torch.float16, 1e-2), (torch.bfloat16, 5e-2)]
)
def test_every_precision(dtype: torch.dtype, tolerance: float, plain: Any) -> None:
    model: Any = tiny_model()
    got = measured(subject_of("rounded", model.to(dtype), tiny_tokenizer()))
    assert error(got[0], plain[0]) < tolerance
    assert max(map(error, got[1], plain[1])) < tolerance


def test_a_quantised_model_is_measured_as_it_is() -> None:
    """Contributions of 8-bit heads are those of a model with the rounded weights in full."""
    quantised, rounded = tiny_model(), tiny_model()
    for number in range(2):
        projection = f"model.layers.{number}.self_attn.o_proj"
        small = Int8Linear(quantised.get_submodule(projection))  # pyright: ignore[reportArgumentType]
        quantised.set_submodule(projection, small)
        with torch.no_grad():
            full = small.weight.float() * small.scale
            rounded.get_submodule(projection).get_parameter("weight").copy_(full)
    got = measured(subject_of("int8", quantised, tiny_tokenizer()))
    expected = measured(subject_of("rounded", rounded, tiny_tokenizer()))
    assert error(got[0], expected[0]) < 1e-5
    assert max(map(error, got[1], expected[1])) < 1e-3


def test_weights_on_several_devices_or_elsewhere(tmp_path: Path, plain: Any) -> None:
    spread: Any = dispatch_model(tiny_model(), {"": "cpu"}, force_hooks=True)
    waiting: Any = tiny_model()
    cpu_offload(waiting, torch.device("cpu"))
    on_disk: Any = tiny_model()
    disk_offload(on_disk, str(tmp_path), torch.device("cpu"))
    here = subject_of("here", tiny_model(), tiny_tokenizer())
    for model in (spread, waiting, on_disk):
        subject = subject_of("elsewhere", model, tiny_tokenizer())
        assert subject.fingerprint == here.fingerprint
        got = measured(subject)
        assert error(got[0], plain[0]) < 1e-5
        assert max(map(error, got[1], plain[1])) < 1e-5
