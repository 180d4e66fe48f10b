"""Repair learns thinking and answer, within a fixed budget, quietly and reproducibly."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import edited, save_adapter
from safetensors.torch import load_file
from tiny_chat import save_tiny

from refusal_cliff.data.types import Label, Prompt, SafetyExample
from refusal_cliff.errors import RefusalCliffError
from refusal_cliff.generate import GenerationConfig, generate
from refusal_cliff.model.subject import Subject, load_subject
from refusal_cliff.repair.training import (
    IGNORED_LABEL,
    RepairConfig,
    encode_example,
    load_repaired,
    repair,
    training_plan,
)
from refusal_cliff.repair.training_run import steps_to
from refusal_cliff.thinking import render_prompt


def example(identity: str, label: Label, thinking: str, response: str) -> SafetyExample:
    return SafetyExample(Prompt(identity, f"Do {identity}", label), thinking, response)


SAFETY = [example(f"s{i}", "harmful", "Bad.", "No.") for i in range(3)]
BENIGN = [example(f"b{i}", "benign", "Good.", "Yes.") for i in range(4)]
CONFIG = RepairConfig(steps=2, batch_size=4, max_length=120)


@pytest.fixture(scope="module")
def subject(tmp_path_factory: pytest.TempPathFactory) -> Subject:
    return load_subject(str(save_tiny(tmp_path_factory.mktemp("tiny"))), device="cpu")


def test_thinking_answer_and_end_are_learnt_and_the_prompt_is_not(subject: Subject) -> None:
    row = encode_example(subject, SAFETY[0], 120)
    prompt = render_prompt(subject.tokenizer, "Do s0")
    learnt = [label for label in row["labels"] if label != IGNORED_LABEL]
    assert row["input_ids"] == prompt + learnt
    assert row["labels"][: len(prompt)] == [IGNORED_LABEL] * len(prompt)
    assert subject.tokenizer.decode(learnt) == "Bad.\n</think>\n\nNo.<|im_end|>"


def test_every_strategy_gets_the_same_benign_rows_in_the_same_steps() -> None:
    config = RepairConfig(steps=5, batch_size=8, benign_share=0.25)
    plans = [training_plan(n_safety, 7, config) for n_safety in (1, 3, 50)]
    assert {len(plan) for plan in plans} == {40}
    benign = [[(at, i) for at, (kind, i) in enumerate(plan) if kind] for plan in plans]
    assert benign[0] == benign[1] == benign[2]
    for step in range(5):
        assert sum(kind for kind, _ in plans[0][step * 8 : step * 8 + 8]) == 2
    drawn = [index for kind, index in plans[1] if not kind]
    assert [sorted(drawn[at : at + 3]) for at in range(0, 30, 3)] == [[0, 1, 2]] * 10
    assert plans[1] != training_plan(3, 7, replace(config, seed=1))


def test_repair_teaches_and_leaves_the_subject_alone(subject: Subject, tmp_path: Path) -> None:
    before = {name: value.clone() for name, value in subject.model.state_dict().items()}
    config = RepairConfig(steps=60, batch_size=8, lr=1e-2, max_length=120)
    adapter = repair(subject, SAFETY, BENIGN, config, tmp_path / "adapter")
    after = subject.model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert not any(parameter.requires_grad for parameter in subject.model.parameters())
    repaired = load_repaired(subject, adapter)
    prompts = [SAFETY[0].prompt, BENIGN[0].prompt]
    traces = generate(repaired, prompts, GenerationConfig(max_new_tokens=20))
    assert [(t.thinking, t.response) for t in traces] == [("Bad.", "No."), ("Good.", "Yes.")]
    assert repaired.fingerprint != subject.fingerprint
    assert repaired.name == f"{subject.name}+adapter"


def test_repair_is_quiet_whole_and_the_same_for_a_seed(
    subject: Subject, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a").mkdir()
    first = repair(subject, SAFETY, BENIGN, CONFIG, tmp_path / "a")
    torch.manual_seed(99)
    second = repair(subject, SAFETY, BENIGN, CONFIG, tmp_path / "b")
    other = repair(subject, SAFETY, BENIGN, replace(CONFIG, seed=1), tmp_path / "c")
    weights = [load_file(path / "adapter_model.safetensors") for path in (first, second, other)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert not all(torch.equal(weights[0][name], weights[2][name]) for name in weights[0])
    modules = json.loads((first / "adapter_config.json").read_text())["target_modules"]
    assert modules == sorted(modules)
    assert capfd.readouterr() == ("", "")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b", "c"]
    assert not [path for path in first.iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize("saved", [{"rows_at_once": 1}, {"rows_at_once": 2, "recompute": True}])
def test_less_memory_learns_the_same(
    subject: Subject, tmp_path: Path, saved: dict[str, Any]
) -> None:
    """Rows of unlike length: the loss of a step is the mean of its tokens, not of its rows."""
    config = replace(CONFIG, steps=4, batch_size=4, lr=1e-3)
    whole = repair(subject, SAFETY, BENIGN, config, tmp_path / "a")
    lean = repair(subject, SAFETY, BENIGN, replace(config, **saved), tmp_path / "b")
    weights = [load_file(path / "adapter_model.safetensors") for path in (whole, lean)]
    for name, expected in weights[0].items():
        torch.testing.assert_close(weights[1][name], expected, rtol=1e-3, atol=2e-5)
    with pytest.raises(RefusalCliffError, match="--rows-at-once"):
        repair(subject, SAFETY, BENIGN, replace(config, rows_at_once=3), tmp_path / "c")


def test_every_step_is_told_with_its_loss(subject: Subject, tmp_path: Path) -> None:
    seen: list[tuple[int, int, float]] = []
    told = lambda *step: seen.append(step)  # noqa: E731
    repair(subject, SAFETY, BENIGN, replace(CONFIG, steps=3), tmp_path / "a", told=told)
    assert [(step, steps) for step, steps, _ in seen] == [(1, 3), (2, 3), (3, 3)]
    assert all(0 < loss < 20 for *_, loss in seen)
    shown: list[tuple[object, ...]] = []
    tell = steps_to(lambda *what: shown.append(what))
    for step, steps, loss in seen:
        tell(step, steps, loss)
    assert shown[0] == ("steps of training", 0, None)
    assert shown[-1] == ("steps of training", 3, 3, f"loss {seen[-1][2]:.3f}")


def test_bad_rows_are_named(subject: Subject, tmp_path: Path) -> None:
    rows = [*SAFETY, example("long", "harmful", "x" * 200, "No.")]
    with pytest.raises(RefusalCliffError, match=r"safety example 4 \(long\).*never cut"):
        repair(subject, rows, BENIGN, CONFIG, tmp_path / "a")
    with pytest.raises(RefusalCliffError, match="no benign examples"):
        repair(subject, SAFETY, [], CONFIG, tmp_path / "a")
    with pytest.raises(RefusalCliffError, match="no safety examples"):
        repair(subject, [], BENIGN, CONFIG, tmp_path / "a")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_is_named(subject: Subject, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(RefusalCliffError, match="Could not write"):
        repair(subject, SAFETY, BENIGN, replace(CONFIG, steps=1), tmp_path / "file" / "adapter")


def test_unusable_budgets_and_adapters_are_said(subject: Subject, tmp_path: Path) -> None:
    with pytest.raises(RefusalCliffError, match="at least 1"):
        RepairConfig(steps=0)
    with pytest.raises(RefusalCliffError, match="benign_share"):
        RepairConfig(benign_share=1.0)
    with pytest.raises(RefusalCliffError, match="Could not put the adapter"):
        load_repaired(subject, tmp_path / "nothing")


def test_an_adapter_that_does_not_fit_is_no_repair(subject: Subject, tmp_path: Path) -> None:
    """It would have been measured as if it were one that does nothing."""
    save_adapter(copy.deepcopy(subject.model), "base", tmp_path / "good")
    assert load_repaired(subject, tmp_path / "good").fingerprint != subject.fingerprint
    other = edited(
        tmp_path / "good",
        tmp_path / "other",
        lambda tensors: {key.replace("self_attn", "attention"): v for key, v in tensors.items()},
    )
    with pytest.raises(RefusalCliffError, match="belong to no module of the base"):
        load_repaired(subject, other)


def test_a_repair_of_a_repair_stands_on_the_first(subject: Subject, tmp_path: Path) -> None:
    first = repair(subject, SAFETY, BENIGN, replace(CONFIG, lr=1e-1), tmp_path / "first")
    repaired = load_subject(str(first), device="cpu")
    second = repair(repaired, SAFETY, BENIGN, replace(CONFIG, lr=1e-1), tmp_path / "second")
    loaded, expected = (
        one.model.state_dict()
        for one in (load_subject(str(second), device="cpu"), load_repaired(repaired, second))
    )
    start = repaired.model.state_dict()
    assert any(not torch.equal(start[name], expected[name]) for name in expected)
    for name, value in expected.items():
        torch.testing.assert_close(loaded[name], value)
