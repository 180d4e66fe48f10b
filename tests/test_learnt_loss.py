"""The lean loss is the plain one: value and slopes, for every family, whatever follows the head."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from test_repair import BENIGN, CONFIG, SAFETY
from tiny_families import FAMILIES, VOCABULARY, family_model, family_subject, random_ids

from refusal_cliff.errors import RefusalCliffError
from refusal_cliff.repair.loss import IGNORED_LABEL, LogProbs, is_exact, learnt_loss
from refusal_cliff.repair.training import repair
from refusal_cliff.settings import RepairConfig

SCALED = {"gemma2": {"final_logit_softcapping": 3.0}}


def rows() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Two rows of unlike length, the shorter one padded, with a prompt that is not learnt."""
    ids = torch.tensor([random_ids(12, 0), random_ids(12, 1)])
    mask = torch.ones_like(ids)
    labels = ids.clone()
    labels[:, :4] = IGNORED_LABEL
    mask[1, 8:], labels[1, 8:] = 0, IGNORED_LABEL
    return ids, mask, labels


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("at_once", [1, 5, 10**6])
def test_loss_and_slopes_are_those_of_the_plain_forward(family: str, at_once: int) -> None:
    torch.manual_seed(0)
    model = family_model(family, **SCALED.get(family, {})).eval().requires_grad_(False)
    tuned = [w for name, w in model.named_parameters() if ".1." in name and w.ndim == 2]
    for weight in tuned:
        weight.requires_grad_(True)
    assert tuned
    ids, mask, labels = rows()
    lean = learnt_loss(model, ids, mask, labels, piece=at_once * VOCABULARY)
    plain = torch.nn.functional.cross_entropy(
        model(input_ids=ids, attention_mask=mask).logits[:, :-1].flatten(0, 1),
        labels[:, 1:].flatten(),
        ignore_index=IGNORED_LABEL,
        reduction="sum",
    )
    torch.testing.assert_close(lean, plain)
    found, expected = torch.autograd.grad(lean, tuned), torch.autograd.grad(plain, tuned)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    assert any(float(slope.abs().max()) > 1e-3 for slope in found)


def test_only_a_frozen_head_after_the_decoder_is_trusted() -> None:
    model = family_model("qwen3").requires_grad_(False)
    assert is_exact(model)
    head: Any = model.get_output_embeddings()
    head.weight.requires_grad_(True)
    assert not is_exact(model)
    head.weight.requires_grad_(False)
    plain = model.forward

    def other(**inputs: Any) -> Any:
        """More than a head: what it does depends on the tokens, which a piece does not have."""
        said = plain(**inputs)
        said.logits = said.logits * (1 + inputs["input_ids"].float().mean())
        return said

    model.forward = other
    assert not is_exact(model)


def test_logits_are_never_held_for_more_than_a_piece() -> None:
    seen: list[int] = []
    weight = torch.randn(50, 6)

    def head(states: torch.Tensor) -> torch.Tensor:
        seen.append(len(states))
        return states @ weight.T

    states = torch.randn(11, 6, requires_grad=True)
    found = LogProbs.apply(states, torch.arange(11), head, 4)
    assert seen == [4, 4, 3]
    (found * torch.arange(11.0)).sum().backward()
    assert seen == [4, 4, 3]  # the backward pass needs no logits
    plain = states.detach().requires_grad_()
    said = (plain @ weight.T).log_softmax(-1)[torch.arange(11), torch.arange(11)]
    (said * torch.arange(11.0)).sum().backward()
    torch.testing.assert_close(found, said)
    torch.testing.assert_close(states.grad, plain.grad)


def test_a_row_without_learnt_tokens_is_no_error() -> None:
    model = family_model("llama").requires_grad_(False)
    ids, mask, labels = rows()
    nothing = torch.full_like(labels, IGNORED_LABEL)
    assert float(learnt_loss(model, ids, mask, nothing)) == 0


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_upper_blocks_alone_are_trained(family: str, tmp_path: Path) -> None:
    subject = family_subject(family)
    config = RepairConfig(steps=1, batch_size=4, max_length=120, first_block=3)
    repair(subject, SAFETY, BENIGN, config, tmp_path / "lora")
    names = load_file(tmp_path / "lora" / "adapter_model.safetensors")
    assert names
    assert all(".2." in name for name in names)
    whole = replace(config, steps=2, method="full", lr=1e-2)
    before = copy.deepcopy(subject.model.state_dict())
    repair(subject, SAFETY, BENIGN, whole, tmp_path / "full")
    after = load_file(tmp_path / "full" / "model.safetensors")
    changed = {name for name, weight in after.items() if not torch.equal(weight, before[name])}
    assert changed
    assert all(".2." in name for name in changed)
    left = subject.model.state_dict()
    assert all(torch.equal(left[name], weight) for name, weight in before.items())
    with pytest.raises(RefusalCliffError, match="has 3 blocks"):
        repair(subject, SAFETY, BENIGN, replace(config, first_block=4), tmp_path / "none")


def test_what_is_trained_is_kept_on_the_way(tmp_path: Path) -> None:
    subject = family_subject("qwen3")
    out, kept = tmp_path / "end", {1: tmp_path / "one", 2: tmp_path / "two"}
    repair(subject, SAFETY, BENIGN, CONFIG, out, kept=kept)
    weights = [
        load_file(folder / "adapter_model.safetensors") for folder in (kept[1], kept[2], out)
    ]
    assert all(torch.equal(weights[1][name], weights[2][name]) for name in weights[2])
    assert not all(torch.equal(weights[0][name], weights[2][name]) for name in weights[2])


def test_the_lean_loss_trains_as_that_of_trl_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    subject = family_subject("qwen3")
    lean = repair(subject, SAFETY, BENIGN, CONFIG, tmp_path / "lean")
    monkeypatch.setattr("refusal_cliff.repair.training.is_exact", lambda model: False)
    plain = repair(subject, SAFETY, BENIGN, CONFIG, tmp_path / "plain")
    weights = [load_file(folder / "adapter_model.safetensors") for folder in (lean, plain)]
    for name, expected in weights[1].items():
        torch.testing.assert_close(weights[0][name], expected, rtol=1e-3, atol=2e-5)
