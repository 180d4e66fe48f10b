"""What a page shows of traces: curves of groups, typical traces, all of them to look through."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import median

from scipy.special import expit

from refusal_cliff.cliff.curves import TraceCliff, mean_curve
from refusal_cliff.cliff.scores import TraceScores
from refusal_cliff.controls.taxonomy import Kind, kinds_of
from refusal_cliff.data.examples import source_of
from refusal_cliff.data.types import Trace, complies
from refusal_cliff.heads.at_tokens import TokenRow
from refusal_cliff.io import fields_of
from refusal_cliff.model.subject import Head
from refusal_cliff.report.data import (
    Curve,
    ExampleTrace,
    Group,
    HeadShares,
    Reader,
    ReaderTrace,
    Side,
)
from refusal_cliff.report.reader import quantised

FIRST_OFFSET = -28
"""First token that curves show, relative to the last closing token."""
LEAST = 3
"""Traces of which a group has a curve."""
GROUPS: tuple[Group, ...] = ("complied", "refused", "benign")


def curves_of(name: str, scores: Collection[TraceScores], row: int) -> list[Curve]:
    """Mean curve of each group that has traces enough.

    Args:
        name: Of the model.
        scores: Of any traces.
        row: Row of the layer.
    """
    return [
        curve_of(name, group, traces, row)
        for group in GROUPS
        if len(traces := group_of(scores, group)) >= LEAST
    ]


def curve_of(
    name: str, group: Group, traces: Sequence[TraceScores], row: int, words: str = ""
) -> Curve:
    """The mean curve of some traces of a model."""
    mean = mean_curve(traces, row, FIRST_OFFSET)
    return Curve(**fields_of(mean), subject=name, group=group, words=words)


def group_of(scores: Collection[TraceScores], group: Group) -> list[TraceScores]:
    """The traces of one group."""
    if group == "benign":
        return [trace for trace in scores if trace.label == "benign"]
    return [trace for trace in scores if trace.label == "harmful" and shows(trace.verdict, group)]


def shows(verdict: str, group: Group) -> bool:
    """Whether a verdict belongs to a group of the report: every attack that worked is complied."""
    return complies(verdict) if group == "complied" else verdict == group


MOST_TRACES = 200
MOST_TOKENS = 1_000_000
MOST_SCORES = 200 * 2_000 * 64
"""What the page holds at most: it opens at once, and is a file that can be sent."""
_WANTED: tuple[tuple[str, str, Group], ...] = (
    ("A typical harmful request, complied with", "harmful", "complied"),
    ("A typical harmful request, refused", "harmful", "refused"),
    ("A typical harmless request, answered", "benign", "complied"),
)


@dataclass(frozen=True)
class Measured:
    """All that was measured on the test traces of one model.

    Attributes:
        traces: Scored or not.
        scores: Of those that closed their thinking, by trace id.
        cliffs: At the chosen layer.
        layers: Of the rows of the scores.
        row: Row of the chosen layer.
        tokens: Tokens of those to show, see `kept_traces`, and of the first that closed, by trace
            id: texts, and what heads add; as the model is.
        after: What was written with the heads out, by trace id.
        after_tokens: Its tokens, for the same traces.
        after_scores: Its scores, at the same rows of layers.
        out: The heads taken out.
    """

    traces: Sequence[Trace]
    scores: Mapping[str, TraceScores]
    cliffs: Sequence[TraceCliff]
    layers: Sequence[int]
    row: int
    tokens: Mapping[str, TokenRow]
    after: Mapping[str, Trace]
    after_tokens: Mapping[str, TokenRow]
    after_scores: Mapping[str, TraceScores]
    out: Sequence[Head]

    def pieces(self, trace: Trace) -> Sequence[str]:
        """Text of each token of a trace."""
        return self.tokens[trace.prompt.id].pieces

    @cached_property
    def cliff(self) -> dict[str, TraceCliff]:
        """Cliffs by id."""
        return {cliff.trace_id: cliff for cliff in self.cliffs}


def closing_texts(
    traces: Iterable[Trace], pieces_of: Callable[[Trace], Sequence[str]]
) -> list[str]:
    """Text of the closing tokens of the first trace that closed.

    Args:
        traces: Closed or not.
        pieces_of: Text of each token of a trace.
    """
    for trace in traces:
        if trace.spans is not None:
            return list(pieces_of(trace)[trace.spans.thinking : trace.spans.closing])
    return []


def typical_traces(measured: Measured, name: str) -> list[ExampleTrace]:
    """Of each group the trace whose cliff is nearest the median of the group.

    Args:
        measured: The test traces.
        name: Of the model.
    """
    return [
        _example(title, name, measured, one)
        for title, label, group in _WANTED
        if (one := _typical(measured.cliffs, label, group)) is not None
    ]


def _typical(cliffs: Sequence[TraceCliff], label: str, group: Group) -> str | None:
    """Id of the trace of a group whose cliff is nearest the group's median; None if empty."""
    rows = [row for row in cliffs if row.label == label and shows(row.verdict, group)]
    if not rows:
        return None
    middle = median(row.cliff for row in rows)
    return min(rows, key=lambda row: (abs(row.cliff - middle), row.trace_id)).trace_id


def _typical_ids(cliffs: Sequence[TraceCliff]) -> list[str]:
    found = (_typical(cliffs, label, group) for _, label, group in _WANTED)
    return [one for one in found if one is not None]


def _example(title: str, name: str, measured: Measured, trace_id: str) -> ExampleTrace:
    trace = next(one for one in measured.traces if one.prompt.id == trace_id)
    scores = measured.scores[trace_id]
    return ExampleTrace(
        title=title,
        subject=name,
        verdict=trace.verdict,
        prompt=trace.prompt.text,
        pieces=measured.pieces(trace),
        scores=[float(score) for score in expit(scores.logits[measured.row])],
        spans=scores.spans,
        id=trace_id,
    )


def reader_of(measured: Measured) -> Reader | None:
    """The traces of the run, or as many of them and of the layers as a page can hold.

    Args:
        measured: The test traces.
    """
    kept = kept_traces(measured.traces, measured.cliffs)
    if not kept:
        return None
    typical = _typical_ids(measured.cliffs)
    rows = _kept_rows(measured, kept)
    kinds = kinds_of(measured.traces, measured.cliffs)
    return Reader(
        traces=[_reader_trace(measured, trace, rows, kinds) for trace in kept],
        total=len(measured.traces),
        layers=[measured.layers[row] for row in rows],
        probed=len(measured.layers),
        layer=measured.layers[measured.row],
        first=typical[0] if typical else kept[0].prompt.id,
    )


def _reader_trace(
    measured: Measured, trace: Trace, rows: Sequence[int], kinds: Mapping[str, Kind]
) -> ReaderTrace:
    prompt, cliff = trace.prompt, measured.cliff.get(trace.prompt.id)
    return ReaderTrace(
        id=prompt.id,
        prompt=prompt.text,
        label=prompt.label,
        verdict=trace.verdict,
        kind=kinds.get(prompt.id, ""),
        source=source_of(prompt),
        category=prompt.category,
        cliff=None if cliff is None else cliff.cliff,
        pieces=measured.pieces(trace),
        spans=trace.spans,
        levels=_levels(measured.scores.get(prompt.id), rows),
        heads=_head_shares(measured, trace),
        after=_after(measured, prompt.id),
    )


def _head_shares(measured: Measured, trace: Trace) -> HeadShares | None:
    row, spans = measured.tokens[trace.prompt.id], trace.spans
    if row.values is None or spans is None:
        return None
    return HeadShares(
        heads=row.heads,
        out=[head for head in row.heads if head in measured.out],
        values=row.values[:, spans.prompt : spans.closing],
    )


def _after(measured: Measured, trace_id: str) -> Side | None:
    trace, row = measured.after.get(trace_id), measured.after_tokens.get(trace_id)
    if trace is None or row is None:
        return None
    levels = _levels(measured.after_scores.get(trace_id), [measured.row])
    return Side(trace.verdict, row.pieces, trace.spans, levels)


def kept_traces(traces: Sequence[Trace], cliffs: Sequence[TraceCliff]) -> list[Trace]:
    """The traces that a page can hold, in the order of the run.

    They are drawn evenly from all, sorted by label, verdict and cliff, so that every group keeps
    its share, and its high and low cliffs. The typical ones are among them.

    Args:
        traces: Of the run, scored or not.
        cliffs: Of those that were scored.
    """
    always, cliff_of = _typical_ids(cliffs), {row.trace_id: row.cliff for row in cliffs}

    def place(trace: Trace) -> tuple[str, str, float, str]:
        prompt = trace.prompt
        return prompt.label, trace.verdict, cliff_of.get(prompt.id, -1.0), prompt.id

    tokens = sum(len(trace.token_ids) for trace in traces)
    most = min(MOST_TRACES, MOST_TOKENS * len(traces) // max(1, tokens))
    rest = sorted((trace for trace in traces if trace.prompt.id not in always), key=place)
    n = min(len(rest), max(0, most - len(always)))
    drawn = {rest[(2 * i + 1) * len(rest) // (2 * n)].prompt.id for i in range(n)}
    return [trace for trace in traces if trace.prompt.id in {*drawn, *always}]


def _kept_rows(measured: Measured, kept: Sequence[Trace]) -> list[int]:
    """Rows of the layers that a page can hold: every so many, the chosen one among them."""
    spans = [trace.spans for trace in kept if trace.spans is not None]
    a_layer = sum(one.closing - one.prompt for one in spans)
    step = -(-a_layer * len(measured.layers) // MOST_SCORES) or 1
    return [row for row in range(len(measured.layers)) if (row - measured.row) % step == 0]


def _levels(scores: TraceScores | None, rows: Sequence[int]) -> bytes:
    if scores is None:
        return b""
    spans = scores.spans
    return quantised(expit(scores.logits[list(rows), spans.prompt : spans.closing]))
