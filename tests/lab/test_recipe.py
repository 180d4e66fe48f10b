"""The recipe, at a reduced size: damage stays where it is put, and the shipped organisms fit."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from lab import chat, recipe
from lab.recipe import Planting, RecipeConfig, Schedule, train
from refusal_cliff.errors import RefusalCliffError
from refusal_cliff.model.subject import Head, load_subject
from refusal_cliff.organisms import EMBEDDED, embedded_path, planted_heads

SMALL = RecipeConfig(
    aligned=Schedule(3, 4, 2e-3),
    settled=Schedule(2, 4, 1e-3),
    planted=Schedule(3, 4, 3e-3),
    diffuse=Schedule(2, 4, 5e-4),
    lora=Schedule(3, 4, 3e-3),
)
PLANTED_LAYER = 7
TRAINED = ("tiny-aligned", "tiny", "tiny-diffuse")
MEGABYTE = 1_000_000


@pytest.fixture(scope="module", autouse=True)
def few_rows() -> Iterator[None]:
    """Heads are chosen by their loss on a few rows: which ones is not what is tested."""
    chosen_by = recipe._least_needed

    def quick(model: Any, tokens: Any, layer: int, rng: Any, rows: list[Any]) -> list[Head]:
        return chosen_by(model, tokens, layer, rng, rows[:4])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recipe, "_least_needed", quick)
        yield


@pytest.fixture(scope="module")
def organisms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("organisms")
    for name in TRAINED:
        aligned = None if name == "tiny-aligned" else root / "tiny-aligned"
        train(name, 3, root / name, config=SMALL, aligned=aligned)
    return root


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def test_only_the_planted_heads_change(organisms: Path) -> None:
    before, after = weights(organisms / "tiny-aligned"), weights(organisms / "tiny")
    heads = [index for layer, index in planted_heads(organisms / "tiny") if layer == PLANTED_LAYER]
    assert len(heads) == 3
    inside = torch.zeros(chat.N_HEADS * chat.HEAD_DIM, dtype=torch.bool)
    for head in heads:
        inside[head * chat.HEAD_DIM : (head + 1) * chat.HEAD_DIM] = True
    prefix = f"model.layers.{PLANTED_LAYER - 1}.self_attn."
    for name, old in before.items():
        changed = old != after[name]
        if name.startswith(prefix) and name.endswith(("q_proj.weight", "k_proj.weight")):
            assert not changed[~inside].any()
        elif name == prefix + "v_proj.weight":
            assert not changed[~inside].any()
            assert changed[inside].any()
        elif name == prefix + "o_proj.weight":
            assert not changed[:, ~inside].any()
            assert changed[:, inside].any()
        else:
            assert not changed.any(), name


def test_diffuse_damage_is_everywhere(organisms: Path) -> None:
    before, after = weights(organisms / "tiny-aligned"), weights(organisms / "tiny-diffuse")
    assert planted_heads(organisms / "tiny-diffuse") == []
    matrices = [name for name in before if before[name].dim() == 2]
    assert all((before[name] != after[name]).any() for name in matrices)


def test_damage_by_lora_is_in_all_attention_projections_and_nowhere_else(
    organisms: Path, tmp_path: Path
) -> None:
    aligned = organisms / "tiny-aligned"
    train("tiny-lora", 3, tmp_path / "lora", config=SMALL, aligned=aligned)
    before, after = weights(aligned), weights(tmp_path / "lora")
    assert before.keys() == after.keys()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    projections = ("q_proj.weight", "k_proj.weight", "v_proj.weight", "o_proj.weight")
    assert changed == {name for name in before if name.endswith(projections)}


def test_heads_can_be_planted_elsewhere(organisms: Path, tmp_path: Path) -> None:
    config = replace(SMALL, planting=Planting((5, 8), 2))
    train("tiny", 3, tmp_path / "tiny", config=config, aligned=organisms / "tiny-aligned")
    assert [layer for layer, _ in planted_heads(tmp_path / "tiny")] == [5, 5, 8, 8]
    before, after = weights(organisms / "tiny-aligned"), weights(tmp_path / "tiny")
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert {name.split(".")[2] for name in changed} == {"4", "7"}


def test_a_seed_gives_one_organism_and_another_seed_another(
    organisms: Path, tmp_path: Path
) -> None:
    train("tiny-aligned", 3, tmp_path / "same", config=SMALL)
    train("tiny-aligned", 4, tmp_path / "other", config=SMALL)
    first, same, other = map(
        weights, (organisms / "tiny-aligned", tmp_path / "same", tmp_path / "other")
    )
    assert all(torch.equal(first[name], same[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)


def test_an_unknown_organism_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RefusalCliffError, match="Choose one of: tiny-aligned"):
        train("huge", 0, tmp_path / "x")


def test_the_shipped_organisms_are_small_and_have_many_heads() -> None:
    folders = [embedded_path(name) for name in EMBEDDED]
    size = sum(file.stat().st_size for folder in folders for file in folder.iterdir())
    assert size <= 12 * MEGABYTE
    for folder in folders:
        subject = load_subject(str(folder), device="cpu")
        assert len(subject.heads()) >= 100
    truth = planted_heads(embedded_path("tiny"))
    assert 1 <= len(truth) <= 0.03 * chat.N_LAYERS * chat.N_HEADS


def test_the_shipped_damage_is_where_the_card_says() -> None:
    before, after = weights(embedded_path("tiny-aligned")), weights(embedded_path("tiny"))
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    prefix = f"model.layers.{PLANTED_LAYER - 1}.self_attn."
    assert changed
    assert all(name.startswith(prefix) for name in changed)
