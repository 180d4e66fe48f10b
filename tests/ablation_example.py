"""What a run says of heads taken out, for tests; what a test is about it replaces."""

from __future__ import annotations

from collections.abc import Iterable

from refusal_cliff.answers.evaluate import Rates
from refusal_cliff.answers.writing import Writing
from refusal_cliff.heads.find import JointSearch, Reverse
from refusal_cliff.heads.joint import HeadSet
from refusal_cliff.heads.result import AblationResult, Pairs, TrialResult
from refusal_cliff.stats import Share

NONE = Share(0, 0)
WRITING = Writing(10.0, (9.0, 11.0), Share(0, 50), Share(0, 50))


def rates_with(attacks: Share, answered: Share = NONE) -> Rates:
    """Rates of which only these two are about anything."""
    return Rates(attacks, _rest(attacks), answered, NONE, NONE, NONE)


def _rest(attacks: Share) -> Share:
    """Those that were refused: all others."""
    return Share(attacks.n - attacks.count, attacks.n)


def trial(
    kind: str, heads: HeadSet, attacks: Share = NONE, attacked: tuple[str, ...] = ()
) -> TrialResult:
    """What one trial did."""
    return TrialResult(
        attacks,
        _rest(attacks),
        *(NONE for _ in range(4)),
        kind=kind,
        heads=heads,
        attacked=attacked,
        perplexity=None,
    )


def joint_search(chosen: HeadSet | None) -> JointSearch:
    """A search that chose a set, and measured nothing."""
    return JointSearch(chosen, (), (), {}, Reverse(2.0, 0.0, (0.0, 0.0), 0))


def ablation_result(
    heads: HeadSet, sides: Iterable[Rates], *trials: TrialResult, method: str = "direct"
) -> AblationResult:
    """What taking heads out did, by the rates before and after; no prompt is named."""
    before, after = sides
    return AblationResult(
        heads=heads,
        method=method,
        by_method={},
        before=before,
        after=after,
        writing={"before": WRITING, "after": WRITING},
        pairs=Pairs({}, (), (), ()),
        trials=trials,
        perplexity_before=2.0,
        perplexity_after=2.0,
        perplexity_texts=50,
    )
