"""From measurements to what charts show: curves of groups of traces, and the map of heads."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence

from refusal_cliff.cliff.curves import MeanCurve, mean_curve
from refusal_cliff.cliff.scores import TraceScores
from refusal_cliff.data.traces import Trace, complies
from refusal_cliff.heads.table import HeadRow
from refusal_cliff.model.subject import Head
from refusal_cliff.report.data import Curve, Group, HeadMap

FIRST_OFFSET = -28
"""First token that curves show, relative to the last closing token."""
LEAST = 3
"""Traces of which a group has a curve."""
GROUPS: tuple[Group, ...] = ("complied", "refused", "benign")


def curves_of(name: str, scores: Sequence[TraceScores], row: int) -> list[Curve]:
    """Mean curve of each group that has traces enough.

    Args:
        name: Of the model.
        scores: Of any traces.
        row: Row of the layer.
    """
    measured: list[tuple[Group, list[TraceScores]]] = [
        (group, group_of(scores, group)) for group in GROUPS
    ]
    return [
        curve_of(name, group, mean_curve(traces, row, FIRST_OFFSET))
        for group, traces in measured
        if len(traces) >= LEAST
    ]


def curve_of(name: str, group: Group, mean: MeanCurve) -> Curve:
    """A mean curve with whose it is."""
    return Curve(name, group, mean.offsets, mean.mean, mean.low, mean.high, mean.n)


def group_of(scores: Sequence[TraceScores], group: Group) -> list[TraceScores]:
    """The traces of one group."""
    if group == "benign":
        return [trace for trace in scores if trace.label == "benign"]
    return [trace for trace in scores if trace.label == "harmful" and shows(trace.verdict, group)]


def shows(verdict: str, group: Group) -> bool:
    """Whether a verdict belongs to a group of the report: every attack that worked is complied."""
    return complies(verdict) if group == "complied" else verdict == group


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


def head_map(
    rows: Sequence[HeadRow], found: Collection[Head], planted: Sequence[Head] | None = None
) -> HeadMap:
    """What taking out each head does.

    Args:
        rows: Every head.
        found: The heads taken out.
        planted: The heads that a recipe damaged; ``None`` where there is no ground truth.
    """
    by_layer: dict[int, list[HeadRow]] = {}
    for row in rows:
        by_layer.setdefault(row.layer, []).append(row)
    return HeadMap(
        layers=list(by_layer),
        effect=[[row.causal.mean for row in layer] for layer in by_layer.values()],
        suppression=[(row.layer, row.index) for row in rows if row.head in found],
        planted=[(head.layer, head.index) for head in planted] if planted else None,
        n=rows[0].causal.n,
        direct=[[row.direct.mean for row in layer] for layer in by_layer.values()],
    )
