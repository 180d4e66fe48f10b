"""What every judge takes and gives; verdicts that are asked for once, also after a kill."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, astuple, dataclass, replace
from typing import Any, Protocol

from refusal_cliff.data.journal import Journal
from refusal_cliff.data.said import EMPTY, REFUSAL_FIELD, UNANSWERED, status_of
from refusal_cliff.data.types import Trace, Verdict
from refusal_cliff.errors import RefusalCliffError
from refusal_cliff.settings import KNOWS_HARM


@dataclass(frozen=True, slots=True)
class Answer:
    """What a judge sees of a trace: never the thinking.

    Attributes:
        prompt: The user's request.
        text: The answer.
        complete: Whether thinking and answer were both ended by the model.
        status: What is known without reading, see `Told`.
    """

    prompt: str
    text: str
    complete: bool = True
    status: str = ""


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


def knows_harm(judge: str) -> bool | None:
    """Whether ``harmful`` is among a judge's verdicts, by its whole name; ``None``: not known."""
    return KNOWS_HARM.get(re.split(r"[+ ]", judge, maxsplit=1)[0])


class Judge(Protocol):
    """Anything that judges answers.

    Attributes:
        name: Says which judge this is, and all that its verdicts depend on, such as its model: it
            is recorded beside every verdict, and what was judged under another name is judged anew.
        measures_harm: Whether ``harmful`` is among its verdicts; else an attack succeeds where the
            answer ``complied``.
    """

    name: str
    measures_harm: bool

    def judge(self, answers: Sequence[Answer]) -> list[Judgement]:
        """One judgement an answer, in the order given; see `judge_each` for what is never read.

        Raises:
            RefusalCliffError: No answer can be judged, for example because a server is down.
        """
        ...


def judge_each(
    answers: Sequence[Answer], read: Callable[[list[Answer]], Iterable[Judgement]]
) -> list[Judgement]:
    """Judge the answers that there are, and say of the others what they are; the same everywhere.

    What the server calls a refusal is one. Where there is no answer, because it is empty or for one
    of the reasons in ``UNANSWERED``, it is unscored with the reason, never compliance. What
    never ended is truncated.

    Args:
        answers: All answers.
        read: Judges those that are to be read, in the order given.
    """
    settled = list(map(_settled, answers))
    judged = iter(read([a for a, said in zip(answers, settled, strict=True) if said is None]))
    return [next(judged) if said is None else said for said in settled]


def _settled(answer: Answer) -> Judgement | None:
    if answer.status == REFUSAL_FIELD:
        return Judgement("refused", reason=REFUSAL_FIELD)
    if answer.status in UNANSWERED:
        return Judgement("unscored", reason=answer.status)
    if not answer.complete:
        return Judgement("truncated")
    return None if answer.text.strip() else Judgement("unscored", reason=EMPTY)


def answer_of(trace: Trace) -> Answer:
    """What a judge sees of a trace."""
    told = "" if trace.told is None else trace.told.status
    status = told or status_of(trace.thinking, trace.response, trace.closed, trace.complete)
    return Answer(trace.prompt.text, trace.response, trace.closed and trace.complete, status)


AT_ONCE = 64
"""Answers that a judge is given at a time: the verdicts that a kill can lose."""


class Remembering:
    """A judge that is asked about no answer twice: control sets repeat what the model said before.

    Args:
        judge: Who judges; what it could not score is asked again.
    """

    def __init__(self, judge: Judge) -> None:
        self._judge = judge
        self._known: dict[Answer, Judgement] = {}
        self.name, self.measures_harm = judge.name, judge.measures_harm

    def judge(self, answers: Sequence[Answer]) -> list[Judgement]:
        """As the judge itself."""
        new = list(dict.fromkeys(answer for answer in answers if answer not in self._known))
        found = dict(zip(new, self._judge.judge(new), strict=True))
        self._known |= {a: said for a, said in found.items() if said.verdict != "unscored"}
        return [found[a] if a in found else self._known[a] for a in answers]


def judge_traces(
    traces: Sequence[Trace], judge: Judge, journal: Journal | None = None
) -> list[Trace]:
    """The same traces with their verdicts, and whose they are.

    Args:
        traces: What was answered.
        judge: Who judges.
        journal: Keeps every verdict; what is in it is not asked again. It may hold other rows.
    """
    answers = [answer_of(trace) for trace in traces]
    keys = [f"verdict {digest((judge.name, *astuple(answer)))}" for answer in answers]
    said = kept_judgements(judge, list(zip(keys, answers, strict=True)), journal)
    return [with_judgement(trace, judge.name, one) for trace, one in zip(traces, said, strict=True)]


def with_judgement(trace: Trace, judge: str, said: Judgement) -> Trace:
    """The trace as a judge leaves it."""
    return replace(trace, judge=judge, **asdict(said))


def kept_judgements(
    judge: Judge,
    asked: Sequence[tuple[str, Answer]],
    journal: Journal | None = None,
    told: Callable[[], None] | None = None,
) -> list[Judgement]:
    """Judge what the journal has no verdict on yet; what is unscored there is asked again.

    Args:
        judge: Who judges.
        asked: Answers, each with its name in the journal.
        journal: Where verdicts are kept; ``None`` keeps none.
        told: Called after every few verdicts.

    Raises:
        RefusalCliffError: Nothing can be judged, for example because a server is down; or the judge
            leaves an answer out.
    """
    rows = {} if journal is None else journal.rows
    found = {
        key: judgement_of(rows[key])
        for key, _ in asked
        if key in rows and rows[key]["verdict"] != "unscored"
    }
    missing = [pair for pair in dict(asked).items() if pair[0] not in found]
    for start in range(0, len(missing), AT_ONCE):
        some = missing[start : start + AT_ONCE]
        said = judge.judge([answer for _, answer in some])
        if len(said) != len(some):
            raise RefusalCliffError(
                f"The judge {judge.name!r} gave {len(said)} judgements of {len(some)} answers. It "
                "must give one for each, in their order."
            )
        new = {key: one for (key, _), one in zip(some, said, strict=True)}
        if journal is not None:
            journal.add(*({"id": key, **asdict(one)} for key, one in new.items()))
        found |= new
        if told is not None:
            told()
    return [found[key] for key, _ in asked]


def judgement_of(row: Mapping[str, Any]) -> Judgement:
    """A judgement out of a journal."""
    return Judgement(row["verdict"], row["score"], row["reason"])


def digest(content: object) -> str:
    """A short hash of JSON values: a verdict belongs to an answer, not only to the prompt."""
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]
