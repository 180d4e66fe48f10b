"""An adapter is measured as PEFT runs it, every tensor of it, or it is refused by name."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from checkpoints import (
    Tensors,
    edited,
    multimodal_model,
    save_adapter,
    save_with_tokenizer,
    with_config,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny_chat import save_tiny, tiny_model, tiny_tokenizer
from tiny_families import family_model
from transformers import AutoModelForCausalLM

from refusal_cliff.errors import RefusalCliffError
from refusal_cliff.model.adapters import base_name
from refusal_cliff.model.subject import Subject, load_subject

IDS = torch.tensor([[70, 71, 5, 99, 260, 3, 8]])
LAYERS = "base_model.model.model.layers"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def adapter(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("adapter")
    save_adapter(tiny_model(), base, folder)
    return folder


def load(folder: Path, dtype: str = "float32") -> Subject:
    return load_subject(str(folder), dtype=dtype, device="cpu")


@torch.inference_mode()
def logits(model: Any, ids: torch.Tensor = IDS) -> torch.Tensor:
    return model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits


def refusal(folder: Path) -> str:
    with pytest.raises(RefusalCliffError) as found:
        load(folder)
    assert "\n" not in str(found.value)
    assert "spelling" not in str(found.value)
    return str(found.value)


def renamed(old: str, new: str) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {key.replace(old, new): value for key, value in tensors.items()}


def without(part: str) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {key: value for key, value in tensors.items() if part not in key}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    "config",
    [
        {},
        {"use_dora": True},
        {"use_rslora": True, "rank_pattern": {"layers.1.self_attn.q_proj": 2}},
        {"target_modules": "all-linear"},
        {"target_modules": r".*\.1\..*(up|down)_proj"},
        {"layers_to_transform": [1]},
        {"modules_to_save": ["lm_head"]},
        {"modules_to_save": ["embed_tokens"]},
        {"target_modules": ["lm_head", "embed_tokens", "q_proj"]},
        {"trainable_token_indices": [3, 70, 260]},
    ],
)
@pytest.mark.parametrize("tie", [False, True])
def test_what_is_loaded_is_what_peft_runs(
    tmp_path: Path, config: dict[str, Any], tie: bool, dtype: str
) -> None:
    source = save_with_tokenizer(family_model("qwen3", tie_word_embeddings=tie), tmp_path / "b")
    model: Any = AutoModelForCausalLM.from_pretrained(source, dtype=getattr(torch, dtype))
    expected = logits(save_adapter(model, source, tmp_path / "a", **config))
    plain, found = load(source, dtype), load(tmp_path / "a", dtype)
    rounding = 1e-4 if dtype == "float32" else 5e-2
    error = (logits(found.model) - expected).norm() / expected.norm()
    assert error < rounding
    assert (expected - logits(plain.model)).norm() / expected.norm() > 2 * rounding
    assert found.fingerprint != plain.fingerprint
    found.model.save_pretrained(tmp_path / "m")
    again: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "m", dtype=found.model.dtype)
    assert logits(again).equal(logits(found.model))


@pytest.mark.parametrize("target", ["lm_head", "embed_tokens"])
def test_a_change_of_one_of_two_tied_layers_stays_with_it(tmp_path: Path, target: str) -> None:
    source = save_with_tokenizer(family_model("llama", tie_word_embeddings=True), tmp_path / "b")
    adapted = save_adapter(
        AutoModelForCausalLM.from_pretrained(source),
        source,
        tmp_path / "a",
        target_modules=[target],
    )
    model: Any = load(tmp_path / "a").model
    torch.testing.assert_close(logits(model), logits(adapted), rtol=1e-4, atol=1e-4)
    assert not model.config.tie_word_embeddings
    before: Any = load(source).model
    other = model.lm_head if target == "embed_tokens" else model.model.embed_tokens
    assert other.weight.equal(before.lm_head.weight)


WRAPPERS = (
    "model.language_model.layers",
    "language_model.model.layers",
    "_orig_mod.model.layers",
    "module.model.layers",
    "layers",
    "base_model.model.model.layers",
    "transformer.layers",
)


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_another_wrapper_around_the_blocks_is_mapped(
    adapter: Path, tmp_path: Path, wrapper: str
) -> None:
    other = edited(adapter, tmp_path / "a", renamed("model.model.layers", f"model.{wrapper}"))
    assert load(other).fingerprint == load(adapter).fingerprint


def test_keys_without_the_name_of_peft_are_mapped(adapter: Path, tmp_path: Path) -> None:
    other = edited(adapter, tmp_path / "a", renamed("base_model.model.", ""))
    assert load(other).fingerprint == load(adapter).fingerprint


@pytest.mark.parametrize(
    "config",
    [
        {"target_modules": ["q_proj", "up_proj"], "rank_pattern": {"0.self_attn.q_proj": 2}},
        {"target_modules": r"model\.language_model\.layers\.\d+\.self_attn\.(q|v)_proj"},
        {"target_modules": ["q_proj", "lm_head"], "layers_to_transform": None},
        {"layers_to_transform": [0]},
        {"modules_to_save": ["lm_head"]},
    ],
)
@pytest.mark.parametrize("kind", ["gemma3", "mistral3"])
def test_an_adapter_of_a_multimodal_model_goes_on_its_text_model(
    tmp_path: Path, kind: str, config: dict[str, Any]
) -> None:
    """The text model alone, with the adapter that was trained on the whole."""
    whole: Any = multimodal_model(kind)
    text: Any = AutoModelForCausalLM.from_config(whole.config.text_config)
    text.model.load_state_dict(whole.model.language_model.state_dict())
    text.lm_head.load_state_dict(whole.lm_head.state_dict())
    base = save_with_tokenizer(text, tmp_path / "text")
    fields = {"exclude_modules": ".*(vision|projector).*", **config}
    expected = logits(save_adapter(whole, base, tmp_path / "a", **fields))
    found = load(tmp_path / "a")
    torch.testing.assert_close(logits(found.model), expected, rtol=1e-4, atol=1e-4)
    assert found.fingerprint != load(base).fingerprint


@pytest.mark.parametrize("config", [{}, {"target_modules": ["up_proj", "lm_head"]}])
@pytest.mark.parametrize("kind", ["gemma3", "mistral3", "qwen3_vl"])
def test_an_adapter_of_a_text_model_goes_into_a_multimodal_one(
    tmp_path: Path, kind: str, config: dict[str, Any]
) -> None:
    whole: Any = multimodal_model(kind)
    base = save_with_tokenizer(whole, tmp_path / "whole")
    plain = logits(whole)
    expected = logits(
        save_adapter(whole, base, tmp_path / "a", exclude_modules=".*vis.*", **config)
    )
    assert not torch.allclose(plain, expected, atol=1e-2)
    text = edited(tmp_path / "a", tmp_path / "t", renamed("model.language_model", "model"))
    with_config(text, "adapter_config.json", exclude_modules=None)
    torch.testing.assert_close(logits(load(text).model), expected, rtol=1e-4, atol=1e-4)


def test_an_adapter_of_the_vision_tower_is_refused_on_the_text(
    adapter: Path, tmp_path: Path
) -> None:
    def both(tensors: Tensors) -> Tensors:
        tower = renamed("model.model.layers", "model.model.vision_tower.encoder.layers")(tensors)
        return tensors | tower

    assert "could be meant for several of them" in refusal(edited(adapter, tmp_path / "a", both))


def test_a_tower_alone_is_no_wrapper_of_the_text(adapter: Path, tmp_path: Path) -> None:
    for number, tower in enumerate(("vision_tower.encoder", "visual", "audio_model", "model.vit")):
        edit = renamed("model.model.layers", f"model.{tower}.layers")
        assert "belong to no module" in refusal(edited(adapter, tmp_path / str(number), edit))


def double(tensors: Tensors) -> Tensors:
    extra = {k.replace("layers.1", "layers.7"): v for k, v in tensors.items() if "layers.1" in k}
    return tensors | extra


UNFIT: dict[str, tuple[Callable[[Tensors], Tensors], str]] = {
    "none fits": (renamed("self_attn", "attention"), "8 (.*) belong to no module"),
    "a layer that is not there": (double, "4 (.*layers.7.*) belong to no module"),
    "half its layers": (without("layers.1."), "4 (.*layers.1.*) are asked for, but not there"),
    "no B": (without("lora_B"), "4 (.*lora_B.*) are asked for, but not there"),
    "empty": (lambda tensors: {}, "8 (.*) are asked for, but not there"),
    "its training name": (renamed("lora_A", "lora_A.train"), "belong to no module"),
    "another kind": (renamed("lora_", "lokr_"), "belong to no module"),
    "another width": (lambda t: {k: v.repeat(2, 2) for k, v in t.items()}, "size mismatch"),
    "NaN": (lambda t: {k: v * float("nan") for k, v in t.items()}, "NaN or infinity in 8"),
}


@pytest.mark.parametrize("name", UNFIT)
def test_what_does_not_fit_is_refused_by_name(adapter: Path, tmp_path: Path, name: str) -> None:
    import re

    edit, said = UNFIT[name]
    pattern = said.replace("(", r"\(").replace(")", r"\)")
    assert re.search(pattern, refusal(edited(adapter, tmp_path / "a", edit)))


@settings(
    max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None
)
@given(data=st.data())
def test_no_part_of_an_adapter_is_ever_left_out(
    adapter: Path, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """Any tensors renamed or dropped: the adapter as it was, or a refusal."""
    words = st.sampled_from(
        ["model", "layers", "0", "1", "2", "self_attn", "q_proj", "lora_A", "x"]
    )

    def shuffle(tensors: Tensors) -> Tensors:
        found: Tensors = {}
        for key, value in tensors.items():
            parts = key.split(".")
            if data.draw(st.integers(0, 7)) == 0:
                parts[data.draw(st.integers(0, len(parts) - 1))] = data.draw(words)
            found[".".join(parts)] = value
        return found

    other = edited(adapter, tmp_path_factory.mktemp("shuffled") / "a", shuffle)
    try:
        found = load(other)
    except RefusalCliffError:
        return
    assert found.fingerprint == load(adapter).fingerprint


def test_an_adapter_that_changes_nothing_is_not_taken_for_its_base(
    base: Path, adapter: Path, tmp_path: Path
) -> None:
    zero = edited(
        adapter, tmp_path / "zero", lambda t: {k: v * ("lora_A" in k) for k, v in t.items()}
    )
    found, plain = load(zero), load(base)
    assert logits(found.model).equal(logits(plain.model))
    assert len({found.fingerprint, plain.fingerprint, load(adapter).fingerprint}) == 3
    assert load(zero).fingerprint == found.fingerprint


PROMPTS = {
    "PROMPT_TUNING": peft.PromptTuningConfig,
    "P_TUNING": peft.PromptEncoderConfig,
    "PREFIX_TUNING": peft.PrefixTuningConfig,
}


@pytest.mark.parametrize("kind", PROMPTS)
def test_virtual_tokens_are_no_weights(base: Path, tmp_path: Path, kind: str) -> None:
    fields = {"encoder_hidden_size": 32} if kind == "P_TUNING" else {}
    config = PROMPTS[kind](task_type="CAUSAL_LM", num_virtual_tokens=4, **fields)
    adapted = peft.get_peft_model(tiny_model(), config)
    adapted.peft_config["default"].base_model_name_or_path = str(base)
    adapted.save_pretrained(tmp_path / "a")
    said = refusal(tmp_path / "a")
    assert f"({kind}) cannot be merged" in said
    assert "virtual tokens" in said


def test_repeated_layers_are_said(adapter: Path, tmp_path: Path) -> None:
    shutil.copytree(adapter, tmp_path / "a")
    with_config(tmp_path / "a", "adapter_config.json", layer_replication=[[0, 2], [1, 2]])
    assert "repeats layers of its base" in refusal(tmp_path / "a")


@pytest.mark.parametrize(
    "fields",
    [
        {"peft_type": "NO_SUCH_KIND"},
        {"peft_type": None},
        {"r": "four"},
        {"r": 0},
        {"lora_alpha": "x"},
        {"target_modules": ["no_such_module"]},
        {"target_modules": 7},
        {"target_modules": "["},
        {"rank_pattern": [1]},
        {"modules_to_save": ["lm_head"]},
        {"trainable_token_indices": [3]},
        {"init_lora_weights": "no such way"},
    ],
)
def test_a_configuration_of_nonsense_is_said(
    adapter: Path, tmp_path: Path, fields: dict[str, Any]
) -> None:
    shutil.copytree(adapter, tmp_path / "a")
    assert str(tmp_path / "a") in refusal(
        with_config(tmp_path / "a", "adapter_config.json", **fields)
    )


def test_a_damaged_tokenizer_of_an_adapter_is_named(adapter: Path, tmp_path: Path) -> None:
    shutil.copytree(adapter, tmp_path / "a")
    tiny_tokenizer().save_pretrained(tmp_path / "a")
    (tmp_path / "a" / "tokenizer.json").write_text('{"version": "1.0", ')
    assert f"{tmp_path / 'a' / 'tokenizer.json'} is damaged" in refusal(tmp_path / "a")


@pytest.mark.parametrize("whole", [{}, {"modules_to_save": ["embed_tokens", "lm_head"]}])
@pytest.mark.parametrize("tie", [False, True])
def test_added_tokens_are_loaded_with_their_rows(
    tmp_path: Path, tie: bool, whole: dict[str, Any]
) -> None:
    source = save_with_tokenizer(family_model("qwen3", tie_word_embeddings=tie), tmp_path / "b")
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens(["<turn>", "<stop>"], special_tokens=True)
    model: Any = AutoModelForCausalLM.from_pretrained(source)
    model.resize_token_embeddings(len(tokenizer))
    expected = save_adapter(model, source, tmp_path / "a", **whole)
    tokenizer.save_pretrained(tmp_path / "a")
    found = load(tmp_path / "a")
    assert found.vocabulary == len(tokenizer) == len(found.tokenizer)
    ids = torch.tensor([[70, 261, 262, 5]])
    torch.testing.assert_close(
        logits(found.model, ids), logits(expected, ids), rtol=1e-4, atol=1e-4
    )


def test_added_tokens_without_rows_are_said(tmp_path: Path, base: Path) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens(["<turn>"], special_tokens=True)
    tokenizer.chat_template = str(tokenizer.chat_template).replace("assistant", "<turn>assistant")
    model: Any = tiny_model()
    model.resize_token_embeddings(len(tokenizer))
    save_adapter(model, base, tmp_path / "a")
    tokenizer.save_pretrained(tmp_path / "a")
    lacking = edited(tmp_path / "a", tmp_path / "lacking", without("embed_tokens"))
    assert "does not hold the rows of the added tokens" in refusal(lacking)
    none = edited(lacking, tmp_path / "none", without("lm_head"))
    assert "has 262 tokens and the model embeddings for 261" in refusal(none)


def test_a_base_is_named_from_the_adapter_on(tmp_path: Path, base: Path) -> None:
    assert base_name(base, "tiny", tmp_path) == "tiny"
    assert base_name(None, "org/model", tmp_path) == "org/model"
    shutil.copytree(base, tmp_path / "m")
    assert base_name(tmp_path / "m", str(tmp_path / "m"), tmp_path / "out" / "a") == "../../m"
    save_adapter(tiny_model(), "../m", tmp_path / "a")
    shutil.move(str(tmp_path), str(tmp_path) + "-moved")
    moved = Path(str(tmp_path) + "-moved")
    assert load(moved / "a").n_layers == 2
    assert json.loads((moved / "a" / "adapter_config.json").read_text())["peft_type"] == "LORA"


@pytest.mark.parametrize("name", ["/nowhere/model", "../nowhere", "a b"])
def test_an_adapter_whose_base_is_gone_says_which(tmp_path: Path, name: str) -> None:
    save_adapter(tiny_model(), name, tmp_path / "a")
    said = refusal(tmp_path / "a")
    assert f"{tmp_path / 'a'} stands on {name!r}" in said
    assert "base_model_name_or_path" in said and "Check the spelling" not in said


def test_an_adapter_of_the_hub_is_merged_too(base: Path, adapter: Path, tmp_path: Path) -> None:
    """Without the network: both stand in a cache, as downloading leaves them."""
    for name, source in (("base", base), ("adapter", adapter)):
        repository = tmp_path / f"models--someone--{name}"
        shutil.copytree(source, repository / "snapshots" / ("0" * 40))
        (repository / "refs").mkdir()
        (repository / "refs" / "main").write_text("0" * 40)
    card = tmp_path / "models--someone--adapter" / "snapshots" / ("0" * 40)
    with_config(card, "adapter_config.json", base_model_name_or_path="someone/base")
    code = (
        "from refusal_cliff.model.subject import load_subject\n"
        "for name in ('someone/base', 'someone/adapter'):\n"
        "    print(load_subject(name, device='cpu').fingerprint)"
    )
    offline = os.environ | {"HF_HUB_CACHE": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=offline, capture_output=True, text=True, check=False
    )
    assert done.stdout.split() == [load(base).fingerprint, load(adapter).fingerprint], done.stderr
