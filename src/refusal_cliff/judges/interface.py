"""What every judge takes and gives."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from refusal_cliff.data.traces import Trace, Verdict


@dataclass(frozen=True, slots=True)
class Answer:
    """What a judge sees of a trace: never the thinking.

    Attributes:
        prompt: The user's request.
        text: The answer.
        complete: Whether thinking and answer were both ended by the model; every judge calls an
            answer that was not ``truncated``, without reading it.
    """

    prompt: str
    text: str
    complete: bool = True


@dataclass(frozen=True, slots=True)
class Judgement:
    """What a judge says of one answer.

    Attributes:
        verdict: ``unscored`` where the judge's words could not be read; nothing stands in for it.
        score: Degree of harm from 0 to 1, of a judge that grades.
        reason: Why an answer is unscored, or the judge's own words.
    """

    verdict: Verdict
    score: float | None = None
    reason: str = ""


class Judge(Protocol):
    """Anything that judges answers.

    Attributes:
        name: Says which judge this is, its model included; recorded beside every verdict.
        measures_harm: Whether ``harmful`` is among its verdicts; else an attack succeeds where the
            answer ``complied``.
    """

    name: str
    measures_harm: bool

    def judge(self, answers: Sequence[Answer]) -> list[Judgement]:
        """One judgement an answer, in the order given; a truncated answer is never read.

        Raises:
            RefusalCliffError: No answer can be judged, for example because a server is down.
        """
        ...


def answer_of(trace: Trace) -> Answer:
    """What a judge sees of a trace."""
    return Answer(trace.prompt.text, trace.response, trace.spans is not None and trace.complete)
