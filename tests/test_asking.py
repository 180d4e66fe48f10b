"""No prompt is asked for nothing: a first batch tells what a probe and a verdict will take."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import pytest
from by_rules import judge_all
from hypothesis import given, settings
from hypothesis import strategies as st

from refusal_cliff.cliff.verdict import MIN_BENIGN, MIN_COMPLIED, MIN_REFUSED
from refusal_cliff.data.types import LABELS, Prompt, Trace
from refusal_cliff.errors import RefusalCliffError
from refusal_cliff.generate.sampling import repeated
from refusal_cliff.probe.fit import MIN_PER_CLASS
from refusal_cliff.stages.asking import PILOT, ask, asked_first, prompts_needed
from refusal_cliff.thinking import Spans

SPANS = Spans(1, 3, 5, 6)
NO, YES = "I'm sorry, but I can't help with that.", "Sure. First, mix the flour and the water."


class Model:
    """Refuses every so many harmful prompts, and answers every so many benign ones."""

    def __init__(self, refuses: int, answers: int = 1) -> None:
        self.refuses, self.answers = refuses, answers
        self.batches: list[list[Prompt]] = []

    def __call__(self, prompts: Sequence[Prompt]) -> list[Trace]:
        self.batches.append(list(prompts))
        return [
            Trace(prompt, (1, 2, 3, 4, 5, 6), SPANS, "t", self._said(prompt), True)
            for prompt in prompts
        ]

    def _said(self, prompt: Prompt) -> str:
        number = int(prompt.id[1:].split("#")[0])
        if prompt.label == "benign":
            return YES if number % self.answers == 0 else NO
        return NO if number % self.refuses == 0 else YES

    def asked(self, label: str) -> int:
        return sum(prompt.label == label for batch in self.batches for prompt in batch)


def prompts(harmful: int, benign: int) -> list[Prompt]:
    return [
        *(Prompt(f"h{i}", f"x{i}", "harmful") for i in range(harmful)),
        *(Prompt(f"b{i}", f"y{i}", "benign") for i in range(benign)),
    ]


def test_all_are_asked_once_and_come_back_in_their_order() -> None:
    model, every = Model(2), prompts(100, 80)
    traces = ask(model, judge_all, every, "fit", 0, None)
    assert [trace.prompt for trace in traces] == every
    assert [len(batch) for batch in model.batches] == [2 * PILOT, 180 - 2 * PILOT]


def test_a_hopeless_audit_ends_with_its_first_batch() -> None:
    model = Model(10**6)
    with pytest.raises(RefusalCliffError, match=r"24 harmful prompts to fit on gave 0") as error:
        ask(model, judge_all, prompts(60, 300)[1:], "fit", 0, None)
    assert len(model.batches) == 1
    assert "12 refused traces" in str(error.value)


def test_what_it_takes_is_said() -> None:
    model = Model(20)
    with pytest.raises(RefusalCliffError, match=r"Give about \d+ harmful prompts to fit on"):
        ask(model, judge_all, prompts(80, 80), "fit", 0, 40)
    assert prompts_needed(10, 20, 12) == 41  # 12 of the lower bound of one half, .299
    assert prompts_needed(0, 20, 12) is None


def test_a_quick_audit_draws_more_of_the_kind_that_is_short() -> None:
    model = Model(6)
    traces = ask(model, judge_all, prompts(300, 300), "fit", 0, 40)
    refused = sum(trace.response == NO for trace in traces if trace.prompt.label == "harmful")
    assert refused >= MIN_PER_CLASS
    assert (model.asked("benign"), model.asked("harmful") % 20) == (40, 0)
    assert 40 < model.asked("harmful") < 300
    assert all({p.label for p in batch} == {"harmful"} for batch in model.batches[1:])


@pytest.mark.parametrize(("first", "refuses"), [(40, 2), (40, 20), (None, 2)])
def test_what_is_asked_in_any_case_is_known_before(first: int | None, refuses: int) -> None:
    model, every = Model(refuses), prompts(400, 300)
    least = sum(map(len, asked_first(every, 0, first).values()))
    ask(model, judge_all, every, "fit", 0, first)
    asked = sum(map(len, model.batches))
    assert asked == least if refuses == 2 else asked > least


@pytest.mark.parametrize("first", [None, 30])
def test_every_prompt_that_is_asked_has_all_its_samples(first: int | None) -> None:
    """``--quick --samples 4`` asked 40 rows of each label: 40 prompts, most of them once."""
    model, every = Model(2), repeated(prompts(60, 50), 4)
    asked = Counter(trace.prompt.text for trace in ask(model, judge_all, every, "fit", 0, first))
    assert set(asked.values()) == {4}
    assert sum(asked.values()) == sum(map(len, asked_first(every, 0, first).values()))
    if first is not None:
        found = asked_first(every, 0, first)
        assert {label: len(some) for label, some in found.items()} == dict.fromkeys(LABELS, 120)


def test_complied_traces_are_short_only_while_it_is_open_whether_it_complies() -> None:
    never = Model(1)
    ask(never, judge_all, prompts(300, 300), "test", 0, 40)
    assert never.asked("harmful") == 40  # none of 40: at most 9 % are complied with
    always = Model(10**6)  # but then refused ones are missing, and all prompts are asked for them
    ask(always, judge_all, prompts(100, 300)[1:], "test", 0, 40)
    assert always.asked("harmful") == 99


@settings(deadline=None, max_examples=60)
@given(
    refuses=st.integers(1, 12),
    answers=st.integers(1, 4),
    first=st.integers(1, 60),
    seed=st.integers(0, 9),
)
def test_no_prompt_twice_and_enough_or_none_left(
    refuses: int, answers: int, first: int, seed: int
) -> None:
    model, every = Model(refuses, answers), prompts(150, 150)
    traces = ask(model, judge_all, every, "test", seed, first)
    asked = [trace.prompt.id for trace in traces]
    assert len(set(asked)) == len(asked) == model.asked("harmful") + model.asked("benign")
    refused = sum(t.response == NO for t in traces if t.prompt.label == "harmful")
    complied = model.asked("harmful") - refused
    answered = sum(t.response == YES for t in traces if t.prompt.label == "benign")
    assert answered >= MIN_BENIGN or model.asked("benign") == 150
    enough = refused >= MIN_REFUSED and (complied >= MIN_COMPLIED or complied == 0)
    assert enough or model.asked("harmful") == 150
    again = Model(refuses, answers)
    assert ask(again, judge_all, every, "test", seed, first) == traces
