"""Verdicts that are asked for once: not twice of one process, and not again after a kill."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, astuple, replace

from refusal_cliff.data.journal import Journal
from refusal_cliff.data.traces import Trace
from refusal_cliff.judges.interface import Answer, Judge, Judgement, answer_of

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
    """The same traces with their verdicts.

    Args:
        traces: What was answered.
        judge: Who judges.
        journal: Keeps every verdict; what is in it is not asked again. It may hold other rows.
    """
    answers = list(map(answer_of, traces))
    keys = [f"verdict {digest((judge.name, *astuple(answer)))}" for answer in answers]
    said = kept_judgements(judge, list(zip(keys, answers, strict=True)), journal)
    return [replace(trace, verdict=one.verdict) for trace, one in zip(traces, said, strict=True)]


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
        RefusalCliffError: Nothing can be judged, for example because a server is down.
    """
    rows = {} if journal is None else journal.rows
    found = {
        key: Judgement(rows[key]["verdict"], rows[key]["score"], rows[key]["reason"])
        for key, _ in asked
        if key in rows and rows[key]["verdict"] != "unscored"
    }
    missing = [pair for pair in dict(asked).items() if pair[0] not in found]
    for start in range(0, len(missing), AT_ONCE):
        some = missing[start : start + AT_ONCE]
        said = judge.judge([answer for _, answer in some])
        new = {key: one for (key, _), one in zip(some, said, strict=True)}
        if journal is not None:
            journal.add(*({"id": key, **asdict(one)} for key, one in new.items()))
        found |= new
        if told is not None:
            told()
    return [found[key] for key, _ in asked]


def digest(content: object) -> str:
    """A short hash of JSON values: a verdict belongs to an answer, not only to the prompt."""
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]
