"""The three forms of an ablation are one edit: hook, adapter and merged weights say the same."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from test_ablation import assert_same, write
from test_ablation import logits as logits_of
from tiny_families import FAMILIES, HEADS, family_subject, random_ids
from tiny_heads import head_row
from transformers import AutoModelForCausalLM

from refusal_cliff.errors import RefusalCliffError
from refusal_cliff.heads.edits import check_restores, merged, write_adapter, write_merged
from refusal_cliff.model.ablation import ablated
from refusal_cliff.model.subject import Head, Subject

CHOSEN = [Head(1, 2), Head(3, 0), Head(3, 3)]
PROMPT = torch.tensor([random_ids(11, 5), random_ids(11, 6)])


@pytest.fixture(scope="module", params=FAMILIES)
def subject(request: pytest.FixtureRequest) -> Subject:
    return family_subject(request.param)


@pytest.mark.parametrize("scale", [0.0, 0.3])
def test_all_forms_give_the_same_logits_and_text(
    subject: Subject, scale: float, tmp_path: Path
) -> None:
    plain_logits = logits_of(subject)
    with ablated(subject, CHOSEN, scale=scale):
        expected, text = logits_of(subject), write(subject)
    assert float((expected - plain_logits).abs().max()) > 0.01

    with merged(subject, CHOSEN, scale):
        assert_same(logits_of(subject), expected)
        assert write(subject).equal(text)
    assert logits_of(subject).equal(plain_logits)

    write_merged(subject, CHOSEN, scale, tmp_path / "merged")
    write_adapter(subject, CHOSEN, scale, tmp_path / "adapter")
    base = tmp_path / "base"
    subject.model.save_pretrained(base)
    loaded: Any
    for name, loaded in (
        ("merged", AutoModelForCausalLM.from_pretrained(tmp_path / "merged")),
        ("adapter", with_adapter(base, tmp_path / "adapter")),
    ):
        with torch.inference_mode():
            assert_same(loaded(PROMPT).logits, run(subject, scale))
        mask = torch.ones_like(PROMPT)
        options = {"attention_mask": mask, "max_new_tokens": 12, "do_sample": False}
        with ablated(subject, CHOSEN, scale=scale):
            model: Any = subject.model
            wanted = model.generate(PROMPT, **options)
        assert loaded.generate(input_ids=PROMPT, **options).equal(wanted), name


def with_adapter(base: Path, adapter: Path) -> Any:
    return PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), str(adapter))


@torch.inference_mode()
def run(subject: Subject, scale: float) -> torch.Tensor:
    with ablated(subject, CHOSEN, scale=scale):
        return subject.model(PROMPT).logits


def test_the_adapter_can_be_switched_off_and_merged(tmp_path: Path) -> None:
    subject = family_subject("qwen3")
    subject.model.save_pretrained(tmp_path / "base")
    write_adapter(subject, CHOSEN, 0.0, tmp_path / "adapter")
    adapted = with_adapter(tmp_path / "base", tmp_path / "adapter")
    with torch.inference_mode():
        with adapted.disable_adapter():
            assert_same(adapted(PROMPT).logits, subject.model(PROMPT).logits)
        assert_same(adapted.merge_and_unload()(PROMPT).logits, run(subject, 0.0))


def test_the_scaling_is_one_for_readers_without_patterns_too(tmp_path: Path) -> None:
    subject = family_subject("llama")
    write_adapter(subject, CHOSEN, 0.0, tmp_path / "adapter")
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    width = subject.head_width(1)
    assert config["r"] == config["lora_alpha"] == 2 * width
    assert set(config["rank_pattern"].values()) == {width, 2 * width}
    assert config["rank_pattern"] == config["alpha_pattern"]
    assert len(config["target_modules"]) == 2


OUTSIDE = """
import json, sys
import torch
from transformers import AutoModelForCausalLM
folder, ids = sys.argv[1], json.loads(sys.argv[2])
base = AutoModelForCausalLM.from_pretrained(folder + "/base")
merged = AutoModelForCausalLM.from_pretrained(folder + "/merged")
from peft import PeftModel
adapted = PeftModel.from_pretrained(base, folder + "/adapter")
ids = torch.tensor(ids)
options = dict(attention_mask=torch.ones_like(ids), max_new_tokens=12, do_sample=False)
texts = [model.generate(input_ids=ids, **options).tolist() for model in (merged, adapted)]
assert "refusal_cliff" not in sys.modules
print(json.dumps(texts))
"""


def outside(folder: Path, ids: torch.Tensor) -> Sequence[Any]:
    """Greedy answers of the merged checkpoint and of the adapter, without this package."""
    command = [sys.executable, "-c", OUTSIDE, str(folder), json.dumps(ids.tolist())]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_both_files_answer_alike_in_a_process_without_this_package(tmp_path: Path) -> None:
    subject = family_subject("gpt2")
    subject.model.save_pretrained(tmp_path / "base")
    write_merged(subject, CHOSEN, 0.0, tmp_path / "merged")
    write_adapter(subject, CHOSEN, 0.0, tmp_path / "adapter")
    model: Any = subject.model
    options = {"attention_mask": torch.ones_like(PROMPT), "max_new_tokens": 12, "do_sample": False}
    plain = model.generate(PROMPT, **options)
    with ablated(subject, CHOSEN):
        expected = model.generate(PROMPT, **options)
    assert not expected.equal(plain)
    assert outside(tmp_path, PROMPT) == [expected.tolist()] * 2


def test_weights_are_restored_after_an_error() -> None:
    subject = family_subject("llama")
    before = {name: value.clone() for name, value in subject.model.state_dict().items()}
    with pytest.raises(RuntimeError, match="inside"), merged(subject, CHOSEN):
        changed = [n for n, v in subject.model.state_dict().items() if not v.equal(before[n])]
        assert changed == [f"model.layers.{i}.self_attn.o_proj.weight" for i in (0, 2)]
        raise RuntimeError("inside")
    assert all(value.equal(before[name]) for name, value in subject.model.state_dict().items())


def test_shared_projections_are_refused(tmp_path: Path) -> None:
    subject = family_subject("llama")
    shared = Subject(**{**vars(subject), "blocks": (*subject.blocks[:2], again(subject))})
    for form in (write_merged, write_adapter):
        with pytest.raises(RefusalCliffError, match="Blocks 1, 3 of llama share one"):
            form(shared, [Head(1, 2)], 0.0, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    write_merged(shared, [Head(2, 2)], 0.0, tmp_path / "other")


def again(subject: Subject) -> Any:
    from dataclasses import replace

    return replace(subject.blocks[0], layer=3)


@pytest.mark.parametrize("kind", ["meta", "eight bits"])
def test_weights_that_cannot_be_written_are_refused(kind: str, tmp_path: Path) -> None:
    subject = family_subject("llama")
    projection = subject.projection(1)
    weight = projection.get_parameter("weight")
    other = weight.to("meta") if kind == "meta" else weight.to(torch.int8)
    projection.weight = torch.nn.Parameter(other, requires_grad=False)
    with pytest.raises(RefusalCliffError, match="quantised or not in memory"):
        write_merged(subject, CHOSEN, 0.0, tmp_path / "out")


def test_a_slice_of_a_weight_is_refused(tmp_path: Path) -> None:
    subject = family_subject("llama")
    weight: Any = subject.projection(1).get_parameter("weight")
    weight.device_mesh = "of four devices"
    for form in (write_merged, write_adapter):
        with pytest.raises(RefusalCliffError, match="tensor parallel"):
            form(subject, CHOSEN, 0.0, tmp_path / "out")


def test_a_folder_with_something_in_it_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(RefusalCliffError, match="is not empty"):
        write_adapter(family_subject("llama"), CHOSEN, 0.0, tmp_path)
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


def test_only_heads_that_suppress_refusal_may_be_written() -> None:
    rows = [head_row(0, causal=1.0), head_row(1, causal=-0.5), head_row(2, causal=0.2)]
    assert len(rows) < HEADS + 1
    check_restores(rows, [Head(1, 0), Head(1, 2)], 0.0)
    check_restores(rows, [Head(1, 0)], 0.5)
    for heads in ([Head(1, 0), Head(1, 1)], [Head(2, 0)], []):
        with pytest.raises(RefusalCliffError, match="not measured to suppress refusal"):
            check_restores(rows, heads, 0.0)
    for scale in (1.0, 2.0, -1.0):
        with pytest.raises(RefusalCliffError, match="never stronger"):
            check_restores(rows, [Head(1, 0)], scale)
