"""Refusals in the model's own words: its thinking is closed at the plateau, and it answers.

The data's refusal teaches somebody else's style. A model with a cliff intends to refuse while it
thinks; where the score is highest in the second half of the thinking, the thinking is cut, closed
as the model closed it, and the answer is decoded greedily. It becomes the target if a judge calls
it a refusal, else the next highest place is tried; a prompt may be left without a target.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from refusal_cliff.cliff.scores import read_logits
from refusal_cliff.data.types import Trace, closed_spans
from refusal_cliff.generate import answer
from refusal_cliff.judges import Judge, RulesJudge, judge_traces
from refusal_cliff.model.subject import Subject
from refusal_cliff.probe.fit import ProbeSet
from refusal_cliff.select.candidates import has_thinking
from refusal_cliff.thinking import response_text, split_spans, thinking_text

TRIES = 8
"""Places at which a thinking is cut, one after another, until the answer is a refusal."""


def own_refusals(
    subject: Subject,
    probes: ProbeSet,
    traces: Sequence[Trace],
    max_new_tokens: int,
    judge: Judge | None = None,
) -> list[Trace | None]:
    """For each trace, what the model answers when its thinking ends at the plateau.

    Args:
        subject: The model.
        probes: Fitted on it; the chosen layer is read.
        traces: Its own traces, thinking closed; others get ``None``.
        max_new_tokens: Longest answer.
        judge: Says which answers are refusals; by default the phrase rules.

    Returns:
        A trace whose verdict is ``refused``, its thinking cut; ``None`` where there is none.
    """
    found: list[Trace | None] = [None] * len(traces)
    rows = [row for row, trace in enumerate(traces) if has_thinking(trace)]
    peaks = dict(zip(rows, _peaks(subject, probes, [traces[r] for r in rows]), strict=True))
    for turn in range(TRIES):
        waiting = [r for r in rows if found[r] is None and turn < len(peaks[r])]
        cut = [_cut(traces[r], peaks[r][turn]) for r in waiting]
        answers = answer(subject, cut, max_new_tokens) if cut else []
        made = {
            row: trace
            for row, prefix, written in zip(waiting, cut, answers, strict=True)
            if (trace := _trace(subject, traces[row], prefix, written)) is not None
        }
        judged = judge_traces(list(made.values()), judge or RulesJudge())
        for row, trace in zip(made, judged, strict=True):
            if trace.verdict == "refused":
                found[row] = trace
    return found


def _peaks(subject: Subject, probes: ProbeSet, traces: Sequence[Trace]) -> list[list[int]]:
    """The tokens of the second half of each thinking, by falling score, at most ``TRIES``."""
    if not traces:
        return []
    peaks: list[list[int]] = []
    for trace, logits in zip(
        traces, read_logits(subject, traces, [probes.chosen], probes.read_point), strict=True
    ):
        spans = closed_spans(trace)
        start = spans.late
        falling = np.argsort(-logits[0, start : spans.thinking], kind="stable")
        peaks.append([start + int(place) for place in falling[:TRIES]])
    return peaks


def _cut(trace: Trace, at: int) -> list[int]:
    """The trace up to a token of its thinking, closed as it was closed."""
    spans = closed_spans(trace)
    closing = trace.token_ids[spans.thinking : spans.closing]
    return [*trace.token_ids[: at + 1], *closing]


def _trace(subject: Subject, before: Trace, prefix: list[int], written: list[int]) -> Trace | None:
    """The new trace; ``None`` where the model goes on thinking and closes once more."""
    tokenizer, token_ids = subject.tokenizer, [*prefix, *written]
    spans = split_spans(token_ids, closed_spans(before).prompt, tokenizer, subject.format)
    if spans is None or spans.thinking >= len(prefix):
        return None
    return replace(
        before,
        token_ids=tuple(token_ids),
        spans=spans,
        thinking=thinking_text(tokenizer, token_ids, spans),
        response=response_text(tokenizer, subject.ending.without(token_ids), spans),
        complete=subject.ending.ends(written),
    )
