"""What would only show on GPUs: blocks on two devices, several GPUs in one process, ranks."""

from __future__ import annotations

import gc
import json
import subprocess
import sys
import weakref
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from tiny_chat import tiny_model, tiny_tokenizer

import refusal_cliff as rc
from refusal_cliff.errors import RefusalCliffError
from refusal_cliff.judges import speakers
from refusal_cliff.model.subject import Subject, load_subject, subject_of
from refusal_cliff.repair import training
from refusal_cliff.settings import RepairConfig
from refusal_cliff.sharded import Rank


def numbers(how: str) -> dict[str, Any]:
    """What ``two_devices`` prints."""
    script = Path(__file__).with_name("two_devices.py")
    done = subprocess.run(
        [sys.executable, script, how], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


def test_blocks_on_two_devices_are_measured_as_on_one() -> None:
    here, there = numbers("cpu"), numbers("split")
    for name, expected in here.items():
        if name in ("answers", "again", "exact"):
            assert there[name] == expected, name
        else:
            np.testing.assert_allclose(there[name], expected, atol=1e-3, err_msg=name)
    assert here["exact"] is True
    assert max(np.abs(here["causal"])) > 1


@pytest.fixture
def subject() -> Subject:
    return load_subject("tiny", device="cpu")


def test_one_process_trains_on_one_gpu(
    subject: Subject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With two in sight a trainer would spread each step over both, or refuse."""
    from trl.trainer import sft_config

    class OnGpu(sft_config.SFTConfig):
        """Asks for a GPU; what it finds is the processor, and two GPUs."""

        def __init__(self, **settings: Any) -> None:
            super().__init__(**{**settings, "use_cpu": False})

        @property
        def device(self) -> torch.device:
            self._n_gpu = 2
            return torch.device("cuda")

    monkeypatch.setattr(sft_config, "SFTConfig", OnGpu)
    found = training._arguments(subject, RepairConfig(steps=1), tmp_path)
    assert found.n_gpu == 1


def test_another_gpu_than_the_first_is_refused(subject: Subject, tmp_path: Path) -> None:
    elsewhere = cast("Subject", SimpleNamespace(device=torch.device("cuda:1"), model=None))
    with pytest.raises(RefusalCliffError, match="CUDA_VISIBLE_DEVICES=1"):
        training._check_device(elsewhere)
    spread = SimpleNamespace(hf_device_map={"a": 0, "b": 1})
    training._check_device(
        cast("Subject", SimpleNamespace(device=torch.device("cuda:1"), model=spread))
    )
    training._check_device(subject)


def test_a_training_leaves_nothing_in_memory(
    subject: Subject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[weakref.ref[Any]] = []
    real = training._trained

    def trained(*given: Any) -> Any:
        trainer = real(*given)
        made.extend(map(weakref.ref, (trainer, trainer.model, trainer.optimizer)))
        return trainer

    monkeypatch.setattr(training, "_trained", trained)
    safety, benign = rc.organism_examples(4)
    config = RepairConfig(steps=1, batch_size=2, method="full")
    gc.disable()  # what holds itself stays until somebody looks
    try:
        training.repair(subject, safety, benign, config, tmp_path / "full")
    finally:
        gc.enable()
    assert [one() for one in made] == [None] * 3


@pytest.mark.parametrize(("world", "spread"), [(1, "auto"), (2, None)])
def test_the_judge_of_one_of_several_processes_keeps_to_its_gpu(
    world: int, spread: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, Any] = {}

    def read(name: str, **how: Any) -> Any:
        asked.update(how)
        raise RefusalCliffError("enough.")

    monkeypatch.setenv("WORLD_SIZE", str(world))
    monkeypatch.setenv("LOCAL_RANK", str(world - 1))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(speakers, "read_checkpoint", read)
    with pytest.raises(RefusalCliffError, match="Could not load the judge"):
        speakers.LocalSpeaker("guard", 10)
    assert (asked["device"], asked["device_map"]) == ("auto" if world == 1 else "cuda:1", spread)


def test_the_device_of_a_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    rank = Rank(1, 1, 2)
    assert [rank.device(asked) for asked in ("auto", "cuda", "cpu")] == ["cuda:1", "cuda:1", "cpu"]
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    assert rank.device("auto") == "cpu"  # accelerate shares out the weights


def test_an_adapter_is_not_merged_into_weights_that_are_not_there(
    subject: Subject, tmp_path: Path
) -> None:
    safety, benign = rc.organism_examples(4)
    adapter = training.repair(
        subject, safety, benign, RepairConfig(steps=1, batch_size=2), tmp_path / "adapter"
    )
    away = subject_of("tiny", tiny_model(), tiny_tokenizer())
    cast("Any", away.model).to("meta")
    with pytest.raises(RefusalCliffError, match="not all weights of its model fit"):
        training.load_repaired(away, adapter)


def test_offloaded_weights_are_read(tmp_path: Path) -> None:
    from accelerate import cpu_offload

    from refusal_cliff.model.final_norm import unembedding_rows

    model: Any = tiny_model()
    expected = model.get_output_embeddings().weight[[3, 5]].detach().clone()
    cpu_offload(model, torch.device("cpu"))
    assert model.get_output_embeddings().weight.device.type == "meta"
    assert torch.equal(unembedding_rows(model, [3, 5]), expected)
