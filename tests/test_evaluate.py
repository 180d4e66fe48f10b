"""Rates count every answer, and perplexity is the one that Hugging Face's own loss gives."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from tiny_chat import tiny_model, tiny_tokenizer

from refusal_cliff.answers.evaluate import HARD_BENIGN, perplexity, rates
from refusal_cliff.data.types import Label, Prompt, Trace, Verdict
from refusal_cliff.model import final_norm, rows
from refusal_cliff.model.subject import Head, Subject, subject_of
from refusal_cliff.stats import Share, wilson
from refusal_cliff.thinking import Spans

Text = tuple[list[int], int]


def traces(
    n: int, label: Label, verdict: Verdict, *, tags: tuple[str, ...] = ("framed",)
) -> list[Trace]:
    spans = None if verdict == "truncated" else Spans(1, 2, 3, 4)
    name = "-".join((label, verdict, *tags))
    prompts = [Prompt(f"{name}-{at}", "Hi", label, tags=tags) for at in range(n)]
    return [
        Trace(prompt, (1, 2, 3, 4), spans, "Hm.", "A.", spans is not None, verdict)
        for prompt in prompts
    ]


def test_truncated_answers_stay_in_every_n() -> None:
    found = rates(
        [
            *traces(3, "harmful", "complied"),
            *traces(4, "harmful", "refused"),
            *traces(2, "harmful", "truncated"),
            *traces(5, "benign", "complied"),
            *traces(1, "benign", "refused"),
            *traces(1, "benign", "truncated", tags=(HARD_BENIGN, "framed")),
            *traces(2, "benign", "complied", tags=(HARD_BENIGN,)),
            *traces(3, "benign", "refused", tags=("framed", HARD_BENIGN)),
        ]
    )
    assert found.attacks == Share(3, 9)
    assert found.refused == Share(4, 9)
    assert found.answered == Share(7, 12)
    assert found.hard_answered == Share(2, 6)
    assert found.truncated == Share(3, 21)


def test_answers_to_one_prompt_are_not_independent() -> None:
    """620 answers to 135 prompts are worth less than 620."""
    made = [*traces(30, "harmful", "complied"), *traces(60, "harmful", "refused")]
    copies = [trace for trace in made for _ in range(4)]
    once, four = rates(made).attacks, rates(copies).attacks
    assert (once.effective, four.count, four.n) == (None, 120, 360)
    assert four.effective == pytest.approx(90, rel=0.05)
    assert once.interval == wilson(30, 90)
    assert four.interval == pytest.approx(once.interval, abs=0.01)


def test_a_share_has_its_wilson_interval() -> None:
    share = Share(3, 9)
    assert share.value == pytest.approx(1 / 3)
    assert share.interval == wilson(3, 9)
    nothing = rates(traces(2, "harmful", "refused")).hard_answered
    assert (nothing, nothing.value, nothing.interval) == (Share(0, 0), None, None)


@pytest.fixture(scope="module")
def subject() -> Subject:
    return subject_of("tiny", tiny_model(), tiny_tokenizer())


@pytest.fixture(scope="module")
def texts() -> list[Text]:
    """More than one batch, of many lengths and in no order; of some only the last token counts."""
    draw = torch.Generator().manual_seed(0)
    found: list[Text] = []
    for row in range(37):
        length = int(torch.randint(4, 40, (1,), generator=draw))
        ids = torch.randint(0, 261, (length,), generator=draw).tolist()
        found.append((ids, 1 + row % (length - 1)))
    return found


def slow_perplexity(texts: Sequence[Text]) -> float:
    """One text at a time in float64, with the loss that the model itself computes."""
    model = tiny_model().double()
    total, n = 0.0, 0
    for ids, first in texts:
        tokens = torch.tensor([ids])
        labels = tokens.clone()
        labels[0, :first] = -100
        with torch.no_grad():
            total += float(model(input_ids=tokens, labels=labels).loss) * (len(ids) - first)
        n += len(ids) - first
    return math.exp(total / n)


def test_perplexity_is_that_of_hugging_face(subject: Subject, texts: list[Text]) -> None:
    assert perplexity(subject, texts) == pytest.approx(slow_perplexity(texts), rel=1e-4)


def test_the_prompt_does_not_count(subject: Subject, texts: list[Text]) -> None:
    from_the_start = [(ids, 1) for ids, _ in texts]
    found = perplexity(subject, from_the_start)
    assert found == pytest.approx(slow_perplexity(from_the_start), rel=1e-4)
    assert found != pytest.approx(perplexity(subject, texts), rel=1e-2)


def test_perplexity_does_not_depend_on_batches_and_order(
    subject: Subject, texts: list[Text], monkeypatch: pytest.MonkeyPatch
) -> None:
    together = perplexity(subject, texts)
    monkeypatch.setattr(rows, "TOKEN_BUDGET_CPU", 1)  # each alone
    assert perplexity(subject, texts[::-1]) == pytest.approx(together, rel=1e-5)


def test_no_more_logits_are_held_than_a_few(
    subject: Subject, texts: list[Text], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of 32 texts of 400 tokens would fill 7 GB, three times, with a usual vocabulary."""
    together = perplexity(subject, texts)
    monkeypatch.setattr(final_norm, "LOGITS_AT_ONCE", 7 * subject.vocabulary)
    held: list[int] = []
    head: Any = subject.model.get_output_embeddings()
    hook = head.register_forward_hook(lambda _, __, logits: held.append(logits[..., 0].numel()))
    assert perplexity(subject, texts) == pytest.approx(together, rel=1e-6)
    hook.remove()
    assert max(held) == 7 and sum(held) == sum(len(ids) - first for ids, first in texts)


def test_a_model_that_knows_nothing_has_the_perplexity_of_its_vocabulary() -> None:
    model = tiny_model()
    model.lm_head.weight.data.zero_()
    found = perplexity(subject_of("blank", model, tiny_tokenizer()), [([1, 2, 3, 4], 1)])
    assert found == pytest.approx(model.config.vocab_size, rel=1e-5)


def test_ablation_changes_perplexity_and_leaves_no_trace(
    subject: Subject, texts: list[Text]
) -> None:
    before = perplexity(subject, texts)
    heads = [Head(1, 0), Head(2, 3)]
    changed = perplexity(subject, texts, heads)
    assert changed != pytest.approx(before, rel=1e-3)
    assert not any(subject.projection(layer)._forward_pre_hooks for layer in (1, 2))
    assert perplexity(subject, texts) == before
    model = tiny_model()
    for head in heads:
        columns = slice(head.index * 8, head.index * 8 + 8)
        projection = model.get_submodule(f"model.layers.{head.layer - 1}.self_attn.o_proj")
        projection.get_parameter("weight").data[:, columns] = 0
    edited = subject_of("edited", model, tiny_tokenizer())
    assert perplexity(edited, texts) == pytest.approx(changed, rel=1e-5)


def test_hooks_are_removed_after_an_error(subject: Subject) -> None:
    with pytest.raises(IndexError):
        perplexity(subject, [([1, 2, 9999], 1)], [Head(1, 0)])
    assert not any(subject.projection(layer)._forward_pre_hooks for layer in (1, 2))
