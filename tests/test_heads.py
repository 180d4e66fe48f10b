"""The two measures of a head equal their slow, obvious definitions; planted heads come first."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from tiny_chat import tiny_tokenizer
from tiny_families import (
    FAMILIES,
    HEADS,
    LAYERS,
    WIDTH,
    causal_by_whole_passes,
    closed_trace,
    family_model,
    family_subject,
    final_logit,
    linear_probe,
)

from refusal_cliff import heads as heads_module
from refusal_cliff.errors import RefusalCliffError
from refusal_cliff.heads import (
    METHODS,
    HeadRow,
    budget,
    causal_effects,
    direct_contributions,
    measure_heads,
    ranked,
    read_heads,
    select_heads,
    write_heads,
)
from refusal_cliff.models import Head, Subject, subject_of
from refusal_cliff.probe import Probe
from refusal_cliff.traces import Prompt, Trace

LENGTHS = ((5, 9, 4, 3), (8, 30, 1, 5), (3, 0, 6, 2), (12, 17, 2, 1), (4, 9, 4, 0))
TRACES = [closed_trace(*lengths, seed=seed) for seed, lengths in enumerate(LENGTHS)]
BENIGN = [closed_trace(6, 8, 3, 4, seed=seed, label="benign") for seed in range(20, 23)]


def probe(layer: int = LAYERS) -> Probe:
    return linear_probe(layer, np.random.default_rng(3).normal(size=WIDTH).astype(np.float32))


def brute_force(subject: Subject, reading: Probe) -> NDArray[np.float64]:
    effects = np.zeros((len(TRACES), LAYERS, HEADS))
    for row, trace in enumerate(TRACES):
        for head in subject.heads():
            effect = causal_by_whole_passes(subject, trace, reading, head)
            effects[row, head.layer - 1, head.index] = effect
    return effects


def assert_causal_is_brute_force(subject: Subject, layer: int) -> None:
    expected = brute_force(subject, probe(layer))
    got = causal_effects(subject, TRACES, probe(layer))
    assert np.abs(expected).max() > 1
    assert np.abs(got - expected).max() < 1e-5 * np.abs(expected).max()
    assert not got[:, layer:].any()
    assert got[:, :layer].all()


@pytest.mark.parametrize("layer", [1, 2, 3])
@pytest.mark.parametrize("family", FAMILIES)
def test_causal_effects_are_those_of_whole_forward_passes(family: str, layer: int) -> None:
    assert_causal_is_brute_force(family_subject(family), layer)


def test_causal_effects_in_small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heads_module, "TRACES_AT_ONCE", 2)
    assert_causal_is_brute_force(family_subject("qwen3"), LAYERS)
    done: list[tuple[int, int]] = []
    causal_effects(family_subject("qwen3"), TRACES, probe(), lambda *now: done.append(now))
    assert done == [(2, 5), (4, 5), (5, 5)]


def test_causal_effects_with_a_window_shorter_than_the_thinking() -> None:
    torch.manual_seed(0)
    model = family_model("gemma2", sliding_window=5)
    assert_causal_is_brute_force(subject_of("windowed", model, tiny_tokenizer()), LAYERS)


def test_causal_effects_with_eager_attention() -> None:
    torch.manual_seed(0)
    model = family_model("llama", attn_implementation="eager")
    assert_causal_is_brute_force(subject_of("eager", model, tiny_tokenizer()), LAYERS)


def test_a_model_whose_blocks_cannot_be_run_alone_is_refused() -> None:
    subject = family_subject("qwen3")
    calls = iter(range(100))

    def remember(module: torch.nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        del module
        return (args[0] + next(calls), *args[1:])

    subject.blocks[1].module.register_forward_pre_hook(remember)
    with pytest.raises(RefusalCliffError, match="blocks of qwen3 cannot be run one by one"):
        causal_effects(subject, TRACES, probe())


def test_a_trace_that_never_closed_is_named() -> None:
    open_trace = Trace(Prompt("endless", "?", "harmful"), (9, 9), None, "", "", complete=False)
    for measure in (causal_effects, direct_contributions):
        with pytest.raises(ValueError, match="endless"):
            measure(family_subject("qwen3"), [open_trace], probe())


@torch.inference_mode()
def without_heads(subject: Subject, trace: Trace, layer: int) -> torch.Tensor:
    """Embedding, MLP outputs and projection biases up to a block, added up at the last closing."""
    parts: list[torch.Tensor] = []

    def keep_input(module: torch.nn.Module, args: tuple[Any, ...]) -> None:
        del module
        parts.append(args[0])

    def keep_output(module: torch.nn.Module, args: object, output: torch.Tensor) -> None:
        del module, args
        parts.append(output)

    blocks = [block.module for block in subject.blocks[:layer]]
    handles = [blocks[0].register_forward_pre_hook(keep_input)]
    handles += [block.get_submodule("mlp").register_forward_hook(keep_output) for block in blocks]
    subject.model(torch.tensor([trace.token_ids]))
    for handle in handles:
        handle.remove()
    assert trace.spans is not None
    total = torch.stack(parts)[:, 0, trace.spans.last_closing].double().sum(0)
    projections = [subject.projection(number) for number in range(1, layer + 1)]
    biases = [getattr(projection, "bias", None) for projection in projections]
    return total + sum(bias.double() for bias in biases if bias is not None)


@pytest.mark.parametrize("layer", [2, 3])
@pytest.mark.parametrize("family", ["qwen3", "llama", "gpt2"])
def test_direct_contributions_and_the_rest_are_the_whole_logit(family: str, layer: int) -> None:
    subject, reading = family_subject(family), probe(layer)
    direct = direct_contributions(subject, TRACES, reading)
    assert direct.shape == (len(TRACES), LAYERS, HEADS)
    assert not direct[:, layer:].any()
    for trace, of_heads in zip(TRACES, direct, strict=True):
        rest = without_heads(subject, trace, layer).numpy() @ reading.weight + reading.bias
        whole = final_logit(subject, trace, reading)
        size = np.abs(of_heads).sum() + abs(rest)
        assert abs(of_heads.sum() + rest - whole) < 1e-4 * size
        assert abs(rest - whole) > 1e-3 * size


@pytest.mark.parametrize("family", ["qwen3", "llama", "gpt2"])
def test_both_measures_agree_where_nothing_reads_the_head(family: str) -> None:
    """In the probe's own block, without its MLP, a head acts by its direct contribution only."""
    subject = family_subject(family)

    def silence(module: torch.nn.Module, args: object, output: torch.Tensor) -> torch.Tensor:
        del module, args
        return torch.zeros_like(output)

    subject.blocks[-1].module.get_submodule("mlp").register_forward_hook(silence)
    direct = direct_contributions(subject, TRACES, probe())[:, -1]
    causal = causal_effects(subject, TRACES, probe())[:, -1]
    np.testing.assert_allclose(causal, -direct, rtol=1e-4, atol=1e-4)


def planted(head: Head) -> Subject:
    """A model where one head, and no other so strongly, writes against the probe's direction."""
    subject = family_subject("llama")
    attention = subject.blocks[head.layer - 1].module.get_submodule("self_attn")
    against = -torch.from_numpy(probe().weight)
    width = subject.head_width(head.layer)
    group = head.index * 2 // HEADS
    with torch.no_grad():
        attention.get_parameter("v_proj.bias")[group * width : (group + 1) * width] = 3.0
        columns = attention.get_parameter("o_proj.weight").unflatten(1, (HEADS, width))
        columns[:, head.index] = against[:, None]
    return subject


@pytest.mark.parametrize("head", [Head(1, 3), Head(3, 0)])
def test_a_planted_head_is_ranked_first_and_selected(head: Head) -> None:
    rows = measure_heads(planted(head), TRACES, [], BENIGN, probe())
    for method in METHODS:
        assert ranked(rows, method)[0] == head
        assert select_heads(rows, method=method) == [head]
    assert rows[(head.layer - 1) * HEADS + head.index].sign_consistency == 1.0


def test_rows_are_means_over_the_traces() -> None:
    subject, reading = family_subject("llama"), probe(2)
    refused = BENIGN[:2]
    done: list[tuple[int, int]] = []
    rows = measure_heads(
        subject, TRACES, refused, BENIGN, reading, progress=lambda *now: done.append(now)
    )
    assert done == [(5, 8), (8, 8)]
    assert [row.head for row in rows] == subject.heads()
    causal = causal_effects(subject, TRACES, reading)
    means = {
        "causal": causal.mean(0),
        "causal_benign": causal_effects(subject, BENIGN, reading).mean(0),
        "direct": direct_contributions(subject, TRACES, reading).mean(0),
        "direct_refused": direct_contributions(subject, refused, reading).mean(0),
        "sign_consistency": (np.sign(causal) == np.sign(causal.mean(0))).mean(0),
    }
    for name, expected in means.items():
        got = [getattr(row, name) for row in rows]
        np.testing.assert_allclose(got, expected.ravel(), rtol=1e-5, atol=1e-6)
    assert all(row.causal_low <= row.causal <= row.causal_high for row in rows)
    assert measure_heads(subject, TRACES, refused, BENIGN, reading) == rows


def row(
    index: int, causal: float, low: float, direct: float = 0.0, refused: float | None = None
) -> HeadRow:
    return HeadRow(1, index, causal, low, causal + 1, 0.0, 1.0, direct, refused)


@pytest.mark.parametrize(
    ("total", "fraction", "expected"),
    [(12, 0.03, 1), (100, 0.03, 3), (144, 0.03, 4), (200, 0.03, 6), (1152, 0.03, 34), (5, 0.6, 3)],
)
def test_the_budget_is_rounded_down_but_not_to_nothing(
    total: int, fraction: float, expected: int
) -> None:
    assert budget(total, fraction) == expected


def test_selected_are_the_strongest_whose_interval_is_above_zero() -> None:
    rows = [row(0, 1, 0.5), row(1, 4, -0.1), row(2, -9, -10), row(3, 3, 0.1), row(4, 2, 1)]
    assert ranked(rows) == [Head(1, index) for index in (1, 3, 4, 0, 2)]
    assert select_heads(rows, 0.2) == []  # the only head in the budget is not certain
    assert select_heads(rows, 0.6) == [Head(1, 3), Head(1, 4)]
    assert select_heads(rows, 1.0) == [Head(1, 3), Head(1, 4), Head(1, 0)]


def test_direct_rankings_select_by_sign_alone() -> None:
    rows = [row(0, 1, 1, 5.0, refused=6.0), row(1, 1, -1, -2.0, refused=-3.0), row(2, 1, 1, -1.0)]
    assert select_heads(rows, 1.0, "direct") == [Head(1, 1), Head(1, 2)]
    assert select_heads(rows, 1.0, "direct-contrast") == [Head(1, 0), Head(1, 2)]


def test_rows_are_read_as_they_were_written(tmp_path: Path) -> None:
    rows = [row(0, 0.1, -0.2, 0.3, refused=1 / 3), row(1, 1e-30, -7.0, -0.0)]
    write_heads(tmp_path / "heads.parquet", rows)
    assert read_heads(tmp_path / "heads.parquet") == rows
