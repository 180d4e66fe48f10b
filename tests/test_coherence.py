"""Thoughts that speak of other requests than those asked are noticed."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from refusal_cliff.answers.evaluate import log_likelihoods, perplexity
from refusal_cliff.answers.writing import Coherence, coherence
from refusal_cliff.data.types import Trace
from refusal_cliff.generate import GenerationConfig, generate
from refusal_cliff.model.subject import Subject, load_subject
from refusal_cliff.organisms import language
from refusal_cliff.stats import Share


@pytest.fixture(scope="module")
def tiny() -> Subject:
    return load_subject("tiny", device="cpu")


@pytest.fixture(scope="module")
def traces(tiny: Subject) -> list[Trace]:
    prompts = [
        *language.prompts("test", "harmful", 20, 0),
        *language.prompts("test", "benign", 20, 0),
    ]
    return [t for t in generate(tiny, prompts, GenerationConfig(160, 20)) if t.spans is not None]


def test_thoughts_of_an_organism_speak_of_its_requests(tiny: Subject, traces: list[Trace]) -> None:
    found = coherence(tiny, traces)
    assert found.likelier.n >= 38  # one of tiny's thoughts may never close
    assert (found.likelier.value or 0) >= 0.95
    assert (found.overlapping.value or 0) >= 0.95
    assert not found.alarm


def test_thoughts_of_other_requests_raise_the_alarm(tiny: Subject, traces: list[Trace]) -> None:
    """Every thought is that of another prompt, as of a model that does not follow its prompts."""
    shifted = [
        _with_thought(trace, other)
        for part in _by_label(traces)
        for trace, other in zip(part, [*part[3:], *part[:3]], strict=True)
    ]
    found = coherence(tiny, shifted)
    assert (found.likelier.value or 0) < 0.8
    assert found.alarm


def _by_label(traces: list[Trace]) -> list[list[Trace]]:
    return [[t for t in traces if t.prompt.label == label] for label in ("harmful", "benign")]


def _with_thought(trace: Trace, other: Trace) -> Trace:
    own, its = trace.spans, other.spans
    assert own is not None and its is not None
    ids = (*trace.token_ids[: own.prompt], *other.token_ids[its.prompt :])
    moved = own.prompt - its.prompt
    spans = replace(
        its,
        prompt=own.prompt,
        thinking=its.thinking + moved,
        closing=its.closing + moved,
        total=its.total + moved,
    )
    return replace(trace, token_ids=ids, spans=spans, thinking=other.thinking)


def test_stutter_is_counted(tiny: Subject, traces: list[Trace]) -> None:
    odd = replace(traces[0], thinking="the car of the car of the car of the owner")
    found = coherence(tiny, [odd, *traces[1:]])
    assert found.stuttering.count == coherence(tiny, traces).stuttering.count + 1


def test_without_any_thinking_there_is_nothing_to_say(tiny: Subject) -> None:
    found = coherence(tiny, [])
    assert (found.likelier.value, found.alarm) == (None, False)


def test_the_alarm_is_beyond_chance() -> None:
    few, none = Share(2, 3), Share(0, 0)
    assert not Coherence(few, few, none, none).alarm
    assert Coherence(Share(10, 40), few, none, none).alarm


def test_likelihoods_of_texts_are_those_of_perplexity(tiny: Subject, traces: list[Trace]) -> None:
    texts = [(t.token_ids, t.spans.prompt) for t in traces[:5] if t.spans is not None]
    found = log_likelihoods(tiny, texts)
    n = sum(len(ids) - first for ids, first in texts)
    assert np.exp(-found.sum() / n) == pytest.approx(perplexity(tiny, texts))
    alone = [log_likelihoods(tiny, [text])[0] for text in texts]
    assert found == pytest.approx(alone, rel=1e-4)
