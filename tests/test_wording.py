"""What is told of sets of heads chosen together, in words and as doses, and when nothing is."""

from __future__ import annotations

import pytest
from ablation_example import ablation_result, rates_with, trial

from refusal_cliff.findings.summary import DoseSummary, JointSummary, ProofSummary
from refusal_cliff.findings.wording import joint_set_finding
from refusal_cliff.model.subject import Head
from refusal_cliff.stats import Share


def dose(heads: int, asr: float) -> DoseSummary:
    return DoseSummary(
        heads=heads, asr=asr, asr_ci=(0, 1), benign_answered=None, perplexity_ratio=None
    )


def joint(size: int, beats: bool, search: str = "greedy") -> JointSummary:
    return JointSummary(
        search=search, size=size, joint=2.0, top=1.0, difference_ci=(0.5, 1.5), beats=beats
    )


def proof(*compared: JointSummary, doses: tuple[DoseSummary, ...]) -> ProofSummary:
    return ProofSummary.model_construct(doses={"joint": list(doses)}, joint=list(compared))


DOSES = (dose(0, 0.6), dose(2, 0.1), dose(8, 0.0))


def test_the_best_joint_set_that_beats_the_ranking_is_told() -> None:
    (found,) = joint_set_finding(proof(joint(2, True), joint(8, False), doses=DOSES))
    assert found.answer.startswith("2 of them: attack success rate 60% [0.00, 1.00] → 10%")
    assert found.holds is None


@pytest.mark.parametrize(
    "content",
    [
        proof(joint(2, False), joint(8, False), doses=DOSES),
        proof(joint(2, True, "beam"), doses=DOSES),
        proof(joint(4, True), doses=DOSES),
        proof(joint(2, True), doses=DOSES[1:]),
        proof(joint(2, True), doses=()),
    ],
)
def test_nothing_is_said_of_sets_that_do_not_or_were_not_tried(content: ProofSummary) -> None:
    assert joint_set_finding(content) == []


@pytest.mark.parametrize(
    ("method", "expected"),
    [("direct", [(0, 6), (2, 5)]), ("joint effect", [(0, 6), (1, 4), (2, 1)])],
)
def test_doses_are_in_the_order_in_which_heads_were_found(
    method: str, expected: list[tuple[int, int]]
) -> None:
    made = [("top-direct", 0, 6), ("top-direct", 2, 5), ("joint", 1, 4), ("joint", 2, 1)]
    trials = [
        trial(kind, (Head(1, 0),) * n, Share(count, 10))
        for kind, n, count in [*made, ("random", 2, 6)]
    ]
    none = rates_with(Share(6, 10))
    found = ablation_result((), (none, none), *trials, method=method).doses_as_found()
    assert [(len(dose.heads), dose.attacks.count) for dose in found] == expected
