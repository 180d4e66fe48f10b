"""Refusal scores of every token at every probed layer: ``scores.parquet``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from refusal_cliff.data.types import Trace, Verdict, closed_spans
from refusal_cliff.errors import RefusalCliffError
from refusal_cliff.model.capture import ProbeScores, Reader, capture
from refusal_cliff.model.final_norm import at_read_point
from refusal_cliff.model.subject import Subject
from refusal_cliff.probe.fit import Probe, ProbeSet, ReadPoint
from refusal_cliff.progress import Progress
from refusal_cliff.tables import read_parquet, write_parquet
from refusal_cliff.thinking import Spans


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


def score_traces(
    subject: Subject,
    traces: Sequence[Trace],
    probes: ProbeSet,
    progress: Progress | None = None,
) -> list[TraceScores]:
    """Score every token of the traces at every probed layer, in one pass over the model.

    Args:
        subject: The model the probes were fitted on, see `files.check_probes_fit`.
        traces: Closed traces, see `traces.closed`.
        probes: One probe per layer.
        progress: Called with (traces done, traces).
    """
    at = probes.read_point
    return scores_of(traces, read_logits(subject, traces, probes.probes, at, progress=progress))


def read_logits(
    subject: Subject,
    traces: Sequence[Trace],
    probes: Sequence[Probe],
    read_point: ReadPoint,
    *beside: Reader,
    progress: Progress | None = None,
) -> list[NDArray[np.float32]]:
    """Score logits of every token of each trace, [probes, tokens], in one pass over the model.

    Args:
        subject: The model.
        traces: Closed or not.
        probes: By rising layer.
        read_point: Where they read.
        beside: Readers of other things in the same pass.
        progress: Called with (traces done, traces).
    """
    weights = {probe.layer: (probe.weight, probe.bias) for probe in probes}
    reader = ProbeScores(weights, len(traces))
    tap = at_read_point(reader, subject, read_point)
    capture(subject, [trace.token_ids for trace in traces], [tap, *beside], progress=progress)
    return reader.logits


def scores_of(traces: Sequence[Trace], logits: Sequence[NDArray[Any]]) -> list[TraceScores]:
    """What was read at every token of some traces.

    Args:
        traces: Closed traces, see `traces.closed`.
        logits: Of each, [rows, tokens].
    """
    return [
        TraceScores(
            trace.prompt.id,
            trace.prompt.group,
            trace.prompt.label,
            trace.verdict,
            closed_spans(trace),
            found,
        )
        for trace, found in zip(traces, logits, strict=True)
    ]


SCHEMA = pa.schema(
    [
        *((name, pa.string()) for name in ("trace_id", "group", "label", "verdict")),
        ("spans", pa.list_(pa.int32())),
        ("logits", pa.list_(pa.list_(pa.float32()))),
    ]
)
_MADE_FROM = b"refusal_cliff.made_from"


def write_scores(path: Path, scores: Sequence[TraceScores], made_from: str = "") -> None:
    """Write one row a trace; ``logits`` is a list of layers, each a list of tokens.

    Args:
        path: A Parquet file.
        scores: Of one or more traces.
        made_from: Hash of what was scored, see `made_from`.
    """
    columns: dict[str, Any] = {n: [getattr(row, n) for row in scores] for n in SCHEMA.names}
    columns["spans"] = [[s.prompt, s.thinking, s.closing, s.total] for s in columns["spans"]]
    columns["logits"] = [list(layers) for layers in columns["logits"]]  # arrays, not their numbers
    table = pa.table(columns, SCHEMA).replace_schema_metadata({_MADE_FROM: made_from})
    write_parquet(path, table, numbers="logits.list.element.list.element")


def n_scores(path: Path) -> int:
    """Traces in a whole file of scores."""
    return pq.read_metadata(path).num_rows


def made_from(path: Path) -> str | None:
    """The hash in a file of scores of what was scored; ``None`` where no whole file is."""
    try:
        return (pq.read_schema(path).metadata or {}).get(_MADE_FROM, b"").decode()
    except (OSError, pa.ArrowException):
        return None


def read_scores(path: Path) -> list[TraceScores]:
    """Read what `write_scores` wrote.

    Raises:
        RefusalCliffError: The file is damaged, or is one of something else.
    """
    table = read_parquet(path, SCHEMA.names)
    if table.schema.types != SCHEMA.types:
        raise RefusalCliffError(f"{path} is not a table of scores. Make the file again.")
    logits = table.column("logits").combine_chunks()
    scores = [
        TraceScores(**row | {"spans": Spans(*row["spans"]), "logits": _matrix(logits[place])})
        for place, row in enumerate(table.drop_columns("logits").to_pylist())
    ]
    for row in scores:
        if not (row.spans.in_order and row.logits.shape[1] == row.spans.total):
            raise RefusalCliffError(
                f"{path} is damaged: the scores of {row.trace_id!r} do not fit its spans. Make the "
                "file again."
            )
    return scores


def _matrix(logits: Any) -> NDArray[np.float32]:
    """[layers, tokens] of one trace."""
    layers = logits.values
    return layers.flatten().to_numpy(zero_copy_only=False).reshape(len(layers), -1)
