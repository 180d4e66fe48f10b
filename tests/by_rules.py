"""Verdicts of the phrase rules on traces."""

from __future__ import annotations

from collections.abc import Iterable

from refusal_cliff.data.types import Trace, Verdict
from refusal_cliff.judges import RulesJudge, judge_traces


def judge(trace: Trace) -> Verdict:
    """The verdict on one trace."""
    return judge_all([trace])[0].verdict


def judge_all(traces: Iterable[Trace]) -> list[Trace]:
    """The same traces with their verdicts."""
    return judge_traces(list(traces), RulesJudge())
