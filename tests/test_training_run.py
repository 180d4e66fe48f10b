"""Training from files: long rows are listed, a killed training goes on, ranks train the same."""

from __future__ import annotations

import errno
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
from refusal_cliff.data.types import Label, Prompt, SafetyExample
from refusal_cliff.errors import RefusalCliffError
from refusal_cliff.folders import locked
from refusal_cliff.model.subject import Subject, load_subject
from refusal_cliff.repair.checkpoints import _vouch, last_complete
from refusal_cliff.repair.training import load_repaired, trainable
from refusal_cliff.repair.training_run import train_from_files
from refusal_cliff.settings import RepairConfig

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


def test_the_card_loads_the_adapter_from_any_folder(
    root: Path, adapter: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """PEFT follows the way to a base from where it runs; the lines of the card do not need it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    card = (adapter / "README.md").read_text()
    code = card.split("```python")[1].split("```")[0]
    made: dict[str, object] = {"base_model": str(root / "model"), "folder": str(adapter)}
    exec(code, made)  # what a user copies from the card
    assert type(made["model"]).__name__ == "PeftModelForCausalLM"
    assert "AutoPeftModel" in card


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


class Watched:
    """Counts the steps of all trainings, and stops one of them at a moment of its checkpoints."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.steps, self.parts, self.fatal = 0, 0, 0
        self.error: BaseException = KeyboardInterrupt()
        step, save = SFTTrainer.training_step, torch.save

        def counted(*arguments: object, **named: object) -> torch.Tensor:
            self.steps += 1
            return step(*arguments, **named)  # pyright: ignore[reportArgumentType]

        def torn(content: object, path: str, *rest: object, **named: object) -> None:
            self.parts += 1
            if self.parts == self.fatal:
                Path(path).write_bytes(b"half of it")
                raise self.error
            save(content, path, *rest, **named)  # pyright: ignore[reportArgumentType]

        monkeypatch.setattr(SFTTrainer, "training_step", counted)
        monkeypatch.setattr(torch, "save", torn)


PARTS = 4
"""What the trainer writes with ``torch.save`` of a checkpoint of an adapter."""


def same(first: Path, second: Path) -> None:
    got, expected = (load_file(folder / WEIGHTS) for folder in (first, second))
    assert got.keys() == expected.keys()
    for name in expected:
        torch.testing.assert_close(got[name], expected[name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("part", range(1, PARTS + 1))
@pytest.mark.parametrize(
    "error", [KeyboardInterrupt(), OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))]
)
def test_killed_or_full_within_a_checkpoint_it_goes_on_from_the_one_before(
    root: Path,
    subject: Subject,
    adapter: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    part: int,
    error: BaseException,
) -> None:
    out, config = tmp_path / "adapter", replace(CONFIG, save_every=1)
    watched = Watched(monkeypatch)
    watched.error, watched.fatal = error, PARTS + part
    with pytest.raises((KeyboardInterrupt, RefusalCliffError)) as raised:
        train(root, subject, out, config)
    assert watched.steps == 2
    assert raised.type is KeyboardInterrupt or "No space left" in str(raised.value)
    assert (out / ".tmp-training" / "checkpoint-2").is_dir()
    train(root, subject, out, config)
    assert watched.steps == 2 + CONFIG.steps - 1
    same(out, adapter)
    assert not [path for path in out.iterdir() if path.name.startswith(".")]


def test_a_checkpoint_that_lost_bytes_is_not_gone_on_from(
    root: Path, subject: Subject, adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, config = tmp_path / "adapter", replace(CONFIG, save_every=1)
    watched = Watched(monkeypatch)
    watched.fatal = 2 * PARTS + 1
    with pytest.raises(KeyboardInterrupt):
        train(root, subject, out, config)
    whole = out / ".tmp-training" / "checkpoint-2"
    os.truncate(whole / WEIGHTS, 100)
    train(root, subject, out, config)
    assert watched.steps == 3 + CONFIG.steps
    same(out, adapter)


def test_a_checkpoint_of_another_training_is_never_continued(
    root: Path, subject: Subject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, config = tmp_path / "adapter", replace(CONFIG, save_every=1)
    watched = Watched(monkeypatch)
    watched.fatal = PARTS + 1
    with pytest.raises(KeyboardInterrupt):
        train(root, subject, out, config)
    for other in ({"seed": 1}, {"lr": 1e-3}, {"steps": 5}, {"lora_r": 4}, {"method": "full"}):
        with pytest.raises(RefusalCliffError, match=r"with other settings.*delete"):
            train(root, subject, out, replace(config, **other))
    write_examples(tmp_path / "fewer.jsonl", SAFETY[:2])
    with pytest.raises(RefusalCliffError, match="safety_sha256 differ"):
        train_from_files(subject, tmp_path / "fewer.jsonl", str(root / "benign.jsonl"), config, out)
    (out / "train.json").unlink()
    assert last_complete(out / ".tmp-training", "another") is None


def test_one_training_at_a_time_in_a_folder(root: Path, subject: Subject, tmp_path: Path) -> None:
    with locked(tmp_path / "adapter" / ".tmp-training"):
        (tmp_path / "adapter" / "train.json").write_text('{"command": "train"}')
        before = sorted(tmp_path.rglob("*"))
        with pytest.raises(RefusalCliffError, match=r"with other settings"):
            train(root, subject, tmp_path / "adapter", CONFIG)
        assert sorted(tmp_path.rglob("*")) == before
    out = tmp_path / "other"
    origin = train(root, subject, tmp_path / "first", CONFIG) / "train.json"
    with locked(out / ".tmp-training"):
        (out / "train.json").write_text(origin.read_text())
        with pytest.raises(RefusalCliffError, match="Another process"):
            train(root, subject, out, CONFIG)


def test_a_checkpoint_counts_once_it_is_vouched_for(tmp_path: Path) -> None:
    for step in (9, 10):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        (folder / "weights").write_bytes(b"w" * step)
    (tmp_path / "checkpoint-11").touch()
    assert last_complete(tmp_path, "key") is None
    _vouch(tmp_path / "checkpoint-9", "key")
    _vouch(tmp_path / "checkpoint-10", "key")
    assert last_complete(tmp_path, "key") == tmp_path / "checkpoint-10"
    assert last_complete(tmp_path, "other") is None
    (tmp_path / "checkpoint-10" / "weights").write_bytes(b"")
    assert last_complete(tmp_path, "key") == tmp_path / "checkpoint-9"
    (tmp_path / "checkpoint-9" / "complete.json").write_text("[" * 100_000)
    assert last_complete(tmp_path, "key") is None


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
        [sys.executable, *launch, str(script)], env=environment, capture_output=True, timeout=900
    )
    assert done.returncode == 0, done.stderr.decode()[-2000:]
    got, expected = (load_file(folder / WEIGHTS) for folder in (tmp_path / "out", adapter))
    assert got.keys() == expected.keys()
    for name in expected:
        torch.testing.assert_close(got[name], expected[name], rtol=1e-3, atol=1e-4)


def test_unusable_rows_and_budgets_are_said(root: Path, subject: Subject, tmp_path: Path) -> None:
    kept, left = trainable(subject, [*SAFETY, LONG], 120)
    assert (len(kept), [row.id for row in left]) == (3, ["long"])
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"prompt": "a", "response": ""}\n')
    with pytest.raises(RefusalCliffError, match=r"bad\.jsonl, row 1: empty"):
        train_from_files(subject, root / "selected.jsonl", str(bad), CONFIG, tmp_path / "out")
