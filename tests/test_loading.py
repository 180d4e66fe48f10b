"""What is wrong with a checkpoint is said by name; what only looks wrong is loaded."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from checkpoints import (
    MULTIMODAL,
    Tensors,
    edited,
    multimodal_model,
    save_with_tokenizer,
    with_config,
)
from safetensors.torch import load_file, save_file
from tiny_chat import save_tiny, tiny_model, tiny_tokenizer
from tiny_families import VOCABULARY, family_model
from typer.testing import CliRunner

from refusal_cliff.cli import app
from refusal_cliff.data.types import Prompt
from refusal_cliff.errors import RefusalCliffError
from refusal_cliff.generate.local import check_prompt
from refusal_cliff.model import loading
from refusal_cliff.model.subject import Subject, load_subject, subject_of
from refusal_cliff.model.weights import check_files, is_finite

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 988097824\n"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("tiny"))


def load(folder: Path, dtype: str = "float32") -> Subject:
    return load_subject(str(folder), dtype=dtype, device="cpu")


def refusal(folder: Path) -> str:
    """What is said of a folder: one paragraph."""
    with pytest.raises(RefusalCliffError) as found:
        load(folder)
    assert "\n" not in str(found.value)
    return str(found.value)


def under(prefix: str) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {prefix + key: value for key, value in tensors.items()}


def without(part: str) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {key: value for key, value in tensors.items() if part not in key}


def plus(**added: torch.Tensor) -> Callable[[Tensors], Tensors]:
    return lambda tensors: tensors | {key.replace("__", "."): v for key, v in added.items()}


def changed(name: str, change: Callable[[torch.Tensor], torch.Tensor]) -> Callable[..., Tensors]:
    return lambda tensors: tensors | {name: change(tensors[name].clone())}


Q = "model.layers.1.self_attn.q_proj.weight"
WRONG: dict[str, tuple[Callable[[Tensors], Tensors], str]] = {
    "another prefix": (under("transformer."), r"25 \(lm_head.*\) are missing.*; 25 \(transformer"),
    "a wrapper": (under("module."), r"25 \(lm_head.*\) are missing"),
    "one gone": (without(Q), rf"1 \({Q}\) are missing, so that they would be random"),
    "norms gone": (without("_norm.weight"), r"4 \(model.layers.0.self_attn.k_norm.weight.*missing"),
    "another shape": (changed(Q, lambda w: w[:16]), r"another shape|1 \(model.*\(16, 32\) where"),
    "one bias too many": (
        plus(model__layers__0__self_attn__q_proj__bias=torch.zeros(32)),
        r"1 \(model.layers.0.self_attn.q_proj.bias\) are in the files, but not in the model",
    ),
    "one layer too many": (
        plus(model__layers__2__mlp__up_proj__weight=torch.zeros(48, 32)),
        r"1 \(model.layers.2.mlp.up_proj.weight\) are in the files",
    ),
    "a part that nothing announces": (
        plus(model__visual__patch__weight=torch.zeros(4)),
        r"1 \(model.visual.patch.weight\) are in the files",
    ),
    "an adapter that was not merged": (
        plus(model__layers__0__self_attn__q_proj__lora_A__weight=torch.zeros(4, 32)),
        r"q_proj.lora_A.weight\) are in the files",
    ),
    "NaN": (changed(Q, lambda w: w.fill_(float("nan"))), rf"NaN or infinity: 1 \({Q}\)"),
    "infinity": (
        changed("lm_head.weight", lambda w: w.index_fill(0, torch.tensor([7]), float("-inf"))),
        r"NaN or infinity: 1 \(lm_head.weight\)",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_weights_that_are_wrong_are_refused_by_name(
    folder: Path, tmp_path: Path, name: str
) -> None:
    edit, said = WRONG[name]
    with pytest.raises(RefusalCliffError, match=said):
        load(edited(folder, tmp_path / "wrong", edit))


def tied(folder: Path) -> Path:
    return save_with_tokenizer(family_model("qwen3", tie_word_embeddings=True), folder)


def test_a_tied_head_is_not_missing_but_both_are(tmp_path: Path) -> None:
    source = tied(tmp_path / "tied")
    model: Any = load(source).model
    assert "lm_head.weight" not in load_file(source / "model.safetensors")
    assert model.lm_head.weight is model.model.embed_tokens.weight
    both = refusal(edited(source, tmp_path / "gone", without("embed_tokens")))
    assert "2 (lm_head.weight, model.embed_tokens.weight) are missing" in both


RIGHT: dict[str, tuple[Callable[[Tensors], Tensors], dict[str, Any]]] = {
    "frequencies of old checkpoints": (
        plus(model__layers__0__self_attn__rotary_emb__inv_freq=torch.zeros(4)),
        {},
    ),
    "a layer that predicts further tokens": (
        plus(model__layers__2__eh_proj__weight=torch.zeros(4)),
        {"num_nextn_predict_layers": 1},
    ),
    "a module that predicts further tokens": (
        plus(mtp__layers__0__mlp__up_proj__weight=torch.zeros(4)),
        {"mtp_num_hidden_layers": 1},
    ),
}


@pytest.mark.parametrize("name", RIGHT)
def test_parts_that_the_configuration_announces_may_be_left_out(
    folder: Path, tmp_path: Path, name: str
) -> None:
    edit, config = RIGHT[name]
    found = load(with_config(edited(folder, tmp_path / "right", edit), **config))
    expected = load(folder)
    ids = torch.arange(9)[None]
    assert found.model(ids).logits.equal(expected.model(ids).logits)


def test_one_layer_more_than_announced_is_refused(folder: Path, tmp_path: Path) -> None:
    edit = plus(model__layers__3__eh_proj__weight=torch.zeros(4))
    source = with_config(edited(folder, tmp_path / "m", edit), num_nextn_predict_layers=1)
    assert "1 (model.layers.3.eh_proj.weight) are in the files" in refusal(source)


@pytest.mark.parametrize(
    "name", ["model.safetensors", "tokenizer.json", "config.json", "chat_template.jinja"]
)
def test_a_pointer_to_a_file_is_not_the_file(folder: Path, tmp_path: Path, name: str) -> None:
    shutil.copytree(folder, tmp_path / "m")
    (tmp_path / "m" / name).write_text(POINTER)
    said = refusal(tmp_path / "m")
    assert f"m/{name} is a Git LFS pointer" in said
    assert "git lfs pull" in said


@pytest.mark.parametrize("share", [0, 1e-5, 0.01, 0.5, 0.999])
def test_a_file_that_is_cut_short_is_said(folder: Path, tmp_path: Path, share: float) -> None:
    shutil.copytree(folder, tmp_path / "m")
    file = tmp_path / "m" / "model.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[: int(len(whole) * share)])
    said = refusal(tmp_path / "m")
    assert "m/model.safetensors is" in said
    assert "Download model.safetensors again" in said


@pytest.mark.parametrize(
    "content",
    [
        b"PK\x03\x04 a zip file",
        b"\x02\0\0\0\0\0\0\0[]",
        b"\x02\0\0\0\0\0\0\0{}",
        b"<html>404</html>",
    ],
)
def test_what_is_no_weights_file_is_refused(folder: Path, tmp_path: Path, content: bytes) -> None:
    shutil.copytree(folder, tmp_path / "m")
    (tmp_path / "m" / "model.safetensors").write_bytes(content)
    refusal(tmp_path / "m")


def sharded(folder: Path, out: Path) -> Path:
    """The same checkpoint in two shards with an index."""
    shutil.copytree(folder, out)
    (out / "model.safetensors").unlink()
    tensors = load_file(folder / "model.safetensors")
    places = {key: f"model-0000{1 + (n % 2)}-of-00002.safetensors" for n, key in enumerate(tensors)}
    for shard in set(places.values()):
        save_file(
            {k: v for k, v in tensors.items() if places[k] == shard}, out / shard, {"format": "pt"}
        )
    index = {"metadata": {"total_size": 1}, "weight_map": places}
    (out / "model.safetensors.index.json").write_text(json.dumps(index))
    return out


def test_shards_are_the_model(folder: Path, tmp_path: Path) -> None:
    assert load(sharded(folder, tmp_path / "m")).fingerprint == load(folder).fingerprint


def test_a_shard_that_is_not_there_is_named(folder: Path, tmp_path: Path) -> None:
    source = sharded(folder, tmp_path / "m")
    (source / "model-00002-of-00002.safetensors").unlink()
    assert "names shards that are not there: 1 (model-00002-of-00002.safe" in refusal(source)


def test_tensors_that_no_shard_holds_are_named(folder: Path, tmp_path: Path) -> None:
    source = sharded(folder, tmp_path / "m")
    file = source / "model-00001-of-00002.safetensors"
    tensors = load_file(file)
    lost = sorted(tensors)[0]
    save_file({key: tensors[key] for key in tensors if key != lost}, file, {"format": "pt"})
    assert f"names tensors that its shards do not hold: 1 ({lost})" in refusal(source)


def test_a_folder_without_a_config_is_told_what_is_missing(folder: Path, tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    shutil.copytree(folder, bare, ignore=shutil.ignore_patterns("config.json"))
    (tmp_path / "empty").mkdir()
    for found in (bare, tmp_path / "empty"):
        said = refusal(found)
        assert "there is no config.json" in said and "spelling" not in said


@pytest.mark.parametrize("index", ['{"weight_map": 3}', "[]", "{", '{"weight_map": {"a": 7}}'])
def test_an_index_that_is_none_is_said(folder: Path, tmp_path: Path, index: str) -> None:
    source = sharded(folder, tmp_path / "m")
    (source / "model.safetensors.index.json").write_text(index)
    assert "model.safetensors.index.json" in refusal(source)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "float64"])
def test_every_value_that_is_not_finite_is_found(dtype: str) -> None:
    value = torch.ones(3, 5, dtype=getattr(torch, dtype))
    assert is_finite(value)
    for wrong in ("nan", "inf", "-inf"):
        damaged = value.clone()
        damaged[2, 4] = float(wrong)
        assert not is_finite(damaged)
    assert is_finite(torch.zeros(0))
    assert is_finite(torch.arange(3))


@pytest.mark.parametrize("kind", MULTIMODAL)
def test_multimodal_models_are_loaded_for_their_text(tmp_path: Path, kind: str) -> None:
    model: Any = multimodal_model(kind)
    subject = load(save_with_tokenizer(model, tmp_path / kind))
    assert (subject.n_layers, subject.n_heads, subject.width) == (2, 4, 32)
    assert subject.context == 64
    ids = torch.arange(70, 79)[None]
    mask = torch.ones_like(ids)
    expected = model(input_ids=ids, attention_mask=mask).logits
    found = subject.model(input_ids=ids, attention_mask=mask).logits
    torch.testing.assert_close(found, expected.detach())
    with pytest.raises(RefusalCliffError, match="context of 64"):
        check_prompt(subject, Prompt("p", "w" * 60, "harmful"))


def test_a_vision_tower_beside_a_text_model_is_left_out(tmp_path: Path) -> None:
    """Llama 4 is loaded as its text model, although the checkpoint holds more."""
    from refusal_cliff.model.weights import check_loaded

    class WithVision(type(tiny_model().config)):
        sub_configs: ClassVar = {"vision_config": type(tiny_model().config)}  # type: ignore

    model = tiny_model()
    config = WithVision(**model.config.to_dict())
    report = {
        "missing_keys": set(),
        "mismatched_keys": set(),
        "unexpected_keys": {"model.visual.blocks.0.attn.qkv.weight", "vision_tower.patch.weight"},
    }
    with pytest.raises(RefusalCliffError, match=r"2 \(model.visual.*are in the files"):
        check_loaded("m", model, config, report)
    config.vision_config = type(model.config)()
    check_loaded("m", model, config, report)
    report["unexpected_keys"].add("model.layers.0.self_attn.q_proj.bias")
    with pytest.raises(RefusalCliffError, match=r"1 \(model.layers.0.self_attn.q_proj.bias"):
        check_loaded("m", model, config, report)


def test_tokens_of_every_conversation_need_an_embedding() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens(["<turn>"], special_tokens=True)
    subject = subject_of("spare", tiny_model(), tokenizer)  # nothing writes it
    assert subject.vocabulary == VOCABULARY
    with pytest.raises(RefusalCliffError, match=r"'p' holds the token '<turn>'"):
        check_prompt(subject, Prompt("p", "Is <turn> a word?", "harmful"))
    assert isinstance(tokenizer.chat_template, str)
    tokenizer.chat_template = tokenizer.chat_template.replace("assistant", "<turn>assistant")
    with pytest.raises(RefusalCliffError, match=r"262 tokens .*for 261.*1 \('<turn>'\)"):
        subject_of("lacking", tiny_model(), tokenizer)


@pytest.mark.parametrize("device", ["cuda:99", "meta", "mps", "abacus", "cpu:x", ""])
def test_a_device_that_is_not_there_is_said_before_anything_is_read(device: str) -> None:
    if device == "mps" and torch.backends.mps.is_available():
        pytest.skip("there is such a device")
    with pytest.raises(
        RefusalCliffError, match=r"The device .* cannot be used here.*Give --device"
    ):
        load_subject("tiny", device=device)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has CUDA")
def test_the_command_says_that_there_is_no_cuda(tmp_path: Path) -> None:
    (tmp_path / "p.jsonl").write_text('{"prompt": "Hello", "label": "benign"}\n')
    command = ["generate", "--prompts", str(tmp_path / "p.jsonl"), "--model", "tiny"]
    done = CliRunner().invoke(app, [*command, "--device", "cuda", "--out", str(tmp_path / "o")])
    assert done.exit_code == 1
    assert "device 'cuda' cannot be used here" in " ".join(done.output.split())


@pytest.mark.parametrize(
    "fields",
    [
        {"model_type": "no_such_model"},
        {"hidden_size": "wide"},
        {"num_attention_heads": 0},
        {"num_hidden_layers": -1},
        {"vocab_size": None},
        {"rope_parameters": []},
        {"layer_types": ["full_attention"]},
        {"hidden_act": "no_such_function"},
    ],
)
def test_a_configuration_of_nonsense_is_said(
    folder: Path, tmp_path: Path, fields: dict[str, Any]
) -> None:
    shutil.copytree(folder, tmp_path / "m")
    refusal(with_config(tmp_path / "m", **fields))


def test_a_folder_without_weights_passes_the_files_and_is_named(tmp_path: Path) -> None:
    check_files(tmp_path)
    assert "safetensors" in refusal(tmp_path)


@pytest.mark.parametrize(
    "name", ["x" * 5000, "a\0b", "a/" * 600, "", "..", "/dev/null", "org/na me"]
)
def test_any_name_may_be_given(name: str) -> None:
    with pytest.raises(RefusalCliffError):
        load_subject(name, device="cpu")


def test_docstrings_are_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "__doc__", None)  # as under python -OO
    with pytest.raises(RefusalCliffError, match=r"without docstrings \(PYTHONOPTIMIZE=2"):
        load_subject("tiny")


@pytest.mark.parametrize(
    "name",
    ["config.json", "generation_config.json", "tokenizer_config.json", "tokenizer.json"],
)
@pytest.mark.parametrize("content", ["", "[]", '{"eos_token_id": 3'])
def test_a_damaged_configuration_is_said(
    folder: Path, tmp_path: Path, name: str, content: str
) -> None:
    model = shutil.copytree(folder, tmp_path / "model")
    (model / name).write_text(content)
    assert f"{model / name} is damaged" in refusal(model)


def test_a_damaged_template_is_said(folder: Path, tmp_path: Path) -> None:
    model = shutil.copytree(folder, tmp_path / "model")
    (model / "chat_template.jinja").write_bytes(b"\xff\xfe")
    assert f"{model / 'chat_template.jinja'} is damaged" in refusal(model)


@pytest.mark.parametrize("token", ["x", [[1]], -1, 2.5, True])
def test_an_end_that_is_no_token_is_said(folder: Path, tmp_path: Path, token: Any) -> None:
    model = shutil.copytree(folder, tmp_path / "model")
    (model / "generation_config.json").write_text(json.dumps({"eos_token_id": token}))
    assert "generation_config.json" in refusal(model)


def as_type(kind: torch.dtype) -> Callable[[Tensors], Tensors]:
    def changed(tensors: Tensors) -> Tensors:
        return {k: v.to(kind) if "o_proj.weight" in k else v for k, v in tensors.items()}

    return changed


@pytest.mark.parametrize("kind", [torch.int8, torch.uint8, torch.float8_e4m3fn, torch.complex64])
def test_weights_without_their_scales_are_refused(
    folder: Path, tmp_path: Path, kind: torch.dtype
) -> None:
    edited(folder, tmp_path / "model", as_type(kind))
    assert "names no quantisation" in refusal(tmp_path / "model")


def test_an_unknown_quantisation_is_not_ignored(folder: Path, tmp_path: Path) -> None:
    model = shutil.copytree(folder, tmp_path / "model")
    with_config(model, quantization_config={"quant_method": "modelopt"})
    assert "quantised by 'modelopt'" in refusal(tmp_path / "model")


def test_scales_of_a_cache_change_nothing(folder: Path, tmp_path: Path) -> None:
    def scaled(tensors: Tensors) -> Tensors:
        names = ("k_scale", "v_scale", "k_proj.k_scale", "v_proj.output_scale")
        one = torch.tensor(0.5)
        return tensors | {f"model.layers.0.self_attn.{n}": one.clone() for n in names}

    edited(folder, tmp_path / "model", scaled)
    assert load(tmp_path / "model").fingerprint == load(folder).fingerprint


def test_scales_of_weights_name_the_quantisation(folder: Path, tmp_path: Path) -> None:
    more = {"model.layers.0.self_attn.o_proj.weight_scale": torch.ones(1)}
    edited(folder, tmp_path / "model", lambda tensors: tensors | more)
    assert "It is quantised in a way" in refusal(tmp_path / "model")


def test_a_checkpoint_in_8_bits_is_what_it_stands_for(folder: Path, tmp_path: Path) -> None:
    """Without a GPU transformers takes the scales in; all of it is then of one precision."""
    block = {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [16, 16]}
    stands_for: Tensors = {}

    def in_8_bits(tensors: Tensors) -> Tensors:
        found = dict(tensors)
        for key, value in tensors.items():
            if key.endswith("proj.weight"):
                blocks = [-(-n // 16) for n in value.shape]
                found[key] = (value * 100).to(torch.float8_e4m3fn)
                found[f"{key}_scale_inv"] = torch.full(blocks, 1 / 128)
                stands_for[key] = found[key].float() / 128
        return found

    with_config(edited(folder, tmp_path / "model", in_8_bits), quantization_config=block)
    model = load(tmp_path / "model").model
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    for key, value in stands_for.items():
        assert torch.equal(model.get_parameter(key), value)
