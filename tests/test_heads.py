"""The two measures of a head equal their slow, obvious definitions; planted heads come first."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from numpy.typing import NDArray
from tiny_chat import tiny_tokenizer
from tiny_families import (
    BENIGN,
    FAMILIES,
    HEADS,
    LAYERS,
    TRACES,
    causal_by_whole_passes,
    family_model,
    family_subject,
    final_logit,
    logits_of,
    planted,
    probe,
)
from tiny_heads import head_row

from refusal_cliff.data.types import Prompt, Trace, closed_spans
from refusal_cliff.errors import RefusalCliffError
from refusal_cliff.heads import effects, rerun
from refusal_cliff.heads import effects as effects_module
from refusal_cliff.heads.effects import (
    attributed_effects,
    causal_effects,
    direct_contributions,
    falls,
    head_effects,
)
from refusal_cliff.heads.rerun import Rerun, score_readout
from refusal_cliff.heads.table import (
    METHODS,
    Estimate,
    HeadRow,
    budget,
    measure_heads,
    ranked,
    read_heads,
    select_heads,
    write_heads,
)
from refusal_cliff.model.ablation import ablated
from refusal_cliff.model.blocks import decoder_of
from refusal_cliff.model.subject import Head, Subject, subject_of
from refusal_cliff.probe.fit import Probe


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
    monkeypatch.setattr(effects_module, "TRACES_AT_ONCE", 2)
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
    for measure in (causal_effects, attributed_effects, direct_contributions):
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
    direct = direct_contributions(subject, TRACES, reading).closing
    assert direct.shape == (len(TRACES), LAYERS, HEADS)
    assert not direct[:, layer:].any()
    for trace, of_heads in zip(TRACES, direct, strict=True):
        rest = without_heads(subject, trace, layer).numpy() @ reading.weight + reading.bias
        whole = final_logit(subject, trace, reading)
        size = np.abs(of_heads).sum() + abs(rest)
        assert abs(of_heads.sum() + rest - whole) < 1e-4 * size
        assert abs(rest - whole) > 1e-3 * size


def silence(module: torch.nn.Module, args: object, output: torch.Tensor) -> torch.Tensor:
    del module, args
    return torch.zeros_like(output)


@pytest.mark.parametrize("family", ["qwen3", "llama", "gpt2"])
def test_both_measures_agree_where_nothing_reads_the_head(family: str) -> None:
    """In the probe's own block, without its MLP, a head acts by its direct contribution only."""
    subject = family_subject(family)
    subject.blocks[-1].module.get_submodule("mlp").register_forward_hook(silence)
    direct = direct_contributions(subject, TRACES, probe()).closing[:, -1]
    causal = causal_effects(subject, TRACES, probe())[:, -1]
    np.testing.assert_allclose(causal, -direct, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("head", [Head(1, 3), Head(3, 0)])
def test_a_planted_head_is_ranked_first_and_selected(head: Head) -> None:
    rows = measure_heads(planted(head), TRACES, [], BENIGN, probe())
    for method in METHODS:
        assert ranked(rows, method)[0] == head
        assert select_heads(rows, method=method, proven=False) == [head]
        assert select_heads(rows, method=method) == []  # its traces do not fall, see below
    assert rows[(head.layer - 1) * HEADS + head.index].causal.consistency == 1.0


def test_rows_are_means_over_the_traces() -> None:
    subject, reading = family_subject("llama"), probe(2)
    refused = BENIGN[:2]
    done: list[tuple[int, int]] = []
    rows = measure_heads(
        subject, TRACES, refused, BENIGN, reading, progress=lambda *now: done.append(now)
    )
    assert done == [(5, 10), (8, 10), (10, 10)]
    assert [row.head for row in rows] == subject.heads()
    for suffix, traces in (("", TRACES), ("_benign", BENIGN), ("_refused", refused)):
        direct = direct_contributions(subject, traces, reading)
        measures = {
            "causal": causal_effects(subject, traces, reading),
            "attribution": attributed_effects(subject, traces, reading),
            "direct": direct.closing,
            "plateau": direct.plateau,
        }
        for name, values in measures.items():
            if name + suffix in HeadRow.__annotations__:
                check_estimates([getattr(row, name + suffix) for row in rows], values)
    assert measure_heads(subject, TRACES, refused, BENIGN, reading) == rows
    without = measure_heads(subject, TRACES, [], BENIGN, reading)
    assert all(row.causal_refused is None and row.direct_refused is None for row in without)


def check_estimates(got: list[Estimate], values: NDArray[Any]) -> None:
    expected = values.mean(0)
    alike = (np.sign(values) == np.sign(expected)).mean(0).ravel()
    np.testing.assert_allclose([e.mean for e in got], expected.ravel(), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose([e.consistency for e in got], alike)
    assert all(e.low <= e.mean <= e.high and e.n == len(values) for e in got)
    assert any(e.low < e.mean < e.high for e in got)


@pytest.mark.parametrize("attributed", [True, False])
def test_all_measures_come_from_two_runs_of_whole_traces(
    attributed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of the single functions to the last digit: one run is read, one keeps thoughts."""
    subject, reading, runs = family_subject("qwen3"), probe(2), list[str]()
    direct = direct_contributions(subject, TRACES, reading)
    alone = {
        "causal": causal_effects(subject, TRACES, reading),
        "attribution": attributed_effects(subject, TRACES, reading) if attributed else None,
        "direct": direct.closing,
        "plateau": direct.plateau,
        "falls": falls(subject, TRACES, reading),
    }
    for module, name in ((effects, "read_logits"), (rerun, "_thoughts")):
        whole = getattr(module, name)

        def counted(*args: Any, whole: Any = whole, name: str = name, **more: Any) -> Any:
            runs.append(name)
            return whole(*args, **more)

        monkeypatch.setattr(module, name, counted)
    found = head_effects(subject, TRACES, reading, attributed=attributed)
    assert runs == ["read_logits", "_thoughts"]
    for name, values in alone.items():
        np.testing.assert_array_equal(getattr(found, name), values)


@pytest.mark.parametrize(("explained", "benign"), [([], BENIGN), (TRACES, [])])
def test_a_kind_of_traces_that_is_missing_is_named(
    explained: list[Trace], benign: list[Trace]
) -> None:
    with pytest.raises(RefusalCliffError, match=f"{len(explained)} and {len(benign)} of the"):
        measure_heads(planted(Head(2, 1)), explained, [], benign, probe())


@pytest.mark.parametrize("family", ["qwen3", "gpt2"])
def test_plateau_contributions_are_what_a_silenced_head_takes_away(family: str) -> None:
    """In the probe's own block, with its MLP silent, a head acts by what it adds only."""
    subject, trace = family_subject(family), TRACES[1]
    mlp = subject.blocks[-1].module.get_submodule("mlp")
    mlp.register_forward_hook(silence)
    got = direct_contributions(subject, [trace], probe()).plateau[0, -1]
    assert trace.spans is not None
    late = slice(trace.spans.prompt + 15, trace.spans.thinking)  # 30 tokens of thinking
    plain = logits_of(subject, trace, probe())[late].mean()
    for index in range(HEADS):
        with ablated(subject, [Head(LAYERS, index)]):
            without = logits_of(subject, trace, probe())[late].mean()
        assert abs(got[index]) > 0.01
        np.testing.assert_allclose(got[index], plain - without, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("layer", [2, 3])
@pytest.mark.parametrize("family", FAMILIES)
def test_attribution_is_the_slope_at_the_whole_head(family: str, layer: int) -> None:
    """In float64, against finite differences of whole forward passes.

    GPT-2 is float64 throughout; the norms of the others compute in float32, which limits how
    exactly a difference can be known.
    """
    model: Any = family_subject(family).model.double()
    subject = subject_of(family, model, tiny_tokenizer())
    step, tolerance = (1e-3, 1e-7) if family == "gpt2" else (5e-2, 1e-3)
    for trace in TRACES[:2]:
        got = attributed_effects(subject, [trace], probe(layer))[0]
        expected = np.zeros(got.shape)
        for head in (head for head in subject.heads() if head.layer <= layer):
            slope = slope_at_one(subject, trace, probe(layer), head, step)
            expected[head.layer - 1, head.index] = -slope
        size = np.abs(expected).max()
        assert size > 0.1
        np.testing.assert_allclose(got, expected, rtol=tolerance, atol=tolerance * size)


def slope_at_one(subject: Subject, trace: Trace, reading: Probe, head: Head, step: float) -> float:
    """Derivative of the final logit by a head's scale over the closing tokens, of order 4."""
    assert trace.spans is not None
    where = torch.arange(len(trace.token_ids))[None] >= trace.spans.thinking
    total = 0.0
    for steps, factor in ((1, 8), (-1, -8), (2, -1), (-2, 1)):
        with ablated(subject, [head], scale=1 + steps * step, where=where):
            total += factor * logits_of(subject, trace, reading)[trace.spans.last_closing]
    return total / (12 * step)


@pytest.mark.parametrize("family", FAMILIES)
def test_attributions_do_not_depend_on_the_batch(family: str) -> None:
    subject = family_subject(family)
    together = attributed_effects(subject, TRACES, probe())
    alone = [attributed_effects(subject, [trace], probe())[0] for trace in TRACES]
    np.testing.assert_allclose(together, alone, rtol=1e-3, atol=1e-4 * np.abs(together).max())


@pytest.mark.parametrize(
    ("total", "fraction", "expected"),
    [(12, 0.03, 1), (100, 0.03, 3), (144, 0.03, 4), (200, 0.03, 6), (1152, 0.03, 34), (5, 0.6, 3)],
)
def test_the_budget_is_rounded_down_but_not_to_nothing(
    total: int, fraction: float, expected: int
) -> None:
    assert budget(total, fraction) == expected


def test_selected_are_the_strongest_that_are_proven() -> None:
    rows = [
        head_row(0, 1, 0.5),
        head_row(1, 4, -0.1),
        head_row(2, -9, -10),
        head_row(3, 3, 0.1),
        head_row(4, 2, 1),
    ]
    assert ranked(rows, "causal") == [Head(1, index) for index in (1, 3, 4, 0, 2)]
    assert select_heads(rows, 0.2, "causal") == []  # the only head in the budget is not certain
    assert select_heads(rows, 0.6, "causal") == [Head(1, 3), Head(1, 4)]
    assert select_heads(rows, 1.0, "causal") == [Head(1, 3), Head(1, 4), Head(1, 0)]


def test_whatever_the_ranking_a_head_must_be_seen_to_suppress() -> None:
    rows = [
        head_row(0, 1, 1, 5.0, refused=6.0),
        head_row(1, 1, -1, -2.0, refused=-3.0),
        head_row(2, 1, 1, -1.0),
    ]
    assert ranked(rows, "direct") == [Head(1, 1), Head(1, 2), Head(1, 0)]
    assert select_heads(rows, 1.0, "direct") == [Head(1, 2)]
    assert select_heads(rows, 1.0, "direct", proven=False) == [Head(1, 1), Head(1, 2)]
    assert select_heads(rows, 1.0, "direct-contrast") == [Head(1, 0), Head(1, 2)]


def test_rows_are_read_as_they_were_written(tmp_path: Path) -> None:
    subject, path = family_subject("llama"), tmp_path / "heads.parquet"
    rows = [head_row(0, 0.1, -0.2, 0.3, refused=1 / 3), head_row(1, 1e-30, -7.0, -0.0)]
    write_heads(path, rows, subject.fingerprint)
    assert read_heads(path) == read_heads(path, subject) == rows
    with pytest.raises(RefusalCliffError, match="measured on another model"):
        read_heads(path, family_subject("qwen3"))


def test_another_file_is_not_a_table_of_heads(tmp_path: Path) -> None:
    other = tmp_path / "other.parquet"
    pq.write_table(pa.table({"layer": [1], "score": [0.5]}), other)
    text = tmp_path / "text.parquet"
    text.write_text("no table")
    damaged = tmp_path / "heads.parquet"
    write_heads(damaged, [head_row(0, 0.1, -0.2, 0.3)], "")
    table = pq.read_table(damaged)
    column = table.schema.get_field_index("index")
    pq.write_table(table.set_column(column, "index", pa.array(["a"])), damaged)
    newer = tmp_path / "newer.parquet"
    pq.write_table(table.append_column("unknown", pa.array([1.0])), newer)
    for path, wrong in (
        (other, "is not a table of heads .*row 1"),
        (newer, "row 1, unknown"),
        (damaged, "row 1, index"),
        (text, "Could not read .*text.parquet"),
        (tmp_path / "missing.parquet", "missing.parquet"),
    ):
        with pytest.raises(RefusalCliffError, match=wrong):
            read_heads(path)


@torch.inference_mode()
def normed_logit(subject: Subject, trace: Trace, reading: Probe, heads: list[Head]) -> float:
    """Score logit of a probe after the final norm, heads out over the closing tokens."""
    spans = closed_spans(trace)
    where = torch.arange(len(trace.token_ids))[None] >= spans.thinking
    with ablated(subject, heads, where=where):
        states = decoder_of(subject.model)(torch.tensor([trace.token_ids]))[0]
    return float(states[0, spans.last_closing] @ torch.as_tensor(reading.weight) + reading.bias)


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_a_probe_after_the_final_norm_has_exact_effects(family: str) -> None:
    subject, reading = family_subject(family), replace(probe(), read_point="final_norm")
    got = causal_effects(subject, TRACES, reading)
    expected = np.zeros_like(got)
    for row, trace in enumerate(TRACES):
        plain = normed_logit(subject, trace, reading, [])
        for head in subject.heads():
            changed = normed_logit(subject, trace, reading, [head])
            expected[row, head.layer - 1, head.index] = changed - plain
    assert np.abs(expected).max() > 0.1
    np.testing.assert_allclose(got, expected, atol=1e-4 * np.abs(expected).max())
    with torch.no_grad():
        closing = Rerun(subject, TRACES, score_readout(subject, reading))
        ends = [
            closing.final_logits(1, [(head,) for head in subject.heads()], s) for s in (0.99, 1.01)
        ]
        slopes = closing.attributions().reshape(len(TRACES), -1)
    expected = (ends[0] - ends[1]) / 0.02
    np.testing.assert_allclose(slopes, expected, atol=5e-3 * np.abs(expected).max())
