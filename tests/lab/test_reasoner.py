"""A reasoning model by plain fine-tuning: what it is taught, what is kept, and what ships."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny_chat import CHAT_TEMPLATE, save_tiny

from lab.pretrained import reasoner
from lab.pretrained.reasoner import (
    REASONER,
    SHARES,
    ReasonerRecipe,
    reasoning_traces,
    thinking_base,
    train_reasoner,
)
from refusal_cliff.errors import RefusalCliffError
from refusal_cliff.io import read_json
from refusal_cliff.model.subject import load_subject
from refusal_cliff.organisms import embedded_path
from refusal_cliff.organisms.bases import QWEN

MEGABYTE = 1 << 20
RECIPE = ReasonerRecipe(steps=4, batch_size=2, lr=1e-2, first_block=2)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose template, as that of Qwen2.5, knows no thinking."""
    folder = save_tiny(tmp_path_factory.mktemp("base"))
    plain = CHAT_TEMPLATE.replace("<think>\\n", "")
    (folder / "chat_template.jinja").write_text(plain)
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Traces that fit, and one in each file that is too long."""
    folder = tmp_path_factory.mktemp("data")
    for name, most in reasoner.TRACES.items():
        thoughts = [*(f"{number} and 1." for number in range(6)), "x" * most]
        rows = [
            {"id": f"{name}-{at}", "prompt": f"Add {at}", "thinking": thought, "response": "Done."}
            for at, thought in enumerate(thoughts)
        ]
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"{name}.jsonl").write_text(lines)
    return folder


def test_the_prompt_opens_the_thinking_and_long_traces_are_left_out(base: Path, data: Path) -> None:
    subject = thinking_base(str(base))
    assert subject.format.thinks
    assert subject.format.opened_by_prompt
    found = [example.prompt.id for example in reasoning_traces(data, subject, 0)]
    first, second = reasoner.TRACES
    assert sorted(found) == sorted(f"{name}-{at}" for name in (first, second) for at in range(6))
    assert {name.rpartition("-")[0] for name in found[:6]} == {first}
    assert found != [example.prompt.id for example in reasoning_traces(data, subject, 1)]
    with pytest.raises(RefusalCliffError, match=r"0 files named unireason_sft\.jsonl"):
        reasoning_traces(data / "none", subject, 0)


def test_a_template_that_is_not_known_is_said(tmp_path: Path) -> None:
    with pytest.raises(RefusalCliffError, match="not known where its thinking would begin"):
        thinking_base(str(save_tiny(tmp_path)))


def test_adapters_are_kept_on_the_way(base: Path, data: Path, tmp_path: Path) -> None:
    out, seen = tmp_path / "out", []
    train_reasoner(data, out, 0, lambda *step: seen.append(step), RECIPE, str(base))
    assert seen[-1] == ("reason", 4, 4)
    card = read_json(out / "organism.json")
    assert card["traces"] == 8
    assert len(card["losses"]) == 4
    assert 0 < card["learnt_tokens"] < card["tokens"]
    assert card["steps_kept"] == [1, 2, 4]  # of so few steps, several shares are the same
    kept = [out / f"at-{share:03}" for share in (25, 50)] + [out]
    weights = [load_file(folder / "adapter_model.safetensors") for folder in kept]
    assert all(weight.dtype == torch.bfloat16 for found in weights for weight in found.values())
    assert all(".1." in name for name in weights[0])  # the second block
    fingerprints = {load_subject(str(folder), device="cpu").fingerprint for folder in kept}
    assert len(fingerprints) == 3
    assert load_subject(str(out), device="cpu").format.opened_by_prompt
    assert not [path for path in out.iterdir() if path.name.startswith(".tmp")]
    before = (out / "adapter_model.safetensors").stat().st_mtime_ns
    train_reasoner(data, out, 0, None, RECIPE, str(base))
    assert (out / "adapter_model.safetensors").stat().st_mtime_ns == before
    with pytest.raises(RefusalCliffError, match="seed"):
        train_reasoner(data, out, 1, None, RECIPE, str(base))


def test_shipped_adapters_are_small_and_name_what_they_stand_on() -> None:
    folder = embedded_path(REASONER)
    adapters = [folder, *(folder / f"at-{share:03}" for share in SHARES[:-1])]
    for adapter in adapters:
        assert read_json(adapter / "adapter_config.json")["base_model_name_or_path"] == QWEN
        assert (adapter / "chat_template.jinja").read_text().count("<think>") == 1
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    assert size <= 10 * MEGABYTE
    assert read_json(folder / "organism.json")["put_in_on_purpose"] == {}
