"""Versions of a row side by side are blind to each other, and what cannot be folded is copied."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from tiny_families import FAMILIES, TRACES, family_subject, probe

from refusal_cliff.heads.rerun import (
    CannotFoldError,
    Rerun,
    fold_arguments,
    fold_mask,
    score_readout,
)


@pytest.mark.parametrize("kind", ["bool", "float"])
def test_a_version_sees_what_is_kept_and_itself(kind: str) -> None:
    own = torch.tensor([[1, 1, 0, 1, 0], [1, 0, 1, 1, 1]]).bool()[None, None]  # 3 kept, 2 tokens
    mask = own if kind == "bool" else torch.where(own, 0.0, torch.finfo(torch.float32).min)
    folded = fold_mask(mask, 2)
    seen = folded if kind == "bool" else folded == 0
    expected = [
        [1, 1, 0, 1, 0, 0, 0],
        [1, 0, 1, 1, 1, 0, 0],
        [1, 1, 0, 0, 0, 1, 0],
        [1, 0, 1, 0, 0, 1, 1],
    ]
    assert seen[0, 0].int().tolist() == expected


def test_arguments_follow_their_tokens() -> None:
    mask = torch.ones(2, 1, 3, 7, dtype=torch.bool)
    turns = (torch.arange(6.0).reshape(1, 3, 2), torch.zeros(2, 3, 2))
    rest, named = fold_arguments(
        [mask], {"position_ids": torch.arange(3)[None], "turns": turns, "use": True}, 2, 3, 2
    )
    assert rest[0].shape == (2, 1, 6, 10)
    assert named["position_ids"].tolist() == [[0, 1, 2, 0, 1, 2]]
    assert [part.shape for part in named["turns"]] == [(1, 6, 2), (2, 6, 2)]
    assert named["use"] is True
    states = torch.randn(2, 3, 4)
    assert states.repeat(1, 2, 1).unflatten(1, (2, 3))[:, 1].equal(states)


@pytest.mark.parametrize(
    "argument", [None, torch.ones(2, 7), torch.ones(2, 4, 1, 7), torch.ones(5, 3, 7)]
)
def test_what_is_unknown_is_not_folded(argument: Any) -> None:
    mask = [torch.ones(2, 1, 3, 7)] if argument is not None else []
    with pytest.raises(CannotFoldError):
        fold_arguments([*mask, argument], {}, 2, 3, 2)


@pytest.mark.parametrize("family", FAMILIES)
def test_one_row_gives_what_copies_give(family: str) -> None:
    subject = family_subject(family)
    sets = [(head,) for head in subject.heads()]
    with torch.inference_mode():
        closing = Rerun(subject, TRACES, score_readout(subject, probe()))
        assert closing._folds
        folded = closing.final_logits(1, sets, 0.4)
        copied = closing._in_copies(1, sets, 0.4).numpy()
    assert np.ptp(copied, axis=1).min() > 0.1
    np.testing.assert_allclose(folded, copied, rtol=1e-4, atol=1e-5 * np.abs(copied).max())


def test_without_a_mask_rows_are_copied() -> None:
    """One trace, one closing token: nothing is masked, so nothing could keep versions apart."""
    from tiny_families import closed_trace

    subject, traces = family_subject("llama"), [closed_trace(4, 6, 1, 2)]
    with torch.inference_mode():
        closing = Rerun(subject, traces, score_readout(subject, probe()))
        sets = [(head,) for head in subject.heads()]
        folded, copied = closing.final_logits(1, sets), closing._in_copies(1, sets, 0.0).numpy()
    np.testing.assert_allclose(folded, copied, rtol=1e-5)
