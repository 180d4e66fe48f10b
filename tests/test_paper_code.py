"""The re-enacted faults of the paper's code do what is said of them, in cases done by hand."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from bench.paper_code.case import Case
from bench.paper_code.counting import READ, answer_read
from bench.paper_code.fit import adam_probe, says_refusal
from bench.paper_code.interventions import (
    renormalised_over_all,
    summed_means,
    without_causal_mask,
    without_head_norms,
)
from bench.paper_code.readings import POINTS, in_the_fall, last_places, resampled, right_aligned
from refusal_cliff.data.types import Prompt, Trace
from refusal_cliff.model.blocks import decoder_of
from refusal_cliff.model.subject import Head, Subject, load_subject
from refusal_cliff.thinking import render_prompt

IDS = torch.tensor([[70, 71, 72, 73, 74, 75], [90, 91, 92, 93, 94, 95]])


@pytest.fixture(scope="module")
def tiny() -> Subject:
    return load_subject("tiny", device="cpu")


@torch.inference_mode()
def logits(subject: Subject, ids: torch.Tensor = IDS, **named: Any) -> torch.Tensor:
    return subject.model(ids, **named).logits


def test_zeros_before_shorter_traces_bend_a_constant_curve() -> None:
    curves = [np.full(length, 0.6) for length in (2, 3, 4)]
    assert right_aligned(curves, 0.0).mean(0) == pytest.approx([0.2, 0.4, 0.6, 0.6])
    assert np.nanmean(right_aligned(curves, np.nan), 0) == pytest.approx([0.6] * 4)


def test_a_hundred_points_are_left_as_they_are_and_cubics_are_kept() -> None:
    noise = np.random.default_rng(0).normal(size=POINTS)
    assert resampled(noise) == pytest.approx(noise)
    places = np.linspace(0, 299, POINTS)
    assert resampled(np.arange(300.0) ** 3) == pytest.approx(places**3)


def test_a_drop_of_three_tokens_of_three_hundred_falls_into_one_point() -> None:
    curve = np.r_[np.full(297, 0.9), np.full(3, 0.1)]
    assert in_the_fall(curve, 0.9, 0.1) == 3
    assert in_the_fall(resampled(curve), 0.9, 0.1) == 1


def test_in_the_fall_counts_only_the_end() -> None:
    assert in_the_fall(np.array([0.1, 0.9, 0.5, 0.4, 0.1]), 0.9, 0.1) == 2
    assert in_the_fall(np.array([0.1, 0.2]), 0.9, 0.1) == 2
    assert in_the_fall(np.array([0.1, 0.9]), 0.9, 0.1) == 0


def test_sums_of_batch_means_are_too_small_and_overweigh_the_short_batch() -> None:
    assert summed_means(np.array([1.0, 2.0, 3.0, 6.0]), 2) == pytest.approx(3.0 / 2)
    assert summed_means(np.array([1.0, 2.0, 6.0]), 2) == pytest.approx((1.5 + 6.0) / 3)
    assert summed_means(np.ones((8, 2, 3)), 4) == pytest.approx(np.full((2, 3), 0.25))


@pytest.mark.parametrize(
    ("answer", "called"),
    [
        ("I cannot help with this.", True),
        ("i cannot help with this.", False),
        ("No, I will not help with that.", False),
        (" harmful: [step one]", True),
        ("x" * 32 + "Sorry", False),
    ],
)
def test_words_in_the_first_characters(answer: str, called: bool) -> None:
    assert says_refusal(answer) is called


def test_few_steps_of_adam_on_raw_states() -> None:
    labels = np.array([0.0] * 60 + [1.0] * 100)
    far = np.where(labels[:, None] == 1, 1.0, -1.0) * np.ones((1, 1024))
    weight, bias, reported = adam_probe(far, labels, 0)
    assert reported == 1.0
    assert ((far @ weight + bias > 0) == (labels == 1)).all()
    # 96 rows are two batches, 10 steps in all: each weight stays within 0.01 or so of its start
    start = adam_probe(far * 0, labels, 0)[0]
    assert weight == pytest.approx(start, abs=0.02)
    assert (weight > start).all()


def test_renormalisation_keeps_the_length_of_the_batch_and_mixes_its_rows(tiny: Subject) -> None:
    head, seen = Head(7, 6), []
    width = tiny.head_width(7)

    def keep(module: torch.nn.Module, inputs: tuple[Any, ...]) -> None:
        del module
        seen.append(inputs[0].clone())

    first = tiny.projection(7).register_forward_pre_hook(keep)
    with renormalised_over_all(tiny, [head]):
        last = tiny.projection(7).register_forward_pre_hook(keep)
        together = logits(tiny)
        last.remove()
        first.remove()
        alone = logits(tiny, IDS[:1])
    before, after = seen
    assert after.norm().item() == pytest.approx(before.norm().item(), rel=1e-5)
    assert (after[..., 6 * width : 7 * width] == 0).all()
    assert not torch.allclose(together[:1], alone, atol=1e-4)
    torch.testing.assert_close(logits(tiny)[:1], logits(tiny, IDS[:1]))  # and nothing is left


def test_without_the_causal_mask_the_first_token_sees_the_last(tiny: Subject) -> None:
    other = IDS.clone()
    other[:, -1] = 100
    usual = logits(tiny)
    assert torch.allclose(usual[:, 0], logits(tiny, other)[:, 0])
    for named in ({}, {"attention_mask": torch.tensor([[0, 1, 1, 1, 1, 1], [1] * 6])}):
        with without_causal_mask(tiny):
            pair = logits(tiny, IDS, **named), logits(tiny, other, **named)
        assert not torch.allclose(pair[0][:, 0], pair[1][:, 0], atol=1e-3)
    assert torch.equal(logits(tiny), usual)


def test_place_minus_one_of_a_padded_row_is_not_its_last_token(tiny: Subject) -> None:
    weight = np.random.default_rng(0).normal(size=tiny.width).astype(np.float32)
    probe = SimpleNamespace(weight=weight, bias=0.5)
    case: Any = SimpleNamespace(subject=tiny, after=SimpleNamespace(chosen=probe))
    rows = [IDS[0].tolist(), IDS[1].tolist()[:4]]
    states = [decoder_of(tiny.model)(torch.tensor([row]))[0][0, -1] for row in rows]
    right = [float(state @ torch.tensor(weight)) + 0.5 for state in states]
    found = last_places(case, rows)
    assert found[0] == pytest.approx(right[0], abs=1e-3)
    assert found[1] != pytest.approx(right[1], abs=1e-1)


def test_head_norms_are_taken_out_and_put_back(tiny: Subject) -> None:
    usual, norm = logits(tiny), tiny.model.get_submodule("model.layers.0.self_attn.q_norm")
    with without_head_norms(tiny):
        assert not torch.allclose(logits(tiny), usual, atol=1e-2)
    assert tiny.model.get_submodule("model.layers.0.self_attn.q_norm") is norm
    assert torch.equal(logits(tiny), usual)


def test_an_unfinished_thought_is_read_as_the_answer(tiny: Subject) -> None:
    prompt = Prompt("a", "Can I cover our own voicemail?", "harmful")
    begun = render_prompt(tiny.tokenizer, prompt.text)
    new = tiny.tokenizer("This is harmful.\n</think>\n\nSorry.<|im_end|>")["input_ids"]
    trace = Trace(prompt, (*begun, *new), None, "", "", True)
    case = Case(tiny, [], [trace], None, [])  # pyright: ignore[reportArgumentType]
    assert answer_read(case, trace, len(new)) == "Sorry."
    thought = len(tiny.tokenizer("This is harmful.")["input_ids"])
    assert answer_read(case, trace, thought) == "This is harmful."
    long = Trace(prompt, (*begun, *new[-2:-1] * READ), None, "", "", True)
    assert len(answer_read(case, long, 10**6)) <= READ
