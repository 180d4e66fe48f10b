"""A model is understood by its structure, whatever its architecture; what cannot be, is said."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_chat import save_tiny, tiny_model, tiny_tokenizer
from tiny_families import FAMILIES, HEAD_WIDTH, HEADS, LAYERS, WIDTH, family_subject
from transformers import MambaConfig, MambaForCausalLM

from refusal_cliff.errors import RefusalCliffError
from refusal_cliff.model.subject import Head, Subject, load_subject, parse_head, subject_of
from refusal_cliff.settings import DTYPES


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("tiny"))


def load(folder: Path, dtype: str = "float32") -> Subject:
    return load_subject(str(folder), dtype=dtype, device="cpu")


def test_a_saved_checkpoint_is_loaded_as_it_was(folder: Path) -> None:
    subject, model = load(folder), tiny_model()
    assert (subject.name, subject.source) == (str(folder), folder)
    assert (subject.n_layers, subject.n_heads, subject.head_width(1), subject.width) == (
        2,
        4,
        8,
        32,
    )
    assert subject.n_parameters == sum(p.numel() for p in model.parameters())
    assert (subject.format.opener, subject.format.opened_by_prompt) == ("<think>", True)
    assert not subject.model.training
    assert not any(p.requires_grad for p in subject.model.parameters())
    ids = torch.arange(9)[None]
    torch.testing.assert_close(subject.model(ids).logits, model(ids).logits.detach())


@pytest.mark.parametrize("dtype", DTYPES)
def test_weights_have_the_dtype_asked_for(folder: Path, dtype: str) -> None:
    assert load(folder, dtype).model.dtype == getattr(torch, dtype)


@pytest.mark.parametrize("family", FAMILIES)
def test_blocks_and_heads_are_found(family: str) -> None:
    subject = family_subject(family)
    paths = {module: name for name, module in subject.model.named_modules()}
    blocks, attention = (
        ("transformer.h", "attn.c_proj")
        if family == "gpt2"
        else ("model.layers", "self_attn.o_proj")
    )
    assert [paths[b.module] for b in subject.blocks] == [f"{blocks}.{i}" for i in range(LAYERS)]
    assert [paths[subject.projection(n)] for n in range(1, LAYERS + 1)] == [
        f"{blocks}.{i}.{attention}" for i in range(LAYERS)
    ]
    assert subject.width == WIDTH
    heads = subject.heads()
    assert heads == sorted(heads)
    assert set(heads) == {Head(layer, i) for layer in range(1, LAYERS + 1) for i in range(HEADS)}


@pytest.mark.parametrize("family", FAMILIES)
def test_columns_of_the_heads_add_up_to_the_projection(family: str) -> None:
    subject = family_subject(family)
    assert subject.head_width(2) == HEAD_WIDTH[family]
    projection = subject.projection(2)
    inputs = torch.randn(5, HEADS, HEAD_WIDTH[family])
    parts = torch.einsum("dhk,nhk->nd", subject.blocks[1].columns(), inputs)
    offset = projection(torch.zeros(1, HEADS * HEAD_WIDTH[family]))
    torch.testing.assert_close(parts + offset, projection(inputs.flatten(1)))


def test_the_fingerprint_is_that_of_the_content(folder: Path, tmp_path: Path) -> None:
    original = load(folder).fingerprint
    assert load(folder).fingerprint == original
    assert load(save_tiny(tmp_path / "copy")).fingerprint == original
    assert load(folder, "bfloat16").fingerprint != original
    model = tiny_model()
    with torch.no_grad():
        model.lm_head.weight[7, 3] += 1e-3
    assert subject_of("changed", model, tiny_tokenizer()).fingerprint != original
    other = tiny_tokenizer()
    assert isinstance(other.chat_template, str)
    other.chat_template += "\n"
    assert subject_of("other template", tiny_model(), other).fingerprint != original


def test_an_unknown_model_is_named() -> None:
    with pytest.raises(RefusalCliffError, match=r"'no-such/model'.*embedded organism: .*tiny"):
        load_subject("no-such/model", device="cpu")


def test_a_folder_without_a_checkpoint_is_named(tmp_path: Path) -> None:
    with pytest.raises(RefusalCliffError, match=f"Could not load the model '{tmp_path}'"):
        load_subject(str(tmp_path), device="cpu")


def test_an_unknown_dtype_is_refused(folder: Path) -> None:
    with pytest.raises(RefusalCliffError, match=r"'int3'.*float32, bfloat16"):
        load(folder, "int3")


def test_an_unknown_device_is_refused(folder: Path) -> None:
    with pytest.raises(RefusalCliffError, match="abacus"):
        load_subject(str(folder), device="abacus")


def test_a_model_without_chat_template_is_refused() -> None:
    with pytest.raises(RefusalCliffError, match="no chat template"):
        subject_of("base", tiny_model(), tiny_tokenizer(template=None))


def test_a_model_without_attention_is_refused() -> None:
    config = MambaConfig(vocab_size=261, hidden_size=8, state_size=4, num_hidden_layers=2)
    with pytest.raises(RefusalCliffError, match=r"No block of mamba .*MambaMixer.*Use a transf"):
        subject_of("mamba", MambaForCausalLM(config), tiny_tokenizer())


@pytest.mark.parametrize("implementation", ["eager", "sdpa", "flex_attention"])
def test_heads_are_counted_where_they_attend(implementation: str) -> None:
    model = tiny_model()
    model.set_attn_implementation(implementation)
    model.config.num_attention_heads = 5
    subject = subject_of("four", model, tiny_tokenizer())
    assert subject.n_heads == 4
    assert model.config._attn_implementation == implementation


@given(st.integers(0, 10**6), st.integers(0, 10**6))
def test_a_head_is_read_as_it_was_written(layer: int, index: int) -> None:
    assert parse_head(str(Head(layer, index))) == Head(layer, index)


@pytest.mark.parametrize("text", ["", "7", "7.", ".3", "7.12.1", "-1.2", "a.b", "1. 2", "1,2", "²"])
def test_what_is_no_head_is_refused(text: str) -> None:
    with pytest.raises(RefusalCliffError, match=r"Write layer\.head"):
        parse_head(text)
