"""On every architecture: measured states are the model's own, parts add up, ablation is exact."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from architectures import ARCHITECTURES, LAYERS, UNSUPPORTED, WIDTH, architecture_subject
from models_page import models_page
from scipy.stats import entropy
from tiny_chat import SPECIAL
from tiny_families import (
    causal_by_whole_passes,
    closed_trace,
    final_logit,
    linear_probe,
    next_token,
    random_ids,
)

from refusal_cliff.errors import RefusalCliffError
from refusal_cliff.heads.effects import causal_effects
from refusal_cliff.heads.joint import AnswerShifts
from refusal_cliff.heads.rerun import Rerun, score_readout
from refusal_cliff.model.ablation import ablated
from refusal_cliff.model.blocks import decoder_of
from refusal_cliff.model.capture import PositionResiduals, TokenContributions, capture
from refusal_cliff.model.final_norm import AfterFinalNorm, logits_of
from refusal_cliff.model.memory import BatchLimit
from refusal_cliff.model.subject import Head, Subject

IDS = [random_ids(n, seed) for seed, n in enumerate((7, 19, 2, 12))]
RELATIVE = 1e-4


@pytest.fixture(scope="module", params=ARCHITECTURES)
def subject(request: pytest.FixtureRequest) -> Subject:
    return architecture_subject(request.param)


def relative(got: Any, expected: Any) -> float:
    got, expected = np.asarray(got, dtype=np.float64), np.asarray(expected, dtype=np.float64)
    return float(np.abs(got - expected).max() / np.abs(expected).max())


def every(subject: Subject) -> list[int]:
    return [block.layer for block in subject.blocks]


@torch.inference_mode()
def test_residuals_are_hugging_faces_own(subject: Subject) -> None:
    """All but the last, which Hugging Face gives after the final norm."""
    last = [len(ids) - 1 for ids in IDS]
    reader = PositionResiduals(last, every(subject), WIDTH)
    capture(subject, IDS, [reader], limit=BatchLimit(24))
    for row, ids in enumerate(IDS):
        output = subject.model(torch.tensor([ids]), output_hidden_states=True, use_cache=False)
        expected = [state[0, -1] for state in output.hidden_states[1:-1]]
        assert len(expected) == subject.n_layers - 1
        assert relative(reader.values[row, :-1], torch.stack(expected)) < RELATIVE


@torch.inference_mode()
def test_the_final_norm_gives_hugging_faces_last_states(subject: Subject) -> None:
    last = [len(ids) - 1 for ids in IDS]
    reader = PositionResiduals(last, [subject.n_layers], WIDTH)
    capture(subject, IDS, [AfterFinalNorm(reader, subject)], limit=BatchLimit(24))
    for row, ids in enumerate(IDS):
        output = subject.model(torch.tensor([ids]), output_hidden_states=True, use_cache=False)
        assert relative(reader.values[row, 0], output.hidden_states[-1][0, -1]) < RELATIVE


@torch.inference_mode()
def test_logits_of_states_are_the_models_own(subject: Subject) -> None:
    ids = torch.tensor(IDS[1:2])
    states = decoder_of(subject.model)(input_ids=ids, use_cache=False)[0]
    expected = subject.model(ids, use_cache=False).logits
    assert relative(logits_of(subject.model, states), expected) < RELATIVE
    assert relative(logits_of(subject.model, states[0, 3:5]), expected[0, 3:5]) < RELATIVE


@torch.inference_mode()
def test_a_padded_batch_gives_what_single_rows_give(subject: Subject) -> None:
    last = [len(ids) - 1 for ids in IDS]
    together, alone = (PositionResiduals(last, every(subject), WIDTH) for _ in range(2))
    capture(subject, IDS, [together], limit=BatchLimit(10**6))
    capture(subject, IDS, [alone], limit=BatchLimit(1))
    assert relative(together.values, alone.values) < RELATIVE


class Ledger:
    """Everything but the heads that reaches a direction, by hooks of the test's own."""

    def __init__(self, subject: Subject, layer: int, direction: torch.Tensor) -> None:
        self.added: list[torch.Tensor] = []
        self.whole = torch.zeros(0)
        self._handles: list[Any] = []
        carried = 1.0
        for block in reversed(subject.blocks[:layer]):
            for part in block.others:
                self._watch(part.norm or part.module, carried * part.factor * direction)
            if block.attention is not None:
                onto = carried * block.attention.factor * direction
                self._watch_bias(block.projection, block.attention.norm, onto)
            carried *= block.carry
        first, last = subject.blocks[0].module, subject.blocks[layer - 1].module

        def take_input(module: Any, args: Any, kwargs: Any) -> None:
            states = args[0] if args else kwargs["hidden_states"]
            self.added.append(rows_of(states) @ (carried * direction))

        def take_output(module: Any, args: Any, output: Any) -> None:
            self.whole = rows_of(output) @ direction

        self._handles.append(first.register_forward_pre_hook(take_input, with_kwargs=True))
        self._handles.append(last.register_forward_hook(take_output))

    def _watch(self, module: torch.nn.Module, onto: torch.Tensor) -> None:
        def take(module: Any, args: Any, output: Any) -> None:
            self.added.append(rows_of(output) @ onto)

        self._handles.append(module.register_forward_hook(take))

    def _watch_bias(self, projection: Any, norm: Any, onto: torch.Tensor) -> None:
        """A bias counts as what is left of it after the norm that follows, if there is one."""
        bias = getattr(projection, "bias", None)

        def take(module: Any, args: Any, output: Any) -> None:
            ratio = 1.0 if norm is None else rows_of(output) / rows_of(args[0])
            assert bias is not None
            self.added.append((bias.double() * ratio * torch.ones_like(rows_of(output))) @ onto)

        if bias is not None:
            self._handles.append((norm or projection).register_forward_hook(take))

    def close(self) -> None:
        for handle in self._handles:
            handle.remove()


def rows_of(output: Any) -> torch.Tensor:
    while isinstance(output, tuple):
        output = output[0]
    return output.reshape(-1, WIDTH).double()


@torch.inference_mode()
def test_heads_biases_and_all_else_add_up_to_the_logit(subject: Subject) -> None:
    """Embedding + heads + projection biases + other parts = w·h, at every token of every layer."""
    direction = torch.from_numpy(np.random.default_rng(0).normal(size=WIDTH))
    ids = IDS[1]
    for layer in every(subject):
        heads = TokenContributions(subject, [len(ids)], direction.numpy(), layer)
        capture(subject, [ids], [heads])
        ledger = Ledger(subject, layer, direction)
        subject.model(torch.tensor([ids]), use_cache=False)
        ledger.close()
        of_heads = torch.from_numpy(heads.values[0].astype(np.float64)).sum((0, 1))
        assert relative(of_heads + torch.stack(ledger.added).sum(0), ledger.whole) < RELATIVE


@torch.inference_mode()
def test_ablation_is_zeroing_columns(subject: Subject) -> None:
    """In the logits of a forward pass, and in greedy generation with the key-value cache."""
    some = subject.heads()[:: max(1, len(subject.heads()) // 3)]
    batch = torch.tensor([IDS[1], random_ids(19, 9)])
    with ablated(subject, some):
        logits = subject.model(batch, use_cache=False).logits
        text = greedy(subject, batch)
    plain = subject.model(batch, use_cache=False).logits
    changed = architecture_subject(subject.name)
    for head in some:
        zero_columns(changed, head)
    expected = changed.model(batch, use_cache=False).logits
    assert relative(logits, expected) < RELATIVE
    assert relative(logits, plain) > RELATIVE
    assert torch.equal(text, greedy(changed, batch))


def zero_columns(subject: Subject, head: Head) -> None:
    projection = subject.projection(head.layer)
    width = subject.head_width(head.layer)
    part = slice(head.index * width, (head.index + 1) * width)
    weight = projection.get_parameter("weight")
    if type(projection).__name__ == "Conv1D":
        weight[part] = 0
    else:
        weight[:, part] = 0


def greedy(subject: Subject, batch: torch.Tensor) -> torch.Tensor:
    model: Any = subject.model
    return model.generate(
        batch,
        attention_mask=torch.ones_like(batch),
        max_new_tokens=8,
        min_new_tokens=8,
        do_sample=False,
        pad_token_id=SPECIAL.index("<|endoftext|>"),
    )


def test_the_causal_sweep_is_a_forward_pass_a_head(subject: Subject) -> None:
    """Running only some blocks and tokens again gives what whole forward passes give."""
    weight = np.random.default_rng(1).normal(size=WIDTH).astype(np.float32)
    reading = linear_probe(LAYERS, weight)
    traces = [closed_trace(5, 9, 4, 3, seed=1), closed_trace(8, 14, 2, 1, seed=2)]
    effects = causal_effects(subject, traces, reading)
    some = subject.heads()[:: max(1, len(subject.heads()) // 5)]
    expected = [
        [causal_by_whole_passes(subject, t, reading, head) for head in some] for t in traces
    ]
    got = [[found[head.layer - 1, head.index] for head in some] for found in effects]
    assert np.abs(expected).max() > 1e-3
    size = max(abs(final_logit(subject, trace, reading)) for trace in traces)
    assert np.abs(np.subtract(got, expected)).max() < 1e-5 * (size + np.abs(expected).max())


def test_attribution_is_the_slope_of_the_sweep(subject: Subject) -> None:
    """Half of them at least: a small step makes the routers of some mixtures choose anew."""
    weight = np.random.default_rng(1).normal(size=WIDTH).astype(np.float32)
    reading = linear_probe(LAYERS, weight)
    traces = [closed_trace(5, 9, 4, 3, seed=1), closed_trace(8, 14, 2, 1, seed=2)]
    some = subject.heads()[:: max(1, len(subject.heads()) // 5)]
    with torch.no_grad():
        closing = Rerun(subject, traces, score_readout(subject, reading))
        ends = [closing.final_logits(1, [(head,) for head in some], s) for s in (0.98, 1.02)]
        got = closing.attributions()
    slopes = (ends[0] - ends[1]) / 0.04
    found = np.stack([got[:, head.layer - 1, head.index] for head in some], axis=1)
    assert np.isfinite(got).all()
    assert np.median(np.abs(found - slopes)) < 0.01 * np.median(np.abs(slopes)) + 1e-3


def test_the_answer_after_a_rerun_is_the_models_own(subject: Subject) -> None:
    trace = closed_trace(8, 14, 2, 1, seed=2)
    head = subject.heads()[-1]
    base, changed = (next_token(subject, trace, heads) for heads in ((), (head,)))
    expected = entropy(base, changed)
    got = AnswerShifts(subject, [trace]).of([(head,)])[0, 0]
    assert got == pytest.approx(expected, rel=1e-2, abs=1e-9)


def test_the_documented_table_is_what_was_run() -> None:
    page = Path(__file__).parent.parent / "docs" / "reference" / "models.md"
    assert page.read_text(encoding="utf-8") == models_page()


@pytest.mark.parametrize("name", UNSUPPORTED)
def test_what_cannot_be_measured_is_refused(name: str) -> None:
    with pytest.raises(RefusalCliffError, match=rf"{name}.*|hyper-connections"):
        architecture_subject(name)
