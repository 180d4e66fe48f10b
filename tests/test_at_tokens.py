"""What each head adds at every token, against the same multiplied out by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from numpy.typing import NDArray
from tiny_families import FAMILIES, HEADS, LAYERS, TRACES, family_subject, probe
from tiny_heads import head_row

from refusal_cliff import tables
from refusal_cliff.data.types import Trace, closed_spans
from refusal_cliff.errors import RefusalCliffError
from refusal_cliff.heads import at_tokens
from refusal_cliff.heads.at_tokens import (
    AS_IT_IS,
    HEADS_OUT,
    TokenRow,
    head_contributions,
    read_token_rows,
    told_heads,
    write_token_rows,
)
from refusal_cliff.heads.effects import direct_contributions
from refusal_cliff.model.subject import Head, Subject

TOLD = (Head(2, 3), Head(1, 0), Head(3, 1))


def projection_of(subject: Subject, layer: int) -> tuple[torch.nn.Module, torch.Tensor]:
    """The output projection as transformers names it, and its weight, [width, heads × width]."""
    model: Any = subject.model
    if subject.name == "gpt2":
        module = model.transformer.h[layer - 1].attn.c_proj
        return module, module.weight.T
    module = model.model.layers[layer - 1].self_attn.o_proj
    return module, module.weight


@torch.inference_mode()
def by_hand(subject: Subject, trace: Trace, layer: int) -> NDArray[np.float64]:
    """[layers, heads, tokens]: each head's slice of the projection's input times its slice of W."""
    weight = torch.as_tensor(probe(layer).weight, dtype=torch.float64)
    inputs: list[torch.Tensor] = []
    handles = [
        projection_of(subject, block)[0].register_forward_pre_hook(
            lambda _, given: inputs.append(given[0][0].double())
        )
        for block in range(1, layer + 1)
    ]
    subject.model(torch.tensor([trace.token_ids]))
    for handle in handles:
        handle.remove()
    found = np.zeros((LAYERS, HEADS, len(trace.token_ids)))
    for at, given in enumerate(inputs):
        matrix = projection_of(subject, at + 1)[1].double()
        width = matrix.shape[1] // HEADS
        parts = [slice(head * width, (head + 1) * width) for head in range(HEADS)]
        written = torch.stack([given[:, part] @ matrix[:, part].T for part in parts])
        if subject.name == "gemma2":
            norm: Any = subject.model.get_submodule(f"model.layers.{at}.post_attention_layernorm")
            whole = written.sum(0).square().mean(-1, keepdim=True)
            gain = 1 + norm.get_parameter("weight").double()
            written = written * torch.rsqrt(whole + norm.eps) * gain
        found[at] = (written @ weight).numpy()
    return found


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("layer", [2, LAYERS])
def test_contributions_are_those_by_hand(family: str, layer: int) -> None:
    subject = family_subject(family)
    found = list(head_contributions(subject, TRACES, probe(layer), TOLD))
    assert len(found) == len(TRACES)
    for trace, values in zip(TRACES, found, strict=True):
        every = by_hand(subject, trace, layer)
        told = np.stack([every[head.layer - 1, head.index] for head in TOLD])
        expected = np.concatenate([told, [every.sum((0, 1)) - told.sum(0)]])
        assert values.shape == (len(TOLD) + 1, len(trace.token_ids))
        np.testing.assert_allclose(values, expected, atol=1e-4 * np.abs(every).max())
    if layer == 2:
        assert all(not values[2].any() for values in found)  # a head after the probe's block


def test_at_the_last_closing_token_they_are_the_direct_contributions() -> None:
    subject = family_subject("qwen3")
    direct = direct_contributions(subject, TRACES, probe()).closing
    found = list(head_contributions(subject, TRACES, probe(), TOLD))
    for row, (trace, values) in enumerate(zip(TRACES, found, strict=True)):
        at = closed_spans(trace).last_closing
        expected = [direct[row, head.layer - 1, head.index] for head in TOLD]
        np.testing.assert_allclose(values[:-1, at], expected, rtol=1e-4, atol=1e-5)
        assert values[:, at].sum() == pytest.approx(direct[row].sum(), abs=1e-4)


def test_little_memory_gives_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    subject = family_subject("llama")
    whole = list(head_contributions(subject, TRACES, probe(), TOLD))
    monkeypatch.setattr(at_tokens, "_FLOATS_AT_ONCE", 1)
    steps: list[tuple[int, int]] = []
    parts = head_contributions(
        subject, TRACES, probe(), TOLD, lambda done, total: steps.append((done, total))
    )
    for one, other in zip(whole, parts, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-4)
    assert steps == [(n, len(TRACES)) for n in range(1, len(TRACES) + 1)]


def test_the_heads_taken_out_are_told_first() -> None:
    rows = [head_row(index, 0.0, direct=direct) for index, direct in enumerate((-3, 0.1, 2, -1))]
    assert told_heads(rows, [Head(1, 1), Head(1, 3)], most=3) == (
        Head(1, 3),
        Head(1, 1),
        Head(1, 0),
    )


def test_the_table_comes_back_as_it_was(tmp_path: Path) -> None:
    values = np.arange(12, dtype=np.float32).reshape(3, 4)
    rows = [
        TokenRow("a", AS_IT_IS, ["x", "", "\n", "é"], TOLD[:2], values),
        TokenRow("b", AS_IT_IS, ["not", "wanted"]),
        TokenRow("a", HEADS_OUT, ["\ud800"]),
    ]
    write_token_rows(tmp_path / "tokens.parquet", rows)
    first, second = read_token_rows(tmp_path / "tokens.parquet", {"a"})
    assert (first.trace_id, first.side, first.heads) == ("a", AS_IT_IS, TOLD[:2])
    assert list(first.pieces) == ["x", "", "\n", "é"]
    assert first.values is not None
    assert np.array_equal(first.values, values)
    assert (second.heads, second.values, list(second.pieces)) == ((), None, ["?"])


def test_the_table_is_read_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "tokens.parquet"
    values = np.arange(12, dtype=np.float32).reshape(3, 4)
    rows = [TokenRow(f"p{n}", AS_IT_IS, list("abcd"), TOLD[:2], values + n) for n in range(40)]
    monkeypatch.setattr(at_tokens, "_TOKENS_AT_ONCE", 20)
    monkeypatch.setattr(tables, "_BYTES_AT_ONCE", 500)
    write_token_rows(path, rows)
    assert len(list(tables.read_parquet_parts(path, at_tokens.SCHEMA))) > 4
    found = read_token_rows(path, {"p3", "p39"})
    assert [row.trace_id for row in found] == ["p3", "p39"]
    assert found[1].values is not None
    assert np.array_equal(found[1].values, values + 39)


@pytest.mark.parametrize("values", [None, [[1], [2, 3], [4, 5]], [None, [1, 2], [3, 4]], [[1, 2]]])
def test_values_that_do_not_fit_the_tokens_are_refused(values: object, tmp_path: Path) -> None:
    row = {"trace_id": "a", "side": AS_IT_IS, "pieces": ["x", "y"], "heads": ["1.0", "1.1"]}
    table = pa.Table.from_pylist([{**row, "values": values}], schema=at_tokens.SCHEMA)
    tables.write_parquet(tmp_path / "tokens.parquet", table)
    with pytest.raises(RefusalCliffError, match="does not fit the tokens of 'a'"):
        read_token_rows(tmp_path / "tokens.parquet", {"a"})
