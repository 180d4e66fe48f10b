"""Training from files: long rows are listed, a killed training goes on, ranks train the same."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny_chat import save_tiny
from trl.trainer.sft_trainer import SFTTrainer

from refusal_cliff.data.examples import write_examples
from refusal_cliff.data.traces import Label, Prompt, SafetyExample
from refusal_cliff.errors import RefusalCliffError
from refusal_cliff.model.subject import Subject, load_subject
from refusal_cliff.repair.training import RepairConfig, load_repaired, trainable
from refusal_cliff.repair.training_run import train_from_files

WEIGHTS = "adapter_model.safetensors"


def example(identity: str, label: Label, thinking: str, response: str) -> SafetyExample:
    return SafetyExample(Prompt(identity, f"Do {identity}", label), thinking, response)


SAFETY = [example(f"s{i}", "harmful", "Bad.", "No.") for i in range(3)]
BENIGN = [example(f"b{i}", "benign", "Good.", "Yes.") for i in range(4)]
LONG = example("long", "harmful", "x" * 200, "No.")
CONFIG = RepairConfig(steps=4, batch_size=4, max_length=120, lr=1e-2)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("train")
    save_tiny(folder / "model")
    write_examples(folder / "selected.jsonl", [*SAFETY, LONG])
    write_examples(folder / "benign.jsonl", BENIGN)
    return folder


@pytest.fixture(scope="module")
def subject(root: Path) -> Subject:
    return load_subject(str(root / "model"), device="cpu")


def train(root: Path, subject: Subject, out: Path, config: RepairConfig) -> Path:
    return train_from_files(
        subject, root / "selected.jsonl", str(root / "benign.jsonl"), config, out
    )


@pytest.fixture(scope="module")
def adapter(root: Path, subject: Subject) -> Path:
    return train(root, subject, root / "adapter", CONFIG)


def test_rows_too_long_are_listed_and_never_cut(root: Path, adapter: Path) -> None:
    listed = [json.loads(line) for line in (adapter / "left-out.jsonl").read_text().splitlines()]
    assert [row["id"] for row in listed] == ["long"]
    assert "never cut" in listed[0]["reason"]
    content = json.loads((adapter / "repair.json").read_text())
    assert (content["safety_rows"], content["benign_rows"], content["left_out"]) == (3, 4, 1)
    card = (adapter / "README.md").read_text()
    assert card.startswith("---\nbase_model: ")
    assert "3 safety examples and 4 benign ones" in card


def test_a_finished_training_is_not_done_again(
    root: Path, subject: Subject, adapter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise AssertionError("trained again")

    monkeypatch.setattr(SFTTrainer, "train", fail)
    assert train(root, subject, adapter, CONFIG) == adapter
    with pytest.raises(AssertionError, match="trained again"):
        train(root, subject, root / "other", replace(CONFIG, seed=1))


def test_a_killed_training_goes_on_from_its_checkpoint(
    root: Path, subject: Subject, adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, steps = tmp_path / "adapter", 0
    step = SFTTrainer.training_step

    def dying(*arguments: object, **named: object) -> torch.Tensor:
        nonlocal steps
        steps += 1
        if steps == 4:
            raise KeyboardInterrupt
        return step(*arguments, **named)  # pyright: ignore[reportArgumentType]

    monkeypatch.setattr(SFTTrainer, "training_step", dying)
    with pytest.raises(KeyboardInterrupt):
        train(root, subject, out, replace(CONFIG, save_every=2))
    assert sorted(path.name for path in out.iterdir()) == [".tmp-training", "train.json"]
    assert (out / ".tmp-training" / "checkpoint-2").is_dir()
    train(root, subject, out, replace(CONFIG, save_every=2))
    assert steps == 4 + 2, "it began from the beginning"
    assert not [path for path in tmp_path.rglob("*") if path.name.startswith(".")]
    got, expected = (load_file(folder / WEIGHTS) for folder in (out, adapter))
    for name in expected:
        torch.testing.assert_close(got[name], expected[name], rtol=1e-5, atol=1e-6)


def test_all_weights_can_be_trained(root: Path, subject: Subject, tmp_path: Path) -> None:
    out = train(root, subject, tmp_path / "full", replace(CONFIG, method="full", lr=1e-3))
    repaired = load_repaired(subject, out)
    assert not (out / "adapter_config.json").exists()
    assert repaired.fingerprint != subject.fingerprint
    changed = [
        name
        for name, value in repaired.model.state_dict().items()
        if not torch.equal(value, subject.model.state_dict()[name])
    ]
    assert any("embed" in name for name in changed)
    assert any("mlp" in name for name in changed)


def test_two_processes_train_what_one_trains(root: Path, adapter: Path, tmp_path: Path) -> None:
    command = ["train", "--model", str(root / "model"), "--selected", str(root / "selected.jsonl")]
    command += ["--benign", str(root / "benign.jsonl"), "--out", str(tmp_path / "out")]
    command += ["--steps", "4", "--train-batch-size", "4", "--max-length", "120", "--lr", "0.01"]
    launch = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", "29611"]
    script = tmp_path / "script.py"
    script.write_text(f"from refusal_cliff.cli import app; app({[*command, '--device', 'cpu']!r})")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    done = subprocess.run(
        [sys.executable, *launch, str(script)], env=environment, capture_output=True, timeout=300
    )
    assert done.returncode == 0, done.stderr.decode()[-2000:]
    got, expected = (load_file(folder / WEIGHTS) for folder in (tmp_path / "out", adapter))
    assert got.keys() == expected.keys()
    for name in expected:
        torch.testing.assert_close(got[name], expected[name], rtol=1e-3, atol=1e-4)


def test_unusable_rows_and_budgets_are_said(root: Path, subject: Subject, tmp_path: Path) -> None:
    kept, left = trainable(subject, [*SAFETY, LONG], 120)
    assert (len(kept), [e.prompt.id for e, _ in left]) == (3, ["long"])
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"prompt": "a", "response": ""}\n')
    with pytest.raises(RefusalCliffError, match=r"bad\.jsonl, row 1: empty"):
        train_from_files(subject, root / "selected.jsonl", str(bad), CONFIG, tmp_path / "out")
