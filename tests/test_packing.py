"""Weights laid out for the processor: the same numbers, and nothing left behind."""

from __future__ import annotations

from types import SimpleNamespace

import psutil
import pytest
import torch

from refusal_cliff.generate.local import generate
from refusal_cliff.model.packing import packed
from refusal_cliff.model.subject import Subject, load_subject
from refusal_cliff.organisms import embedded_path, language
from refusal_cliff.settings import GenerationConfig


@pytest.fixture(scope="module")
def tiny() -> Subject:
    return load_subject(str(embedded_path("tiny")), device="cpu", dtype="float32")


@pytest.fixture
def ids(tiny: Subject) -> torch.Tensor:
    return torch.randint(0, tiny.vocabulary, (3, 40), generator=torch.Generator().manual_seed(0))


def replaced(subject: Subject) -> int:
    """Layers that do not multiply as they were made to."""
    return sum("forward" in vars(module) for module in subject.model.modules())


def test_the_same_logits_but_for_rounding(tiny: Subject, ids: torch.Tensor) -> None:
    with torch.inference_mode():
        plain = tiny.model(ids).logits
        with packed(tiny):
            assert replaced(tiny) > 20
            found = tiny.model(ids).logits
        exact = load_subject(str(embedded_path("tiny")), device="cpu", dtype="float32")
        right = exact.model.double()(ids).logits
    furthest = (plain.double() - right).abs().max()
    assert (found.double() - right).abs().max() <= 3 * furthest
    assert replaced(tiny) == 0


def test_gradients_are_those_of_the_weights(tiny: Subject, ids: torch.Tensor) -> None:
    embed = tiny.model.get_input_embeddings()
    found = []
    for context in (packed, lambda _: torch.enable_grad()):
        states = embed(ids).detach().requires_grad_()
        with context(tiny):
            tiny.model(inputs_embeds=states).logits.square().mean().backward()
        found.append(states.grad)
    torch.testing.assert_close(*found, rtol=0, atol=0)


def test_inside_another_nothing_is_laid_out_again(tiny: Subject) -> None:
    with packed(tiny):
        layers = replaced(tiny)
        with pytest.raises(ZeroDivisionError), packed(tiny):
            assert replaced(tiny) == layers
            _ = 1 / 0
        assert replaced(tiny) == layers
    assert replaced(tiny) == 0


def test_without_memory_for_a_copy_weights_stay(
    tiny: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = SimpleNamespace(available=1_000_000)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: few)
    with packed(tiny):
        assert replaced(tiny) == 0


def test_a_process_whose_memory_is_limited_is_left_alone(
    tiny: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    resource = pytest.importorskip("resource")
    monkeypatch.setattr(resource, "getrlimit", lambda _: (1 << 40, 1 << 40))
    with packed(tiny):
        assert replaced(tiny) == 0


def test_other_precisions_and_changed_layers_stay() -> None:
    small = load_subject(str(embedded_path("tiny")), device="cpu", dtype="bfloat16")
    with packed(small):
        assert replaced(small) == 0


def test_an_answer_is_written_on_them(tiny: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    prompts = language.prompts("test", "harmful", 4, 0)
    seen: list[int] = []
    tiny.model.register_forward_pre_hook(lambda *_: seen.append(replaced(tiny)))
    generate(tiny, prompts, GenerationConfig(8, 4))
    assert seen and min(seen) > 20
