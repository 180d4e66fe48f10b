"""Answers after thoughts that are kept: what each alone would be, and a shared thought run once."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace

import pytest
import torch
from architectures import architecture_subject
from tiny_chat import SPECIAL, save_tiny

from refusal_cliff.data.types import Prompt, Trace
from refusal_cliff.generate import GenerationConfig
from refusal_cliff.generate.again import answer_again, beginning
from refusal_cliff.heads.trials import Trial, answer_trials
from refusal_cliff.model.ablation import ablated
from refusal_cliff.model.subject import Head, Subject, load_subject
from refusal_cliff.thinking import render_prompt, split_spans

CONFIG = GenerationConfig(max_new_tokens=200, batch_size=16)
CLOSE, END = SPECIAL.index("</think>"), SPECIAL.index("<|im_end|>")
SETS: tuple[tuple[Head, ...], ...] = (
    (Head(1, 0),),
    (Head(2, 3), Head(1, 1)),
    (Head(1, 2), Head(2, 0)),
)
MOST = 8


@pytest.fixture(scope="module")
def subject(tmp_path_factory: pytest.TempPathFactory) -> Subject:
    return load_subject(str(save_tiny(tmp_path_factory.mktemp("tiny"))), device="cpu")


def thought(subject: Subject, text: str, thinking: str, blanks: str = "\n\n") -> Trace:
    """A trace that the model might have written, with an answer of twelve tokens."""
    prompt = Prompt(text, text, "harmful")
    prefix = render_prompt(subject.tokenizer, text)
    written = subject.tokenizer.encode(f"{thinking}\n</think>{blanks}", add_special_tokens=False)
    ids = (*prefix, *written, *range(70, 82))
    spans = split_spans(ids, len(prefix), subject.tokenizer, subject.format)
    return Trace(prompt, ids, spans, thinking, "…", complete=False)


@pytest.fixture(scope="module")
def traces(subject: Subject) -> list[Trace]:
    return [
        thought(subject, "Hi", "they greet me, and I may greet them"),
        thought(subject, "Why is it so?", "hm", blanks="\n"),
        thought(subject, "How are you", "a question"),
    ]


@torch.inference_mode()
def alone(
    subject: Subject, trace: Trace, heads: Collection[Head], everywhere: bool = False
) -> list[int]:
    """One row, one pass of the whole row a token, heads out from the closing tokens on."""
    assert trace.spans is not None
    ids = list(trace.token_ids[: trace.spans.closing])
    while len(ids) < trace.spans.closing + MOST and ids[-1] != END:
        where = (torch.arange(len(ids)) >= (0 if everywhere else trace.spans.thinking))[None]
        with ablated(subject, heads, where=where):
            ids.append(int(subject.model(torch.tensor([ids])).logits[0, -1].argmax()))
    return ids


def test_each_answer_is_what_it_is_alone(subject: Subject, traces: Sequence[Trace]) -> None:
    asked = [trace for trace in traces for _ in SETS]
    sets = list(SETS) * len(traces)
    for everywhere in (True, False):
        found = answer_again(subject, asked, CONFIG, sets, most=MOST, everywhere=everywhere)
        assert [list(trace.token_ids) for trace in found] == [
            alone(subject, trace, heads, everywhere) for trace in traces for heads in SETS
        ]
    assert all(trace.complete and trace.verdict == "unscored" for trace in found)
    assert len({trace.response for trace in found}) > len(traces)


def test_a_thought_that_sets_share_is_run_once(subject: Subject, traces: Sequence[Trace]) -> None:
    run = []

    def count(_: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        run.append(inputs[0].numel())

    hook = subject.model.get_input_embeddings().register_forward_pre_hook(count)
    try:
        answer_again(subject, [traces[0]] * len(SETS), CONFIG, SETS, most=1)
    finally:
        hook.remove()
    assert traces[0].spans is not None
    before, closing = traces[0].spans.thinking, traces[0].spans.closing
    assert sum(run) == before + len(SETS) * (closing - before)


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2", "gpt_neox"])
def test_in_other_architectures(name: str, traces: Sequence[Trace]) -> None:
    """A cache of another kind, or positions told otherwise, changes nothing."""
    other = architecture_subject(name)
    sets = [(Head(1, 0),), (Head(1, 1),)]
    found = answer_again(other, [traces[0]] * 2 + [traces[1]] * 2, CONFIG, sets * 2, most=MOST)
    expected = [alone(other, trace, heads) for trace in traces[:2] for heads in sets]
    assert [list(trace.token_ids) for trace in found] == expected


def test_beginnings(subject: Subject, traces: Sequence[Trace]) -> None:
    """With no head out an answer is that of the trace, as far as it is read."""
    whole = traces[0]
    assert whole.spans is not None
    cut = beginning(subject, replace(whole, verdict="refused"), MOST)
    assert cut.token_ids == whole.token_ids[: whole.spans.closing + MOST]
    assert (cut.complete, cut.verdict) == (True, "unscored")
    assert beginning(subject, whole, 100) == whole
    endless = replace(whole, spans=None)
    assert beginning(subject, endless, MOST) == endless


def test_trials_ask_for_nothing_twice(subject: Subject, traces: Sequence[Trace]) -> None:
    class Answers:
        def __init__(self) -> None:
            self.wrote: list[str] = []
            self.again_wrote: list[tuple[str, tuple[Head, ...], bool]] = []

        def write(self, prompts: Sequence[Prompt], heads: Sequence[Sequence[Head]]) -> list[Trace]:
            assert all(heads)
            self.wrote += [prompt.id for prompt in prompts]
            return [by_id[prompt.id] for prompt in prompts]

        def again(
            self,
            traces: Sequence[Trace],
            heads: Sequence[Sequence[Head]],
            *,
            everywhere: bool = False,
        ) -> list[Trace]:
            self.again_wrote += [
                (t.prompt.id, tuple(h), everywhere) for t, h in zip(traces, heads, strict=True)
            ]
            return [beginning(subject, trace, MOST) for trace in traces]

    by_id = {trace.prompt.id: trace for trace in traces}
    prompts = tuple(trace.prompt for trace in traces)
    trials = [
        Trial("found", SETS[0], prompts, anew=True),
        Trial("top-direct", (), prompts[:2]),
        Trial("top-direct", SETS[0], prompts[:2]),
        Trial("joint", SETS[0], prompts[:2]),
        Trial("random", SETS[1], prompts[:1]),
        Trial("top-direct", SETS[1], prompts[:1], everywhere=True),
    ]
    answers = Answers()
    found = answer_trials(trials, traces, answers)
    assert answers.wrote == [prompt.id for prompt in prompts]
    assert len(answers.again_wrote) == len(set(answers.again_wrote)) == 6
    assert found[0] == traces
    assert found[2] == found[3]
    assert [trace.prompt.id for trace in found[1]] == [prompt.id for prompt in prompts[:2]]
