"""Taking a head out equals zeroing its columns of the output projection, everywhere it runs."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from tiny_families import FAMILIES, family_subject, random_ids

from refusal_cliff.errors import RefusalCliffError
from refusal_cliff.model.ablation import ablated, ablated_rows, mean_outputs
from refusal_cliff.model.subject import Head, Subject, subject_of

IDS = torch.tensor([random_ids(20, seed) for seed in range(3)])
CHOSEN = [Head(1, 2), Head(3, 0), Head(3, 3)]
TOLERANCE = 1e-5


@pytest.fixture(scope="module", params=FAMILIES)
def subject(request: pytest.FixtureRequest) -> Subject:
    return family_subject(request.param)


@torch.inference_mode()
def logits(subject: Subject, ids: torch.Tensor = IDS) -> torch.Tensor:
    return subject.model(ids).logits


def write(subject: Subject, ids: torch.Tensor = IDS) -> torch.Tensor:
    """Greedy generation with a key-value cache."""
    mask = torch.ones_like(ids)
    written = subject.model.generate(  # pyright: ignore[reportCallIssue]
        ids, attention_mask=mask, max_new_tokens=12, min_new_tokens=12, do_sample=False
    )
    return written[:, ids.shape[1] :]


def zeroed(subject: Subject, heads: list[Head]) -> Subject:
    """A copy whose projections have zeros where the heads are read."""
    other = subject_of("zeroed", copy.deepcopy(subject.model), subject.tokenizer)
    for head in heads:
        weight = other.projection(head.layer).get_parameter("weight")
        width = other.head_width(head.layer)
        read = slice(head.index * width, (head.index + 1) * width)
        where = (read,) if subject.name == "gpt2" else (slice(None), read)
        with torch.no_grad():
            weight[where] = 0
    return other


def assert_same(got: torch.Tensor, expected: torch.Tensor) -> None:
    assert float((got - expected).abs().max() / expected.abs().max()) < TOLERANCE


def from_on(starts: list[int]) -> torch.Tensor:
    """Each row's tokens from a start on."""
    return torch.arange(IDS.shape[1]) >= torch.tensor(starts)[:, None]


def hooks(subject: Subject) -> int:
    modules = list(subject.model.modules())
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in modules)


def test_logits_are_those_of_zeroed_columns(subject: Subject) -> None:
    expected = logits(zeroed(subject, CHOSEN))
    with ablated(subject, CHOSEN):
        assert_same(logits(subject), expected)
    assert float((logits(subject) - expected).abs().max()) > 0.01


def test_text_is_that_of_zeroed_columns(subject: Subject) -> None:
    expected = write(zeroed(subject, CHOSEN))
    with ablated(subject, CHOSEN):
        assert write(subject).equal(expected)
    assert not write(subject).equal(expected)


def test_a_scale_of_one_changes_nothing(subject: Subject) -> None:
    plain = logits(subject)
    with ablated(subject, CHOSEN, scale=1.0):
        assert logits(subject).equal(plain)
    with ablated(subject, []):
        assert logits(subject).equal(plain)


def test_a_scale_between_scales_the_columns(subject: Subject) -> None:
    other = zeroed(subject, [CHOSEN[0]])
    with torch.no_grad():
        weight = other.projection(1).get_parameter("weight")
        weight.lerp_(subject.projection(1).get_parameter("weight"), 0.25)
    with ablated(subject, [CHOSEN[0]], scale=0.25):
        assert_same(logits(subject), logits(other))


def test_tokens_before_the_start_are_left_alone(subject: Subject) -> None:
    starts = [0, 7, 19]
    plain, every = logits(subject), logits(zeroed(subject, CHOSEN))
    with ablated(subject, CHOSEN, where=from_on(starts)):
        changed = logits(subject)
    for row, start in enumerate(starts):
        assert changed[row, :start].equal(plain[row, :start])
        assert (changed[row, start:] - plain[row, start:]).abs().amax(-1).min() > 1e-4
    assert_same(changed[0], every[0])


def test_a_start_equals_zeroed_columns_from_there_on(subject: Subject) -> None:
    """The tokens before are run by the unchanged model, and the rest by the other on its cache."""
    other, start = zeroed(subject, CHOSEN), 13
    with torch.inference_mode():
        cache = subject.model(IDS[:, :start], use_cache=True).past_key_values
        rest = other.model(IDS[:, start:], past_key_values=cache, use_cache=True).logits
    with ablated(subject, CHOSEN, where=from_on([start] * 3)):
        assert_same(logits(subject)[:, start:], rest)


def test_any_tokens_can_be_chosen(subject: Subject) -> None:
    where = torch.zeros(IDS.shape, dtype=torch.bool)
    where[1, [3, 11]] = True
    with ablated(subject, CHOSEN, where=where):
        changed = logits(subject)
    assert changed[[0, 2]].equal(logits(subject)[[0, 2]])
    assert changed[1, :3].equal(logits(subject)[1, :3])
    with ablated(subject, CHOSEN, where=from_on([20, 3, 20])):
        assert_same(changed[1, 3], logits(subject)[1, 3])
    assert float((changed - logits(subject))[1, 12:].abs().max()) > 1e-4


def projection_inputs(subject: Subject, layer: int) -> torch.Tensor:
    """What a block's output projection is given, after all edits."""
    kept: list[torch.Tensor] = []
    projection = subject.projection(layer)
    with torch.inference_mode():
        handle = projection.register_forward_pre_hook(lambda _, args: kept.append(args[0]))
        subject.model(IDS)
        handle.remove()
    return kept[0]


def test_a_head_is_replaced_by_its_mean(subject: Subject) -> None:
    layer, head = 1, Head(1, 2)
    width = subject.head_width(layer)
    plain = projection_inputs(subject, layer).unflatten(-1, (4, width))
    means = mean_outputs(subject, IDS.tolist(), [head])
    assert_same(means[head], plain[:, :, 2].flatten(0, 1).mean(0))
    for scale in (0.0, 0.25):
        expected = plain.clone()
        expected[:, :, 2] = scale * expected[:, :, 2] + (1 - scale) * means[head]
        with ablated(subject, [head], scale=scale, means=means):
            assert_same(projection_inputs(subject, layer), expected.flatten(-2))


def test_renormalised_each_token_keeps_its_length_and_does_not_see_the_others(
    subject: Subject,
) -> None:
    plain = projection_inputs(subject, 1)
    with ablated(subject, [Head(1, 2)]):
        zeroed_out = projection_inputs(subject, 1)
    with ablated(subject, [Head(1, 2)], renormalised=True):
        changed = projection_inputs(subject, 1)
        together, alone = logits(subject), logits(subject, IDS[1:2, :9])
    assert_same(changed.norm(dim=-1), plain.norm(dim=-1))
    ratio = plain.norm(dim=-1, keepdim=True) / zeroed_out.norm(dim=-1, keepdim=True)
    assert_same(changed, zeroed_out * ratio)
    assert_same(together[1, :9], alone[0])


def test_a_slice_of_the_heads_is_refused() -> None:
    """What a process of a tensor-parallel group would give to its part of the projection."""
    subject = family_subject("llama")
    projection = subject.projection(1)
    with ablated(subject, [Head(1, 0)]), pytest.raises(RefusalCliffError, match="only some of"):
        projection(torch.zeros(1, 2, 16))


def test_a_tensor_parallel_projection_is_refused() -> None:
    subject = family_subject("llama")
    weight: Any = subject.projection(1).get_parameter("weight")
    weight.device_mesh = "of four devices"
    with pytest.raises(RefusalCliffError, match="tensor parallel"), ablated(subject, [Head(1, 0)]):
        pass


def test_each_row_has_heads_of_its_own(subject: Subject) -> None:
    rows = [[Head(1, 2), Head(3, 3)], [], [Head(3, 0)]]
    with ablated_rows(subject, rows):
        together, written = logits(subject), write(subject)
    for row, heads in enumerate(rows):
        with ablated(subject, heads):
            assert_same(together[row], logits(subject, IDS[row : row + 1])[0])
            assert written[row].equal(write(subject, IDS[row : row + 1])[0])


@pytest.mark.parametrize("head", [Head(0, 0), Head(4, 0), Head(1, 4), Head(1, -1)])
def test_a_head_that_does_not_exist_is_named(head: Head) -> None:
    subject = family_subject("llama")
    message = rf"llama has no head {head}: its (blocks go from 1 to 3|heads go from 0 to 3)"
    with pytest.raises(RefusalCliffError, match=message), ablated(subject, [head]):
        pass
    with pytest.raises(RefusalCliffError, match=message), ablated_rows(subject, [[], [head]]):
        pass
    assert hooks(subject) == 0


def test_no_hook_stays() -> None:
    subject = family_subject("qwen3")
    with pytest.raises(RuntimeError, match="inside"), ablated(subject, CHOSEN):
        assert hooks(subject) == 2
        raise RuntimeError("inside")
    with pytest.raises(RuntimeError, match="inside"), ablated_rows(subject, [CHOSEN]):
        assert hooks(subject) == 2
        raise RuntimeError("inside")
    assert hooks(subject) == 0
