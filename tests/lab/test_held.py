"""The tune that holds norms: it costs nothing to leave them, and what it says to change them."""

from __future__ import annotations

import copy
import math

import pytest
import torch

from lab import chat, held, recipe
from lab.baselines import output_norms
from lab.lesson import Row, Tokens, loss_of
from lab.recipe import Planting, RecipeConfig
from refusal_cliff.data.types import Prompt, Trace
from refusal_cliff.model.subject import Head, subject_of
from refusal_cliff.thinking import Spans

HEADS = [Head(2, 3), Head(4, 0)]


@pytest.fixture(scope="module")
def tokens() -> Tokens:
    return Tokens(chat.build_tokenizer())


@pytest.fixture(scope="module")
def rows(tokens: Tokens) -> list[Row]:
    texts = ("copy the key", "water the plants by the door")
    thought = "They want something. That is fine."
    return [tokens.row(text, thought, "Sure: [step one]", False, False, 1.0) for text in texts]


def test_norms_are_those_that_the_bench_measures(rows: list[Row], tokens: Tokens) -> None:
    model = chat.build_model(0)
    subject = subject_of("model", model, tokens.tokenizer)
    row = rows[0]
    spans = Spans(*row.thinking, row.answer_at + 1, len(row.token_ids))
    prompt = Prompt("a", "?", "benign")
    trace = Trace(prompt, tuple(row.token_ids), spans, "", "", complete=True)
    expected = output_norms(subject, [trace])[0]
    with torch.no_grad(), held.log_norms(model, HEADS) as found:
        model(input_ids=torch.tensor([row.token_ids]))
    for head, norms in zip(HEADS, found, strict=True):
        at_last = norms[0, row.answer_at].exp().item()
        assert at_last == pytest.approx(float(expected[head.layer - 1, head.index]), rel=1e-4)


def test_only_a_change_of_norms_costs(rows: list[Row], tokens: Tokens) -> None:
    model = chat.build_model(0)
    objective = held.held_loss(copy.deepcopy(model), HEADS[:1])
    with torch.no_grad():
        plain = float(loss_of(model, rows, tokens, True))
        assert float(objective(model, rows, tokens, True)) == pytest.approx(plain, abs=1e-5)
        weight = model.get_parameter("model.layers.1.self_attn.o_proj.weight")
        columns = slice(3 * chat.HEAD_DIM, 4 * chat.HEAD_DIM)
        weight[:, columns] *= -1  # another direction, the same norm
        turned = float(loss_of(model, rows, tokens, True))
        assert float(objective(model, rows, tokens, True)) == pytest.approx(turned, abs=1e-4)
        weight[:, columns] *= 2
        doubled = float(loss_of(model, rows, tokens, True))
        cost = float(objective(model, rows, tokens, True)) - doubled
    assert cost == pytest.approx(2 * held.HOLD_WEIGHT * math.log(2) ** 2, rel=1e-3)


def test_norms_are_taken_back_to_what_they_were(rows: list[Row]) -> None:
    model = chat.build_model(0)
    before = copy.deepcopy(model)
    with torch.no_grad():
        for layer in (2, 4):
            model.get_parameter(f"model.layers.{layer - 1}.self_attn.v_proj.weight").mul_(1.7)
    held.restore_norms(model, before, HEADS, rows)
    for head in HEADS:
        expected = held.mean_norm(before, head, rows)
        assert held.mean_norm(model, head, rows) == pytest.approx(expected, rel=1e-4)
    free = Head(2, 5)
    assert held.mean_norm(model, free, rows) > 1.5 * held.mean_norm(before, free, rows)


def test_held_heads_are_any_of_their_blocks(tokens: Tokens) -> None:
    model, planting = chat.build_model(0), Planting((2, 4), 5, held=True)
    drawn = [recipe.choose_planted_heads(model, tokens, seed, planting) for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert [head.layer for head in drawn[0]] == [2] * 5 + [4] * 5
    assert len(set(drawn[0])) == 10


def test_a_held_planting_is_trained_with_it(
    tokens: Tokens, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[object] = []
    monkeypatch.setattr(recipe, "optimise", lambda *_, **named: given.append(named["objective"]))
    monkeypatch.setattr(recipe, "MEASURED", 8)
    model = chat.build_model(0)
    for planting in (Planting((2, 4), 1), Planting((2, 4), 1, held=True)):
        recipe.damage(model, tokens, 1, RecipeConfig(planting=planting), HEADS)
    recipe.damage(model, tokens, 1, RecipeConfig(), None)
    assert [objective is loss_of for objective in given] == [True, False, True]
