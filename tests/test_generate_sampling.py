"""Sampling follows the softmax and its own seeds; a spent thinking budget is closed and said."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny_chat import SPECIAL, tiny_model, tiny_tokenizer

from refusal_cliff.data.traces import read_traces, write_traces
from refusal_cliff.data.types import Prompt
from refusal_cliff.errors import RefusalCliffError
from refusal_cliff.generate import GenerationConfig, generate, repeated
from refusal_cliff.generate.sampling import GumbelNoise, Row
from refusal_cliff.model.subject import Subject, subject_of
from refusal_cliff.thinking import render_prompt

PROMPTS = [Prompt(f"p{i}", text, "benign") for i, text in enumerate(("Hi", "Why?", "x" * 30))]
SAMPLED = GenerationConfig(max_new_tokens=20, temperature=0.8, top_p=0.9, seed=3)
CLOSE = SPECIAL.index("</think>")


@pytest.fixture(scope="module")
def subject() -> Subject:
    return subject_of("tiny", tiny_model(), tiny_tokenizer())


def test_draws_follow_the_softmax() -> None:
    logits = torch.tensor([2.0, 1.0, 0.0, -1.0])
    rows = [Row(f"r{index}", 0) for index in range(6000)]
    noise = GumbelNoise(GenerationConfig(temperature=0.7), rows)
    drawn = noise(torch.zeros(1, 1, dtype=torch.long), logits.expand(6000, 4)).argmax(1)  # type: ignore[arg-type]
    shares = drawn.bincount(minlength=4) / 6000
    expected = (logits / 0.7).softmax(0)
    assert (shares - expected).abs().max() < 4 * (0.25 / 6000) ** 0.5


def test_nothing_outside_the_nucleus_is_drawn() -> None:
    logits = torch.tensor([2.0, 1.9, -1.0, -2.0]).expand(2000, 4)
    noise = GumbelNoise(
        GenerationConfig(temperature=1.0, top_p=0.8), [Row(str(index), 0) for index in range(2000)]
    )
    drawn = noise(torch.zeros(2000, 1, dtype=torch.long), logits).argmax(1)  # type: ignore[arg-type]
    assert set(drawn.tolist()) == {0, 1}


def test_of_the_likeliest_alone_is_drawn() -> None:
    logits = torch.tensor([2.0, 1.9, 1.8, -2.0]).expand(2000, 4)
    rows = [Row(str(index), 0) for index in range(2000)]
    noise = GumbelNoise(GenerationConfig(temperature=1.0, top_k=2), rows)
    drawn = noise(torch.zeros(2000, 1, dtype=torch.long), logits).argmax(1)  # type: ignore[arg-type]
    assert set(drawn.tolist()) == {0, 1}


def test_a_sample_does_not_depend_on_its_batch(subject: Subject) -> None:
    prompts = repeated(PROMPTS, 3)
    together = generate(subject, prompts, SAMPLED)
    apart = [generate(subject, [prompt], SAMPLED)[0] for prompt in prompts[::-1]][::-1]
    small = generate(subject, prompts, replace(SAMPLED, batch_size=2))
    assert together == apart == small
    assert len({trace.token_ids for trace in together}) == len(prompts)
    assert generate(subject, prompts, replace(SAMPLED, seed=4)) != together


def test_samples_keep_the_group_of_their_prompt() -> None:
    found = repeated(PROMPTS[:2], 2)
    assert [(p.id, p.group) for p in found] == [
        *(("p0#0", "p0"), ("p0#1", "p0"), ("p1#0", "p1"), ("p1#1", "p1")),
    ]
    assert repeated(PROMPTS, 1) == PROMPTS


def test_a_spent_budget_closes_the_thinking_and_says_so(subject: Subject, tmp_path: Path) -> None:
    config = GenerationConfig(max_new_tokens=24, thinking_budget=8)
    free = generate(subject, PROMPTS, replace(config, thinking_budget=None))
    traces = generate(subject, PROMPTS, config)
    closing = list(subject.tokenizer("\n</think>\n\n", add_special_tokens=False)["input_ids"])
    assert any(trace.thinking_cut for trace in traces)
    for trace, other in zip(traces, free, strict=True):
        start = len(render_prompt(subject.tokenizer, trace.prompt.text))
        written = list(trace.token_ids[start:])
        closed_before = CLOSE in other.token_ids[start : start + 8]
        assert trace.thinking_cut == (not closed_before and not len(other.token_ids) <= start + 8)
        if trace.thinking_cut:
            assert trace.spans is not None
            assert written[:8] == list(other.token_ids[start : start + 8])
            assert written[8 : 8 + len(closing)] == closing
    assert [generate(subject, [prompt], config)[0] for prompt in PROMPTS] == traces
    write_traces(tmp_path / "t.parquet", traces)
    assert read_traces(tmp_path / "t.parquet") == traces


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"temperature": -1.0}, "temperature is -1.0. Give at least 0"),
        ({"temperature": math.nan}, "temperature is nan"),
        ({"top_p": 0.0}, "top_p is 0.0. Give above 0"),
        ({"top_p": 1.5}, "top_p is 1.5. Give at most 1"),
        ({"top_k": -1}, "top_k is -1"),
        ({"max_new_tokens": 0}, "max_new_tokens is 0"),
        ({"max_new_tokens": 8.5}, "a whole number"),
        ({"max_new_tokens": "8"}, "a whole number"),
        ({"batch_size": True}, "a whole number"),
        ({"thinking_budget": 4096}, "no room for an answer"),
        ({"thinking_budget": 0}, "thinking_budget is 0"),
    ],
)
def test_settings_that_cannot_be_are_refused(fields: dict[str, float], message: str) -> None:
    with pytest.raises(RefusalCliffError, match=message):
        GenerationConfig(**fields)  # type: ignore[arg-type]
