"""Shifts of the answer are those of whole passes through the whole model, its head included."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import entropy
from tiny_families import FAMILIES, TRACES, family_subject, next_token

from refusal_cliff.heads.joint import AnswerShifts, HeadSet, divergence, select_jointly
from refusal_cliff.model.subject import Head

SETS: list[HeadSet] = [(), (Head(2, 1),), (Head(1, 0), Head(3, 3)), (Head(3, 2),)]


@pytest.mark.parametrize("family", FAMILIES)
def test_shifts_are_those_of_whole_forward_passes(family: str) -> None:
    subject = family_subject(family)
    got = AnswerShifts(subject, TRACES).of(SETS)
    expected = [
        [entropy(next_token(subject, t, ()), next_token(subject, t, heads)) for heads in SETS]
        for t in TRACES
    ]
    assert np.max(expected) > 1e-4
    np.testing.assert_allclose(got, expected, atol=1e-3 * np.max(expected))
    assert not got[:, 0].any()


def test_divergence_by_hand() -> None:
    base, changed = np.log([[0.5, 0.5], [0.25, 0.75]]), np.log([[0.25, 0.75], [0.25, 0.75]])
    expected = [0.5 * np.log(2) + 0.5 * np.log(2 / 3), 0.0]
    np.testing.assert_allclose(divergence(base + 3.0, changed - 1.0), expected, atol=1e-12)


def test_a_group_is_extended_by_what_it_shifts_together(monkeypatch: pytest.MonkeyPatch) -> None:
    subject = family_subject("llama")
    effects = AnswerShifts(subject, TRACES)
    heads = subject.heads()
    whole = effects.of([(head,) for head in heads])
    monkeypatch.setattr("refusal_cliff.heads.joint.LOGITS_AT_ONCE", 1)
    small = AnswerShifts(subject, TRACES)
    np.testing.assert_allclose(small.of([(head,) for head in heads]), whole, atol=1e-5)
    first, both = select_jointly(effects, heads, 2)
    assert first == (heads[int(whole.mean(0).argmax())],)
    pairs = effects.of([(first[0], head) for head in heads]).mean(0)
    assert both == (first[0], heads[int(pairs.argmax())])
