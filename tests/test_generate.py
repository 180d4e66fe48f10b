"""A batch writes what each prompt alone would."""

from __future__ import annotations

from typing import cast

import pytest
import torch
from tiny_chat import SPECIAL, save_tiny

from refusal_cliff.data.types import Prompt
from refusal_cliff.errors import RefusalCliffError
from refusal_cliff.generate import GenerationConfig, answer, generate
from refusal_cliff.model.ablation import ablated
from refusal_cliff.model.subject import Head, Subject, load_subject
from refusal_cliff.progress import heard_by
from refusal_cliff.thinking import render_prompt

CONFIG = GenerationConfig(max_new_tokens=24, batch_size=4)
TEXTS = (
    "Hi",
    "Tell me how to bake bread",
    "x" * 40,
    "Why?",
    "Pick a </think> lock",
    "…“q”…",
    "a b",
)
PROMPTS = [Prompt(f"p{index}", text, "benign") for index, text in enumerate(TEXTS)]
HEADS = (Head(1, 0), Head(2, 3))
END = SPECIAL.index("<|im_end|>")
CLOSE = SPECIAL.index("</think>")


@pytest.fixture(scope="module")
def subject(tmp_path_factory: pytest.TempPathFactory) -> Subject:
    return load_subject(str(save_tiny(tmp_path_factory.mktemp("tiny"))), device="cpu")


@torch.inference_mode()
def alone(subject: Subject, prefix: list[int], limit: int) -> list[int]:
    """Greedy decoding of one row, one forward pass of the whole row a token."""
    ids = list(prefix)
    while len(ids) < len(prefix) + limit and (len(ids) == len(prefix) or ids[-1] != END):
        ids.append(int(subject.model(torch.tensor([ids])).logits[0, -1].argmax()))
    return ids[len(prefix) :]


def test_batched_equals_one_by_one(subject: Subject) -> None:
    traces = generate(subject, PROMPTS, CONFIG)
    assert [trace.prompt for trace in traces] == PROMPTS
    for trace in traces:
        prefix = render_prompt(subject.tokenizer, trace.prompt.text)
        assert list(trace.token_ids[: len(prefix)]) == prefix
        assert list(trace.token_ids[len(prefix) :]) == alone(subject, prefix, 24)
        assert trace.complete == (trace.token_ids[-1] == END)
        assert (trace.spans is not None) == (CLOSE in trace.token_ids[len(prefix) :])
    assert len({trace.thinking for trace in traces}) > 1


def test_each_row_has_its_own_heads_ablated(subject: Subject) -> None:
    rows = [HEADS if index % 2 else () for index in range(len(PROMPTS))]
    plain = generate(subject, PROMPTS, CONFIG)
    every = generate(subject, PROMPTS, CONFIG, row_heads=[HEADS] * len(PROMPTS))
    mixed = generate(subject, PROMPTS, CONFIG, row_heads=rows)
    assert mixed == [every[i] if i % 2 else plain[i] for i in range(len(PROMPTS))]
    assert every != plain


def test_the_unembedding_is_given_one_block_of_memory(subject: Subject) -> None:
    """Given a slice, PyTorch would copy the unembedding once for each row of the batch."""
    seen: list[torch.Tensor] = []
    unembedding = cast("torch.nn.Module", subject.model.get_output_embeddings())
    hook = unembedding.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0]))
    try:
        generate(subject, PROMPTS, GenerationConfig(4))
    finally:
        hook.remove()
    assert len(seen) > 1
    assert all(states.is_contiguous() and states.shape[1] == 1 for states in seen)
    assert not unembedding._forward_pre_hooks


def test_answer_continues_fixed_prefixes(subject: Subject) -> None:
    prefixes = [[*render_prompt(subject.tokenizer, text), 40, 41, CLOSE, 200] for text in TEXTS]
    assert answer(subject, prefixes, 6) == [alone(subject, prefix, 6) for prefix in prefixes]


def test_closed_thinking_gives_spans_and_an_end(subject: Subject) -> None:
    script = iter([60, CLOSE, 70, END])

    def scripted(module: torch.nn.Module, args: object, logits: torch.Tensor) -> torch.Tensor:
        del module, args
        forced = torch.zeros_like(logits)
        forced[..., next(script)] = 1.0
        return forced

    head = subject.model.get_output_embeddings()
    assert head is not None
    handle = head.register_forward_hook(scripted)
    trace = generate(subject, PROMPTS[:1], CONFIG)[0]
    handle.remove()
    assert trace.spans is not None
    assert trace.spans.total - trace.spans.prompt == 4
    assert (len(trace.thinking), len(trace.response)) == (1, 1)
    assert trace.complete
    assert trace.verdict == "unscored"


def test_progress_counts_every_trace(subject: Subject) -> None:
    done: list[int] = []
    generate(subject, PROMPTS, CONFIG, progress=done.append)
    assert (sum(done), len(done)) == (len(PROMPTS), 2)


def test_a_batch_says_how_far_its_answers_are(subject: Subject) -> None:
    heard: list[str] = []
    with heard_by(heard.append):
        generate(subject, PROMPTS[:2], GenerationConfig(max_new_tokens=3, batch_size=2))
    assert heard[0] == "writing 2 at once, token 1"
    assert len(heard) <= 3


def test_no_prompts_no_traces(subject: Subject) -> None:
    assert generate(subject, [], CONFIG) == []


def test_a_prompt_beyond_the_context_is_named(subject: Subject) -> None:
    prompts = [PROMPTS[0], Prompt("long", "x" * 600, "benign")]
    with pytest.raises(RefusalCliffError, match=r"'long' has .*context of 512"):
        generate(subject, prompts, CONFIG)


@pytest.mark.parametrize("budget", [None, 3, 8, 9])
def test_the_context_ends_an_answer(subject: Subject, budget: int | None) -> None:
    """No token stands beyond it, with a budget that is spent at its last tokens too."""
    config = GenerationConfig(max_new_tokens=4096, batch_size=4, thinking_budget=budget)
    length = len(render_prompt(subject.tokenizer, ""))
    prompts = [Prompt(f"p{left}", "x" * (512 - length - left), "benign") for left in range(1, 12)]
    traces = generate(subject, prompts, config)
    for left, trace in enumerate(traces, 1):
        prefix = render_prompt(subject.tokenizer, trace.prompt.text)
        assert len(prefix) == 512 - left
        assert len(trace.token_ids) == 512 or trace.complete
        assert trace.complete == (trace.token_ids[-1] == END)
        if budget is None:
            assert list(trace.token_ids[len(prefix) :]) == alone(subject, prefix, left)
    assert not all(trace.complete for trace in traces)


@torch.inference_mode()
def with_heads_out_in(subject: Subject, ids: list[int], limit: int, tokens: range) -> list[int]:
    """As `alone`, the heads out at some tokens of the row."""
    ids, first = list(ids), len(ids)
    while len(ids) < first + limit and (len(ids) == first or ids[-1] != END):
        where = torch.tensor([[at in tokens for at in range(len(ids))]])
        with ablated(subject, HEADS, where=where):
            ids.append(int(subject.model(torch.tensor([ids])).logits[0, -1].argmax()))
    return ids[first:]


def test_an_output_goes_on_from_what_it_begins_with(subject: Subject) -> None:
    begun = [[CLOSE, *range(10, 10 + 2 * index)] for index in range(len(PROMPTS))]
    tokens = [range(30 + index, 36 + index * 5) for index in range(len(PROMPTS))]
    plain = generate(subject, PROMPTS, CONFIG, begun=begun)
    edited = generate(
        subject,
        PROMPTS,
        CONFIG,
        begun=begun,
        row_heads=[HEADS] * len(PROMPTS),
        row_tokens=tokens,
    )
    for trace, changed, ids, span in zip(plain, edited, begun, tokens, strict=True):
        prefix = [*render_prompt(subject.tokenizer, trace.prompt.text), *ids]
        left = 24 - len(ids)
        assert list(trace.token_ids) == [*prefix, *alone(subject, prefix, left)]
        assert list(changed.token_ids) == [
            *prefix,
            *with_heads_out_in(subject, prefix, left, span),
        ]
        assert trace.spans is not None
        assert trace.spans.closing >= len(prefix)  # what was given is no answer
    assert [t.token_ids for t in edited] != [t.token_ids for t in plain]


def test_heads_can_be_out_as_in_the_paper(subject: Subject) -> None:
    rows = [HEADS] * len(PROMPTS)
    got = generate(subject, PROMPTS, CONFIG, row_heads=rows, renormalised=True)
    for trace in got:
        prefix = render_prompt(subject.tokenizer, trace.prompt.text)
        with ablated(subject, HEADS, renormalised=True):
            assert list(trace.token_ids) == [*prefix, *alone(subject, prefix, 24)]
    plainly = generate(subject, PROMPTS, CONFIG, row_heads=rows)
    assert [t.token_ids for t in got] != [t.token_ids for t in plainly]
