"""Refusal scores of every token at every probed layer: ``scores.parquet``."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from refusal_cliff.capture import ProbeScores, Progress, capture
from refusal_cliff.io import atomic_path
from refusal_cliff.models import Subject
from refusal_cliff.probe import ProbeSet
from refusal_cliff.thinking import Spans
from refusal_cliff.traces import Trace, Verdict


@dataclass(frozen=True, slots=True)
class TraceScores:
    """Score logits of one trace.

    Attributes:
        trace_id: Id of its prompt.
        group: Prompts of one group are near-duplicates.
        label: ``harmful`` or ``benign``.
        verdict: What the judge said.
        spans: Ends of the four spans.
        logits: [layers, tokens] score logits; ``layers`` as in the probe set, rising.
    """

    trace_id: str
    group: str
    label: str
    verdict: Verdict
    spans: Spans
    logits: NDArray[np.float32]


def closed(traces: Iterable[Trace]) -> list[Trace]:
    """The traces that can be scored: their thinking closed and they were judged."""
    return [
        trace
        for trace in traces
        if trace.spans is not None and trace.verdict in ("refused", "complied")
    ]


def score_traces(
    subject: Subject,
    traces: Sequence[Trace],
    probes: ProbeSet,
    progress: Progress | None = None,
) -> list[TraceScores]:
    """Score every token of the traces at every probed layer, in one pass over the model.

    Args:
        subject: The model the probes were fitted on.
        traces: Closed traces, see `closed`.
        probes: One probe per layer.
        progress: Called with (traces done, traces).
    """
    weights = {probe.layer: (probe.weight, probe.bias) for probe in probes.probes}
    reader = ProbeScores(weights, len(traces))
    capture(subject, [trace.token_ids for trace in traces], [reader], progress=progress)
    return [
        TraceScores(
            trace.prompt.id,
            trace.prompt.group,
            trace.prompt.label,
            trace.verdict,
            trace.spans,
            np.asarray(logits, dtype=np.float32),
        )
        for trace, logits in zip(traces, reader.logits, strict=True)
        if trace.spans is not None
    ]


def write_scores(path: Path, scores: Sequence[TraceScores]) -> None:
    """Write one row a trace; ``logits`` is a list of layers, each a list of tokens."""
    columns = {
        "trace_id": [row.trace_id for row in scores],
        "group": [row.group for row in scores],
        "label": [row.label for row in scores],
        "verdict": [row.verdict for row in scores],
        "spans": [
            [row.spans.prompt, row.spans.thinking, row.spans.closing, row.spans.total]
            for row in scores
        ],
        "logits": [row.logits.tolist() for row in scores],
    }
    schema = pa.schema(
        [
            *((name, pa.string()) for name in ("trace_id", "group", "label", "verdict")),
            ("spans", pa.list_(pa.int32())),
            ("logits", pa.list_(pa.list_(pa.float32()))),
        ]
    )
    with atomic_path(path) as temporary:
        pq.write_table(pa.table(columns, schema=schema), temporary)


def read_scores(path: Path) -> list[TraceScores]:
    """Read what `write_scores` wrote."""
    return [
        TraceScores(
            row["trace_id"],
            row["group"],
            row["label"],
            row["verdict"],
            Spans(*row["spans"]),
            np.array(row["logits"], dtype=np.float32),
        )
        for row in pq.read_table(path).to_pylist()
    ]
