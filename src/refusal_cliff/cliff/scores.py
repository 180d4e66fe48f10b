"""Refusal scores of every token at every probed layer: ``scores.parquet``.

With many long traces they are more than all else in memory, so that they are made, written and read
a few traces at a time.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from itertools import islice
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from refusal_cliff.data.types import Trace, Verdict, closed_spans
from refusal_cliff.errors import RefusalCliffError
from refusal_cliff.model.capture import ProbeScores, Reader, capture
from refusal_cliff.model.final_norm import at_read_point
from refusal_cliff.model.memory import BatchLimit, in_parts
from refusal_cliff.model.rows import default_token_budget
from refusal_cliff.model.subject import Subject
from refusal_cliff.probe.fit import Probe, ProbeSet, ReadPoint
from refusal_cliff.progress import Progress
from refusal_cliff.tables import read_parquet_parts, write_parquet_parts
from refusal_cliff.thinking import Spans

_SCORES_AT_ONCE = 1 << 22


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
    return list(scores_in_parts(subject, traces, probes, progress))


def scores_in_parts(
    subject: Subject,
    traces: Sequence[Trace],
    probes: ProbeSet,
    progress: Progress | None = None,
) -> Iterator[TraceScores]:
    """What `score_traces` returns, of a few traces at a time: for more than memory holds."""
    done, layers, limit = 0, len(probes.probes), BatchLimit(default_token_budget(subject))
    for part in in_parts(traces, lambda trace: layers * len(trace.token_ids), _SCORES_AT_ONCE):
        told = None if progress is None else partial(_after, progress, done, len(traces))
        at = probes.read_point
        logits = read_logits(subject, part, probes.probes, at, limit=limit, progress=told)
        yield from scores_of(part, logits)
        done += len(part)


def _after(progress: Progress, before: int, total: int, done: int, _: int) -> None:
    progress(before + done, total)


def read_logits(
    subject: Subject,
    traces: Sequence[Trace],
    probes: Sequence[Probe],
    read_point: ReadPoint,
    *beside: Reader,
    limit: BatchLimit | None = None,
    progress: Progress | None = None,
) -> list[NDArray[np.float32]]:
    """Score logits of every token of each trace, [probes, tokens], in one pass over the model.

    Args:
        subject: The model.
        traces: Closed or not.
        probes: By rising layer.
        read_point: Where they read.
        beside: Readers of other things in the same pass.
        limit: Tokens of a batch, where several calls share what fits into memory.
        progress: Called with (traces done, traces).
    """
    weights = {probe.layer: (probe.weight, probe.bias) for probe in probes}
    reader = ProbeScores(weights, len(traces))
    tap = at_read_point(reader, subject, read_point)
    capture(
        subject,
        [trace.token_ids for trace in traces],
        [tap, *beside],
        names=[trace.prompt.id for trace in traces],
        limit=limit,
        progress=progress,
    )
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


def write_scores(path: Path, scores: Iterable[TraceScores], made_from: str = "") -> None:
    """Write one row a trace; ``logits`` is a list of layers, each a list of tokens.

    Args:
        path: A Parquet file.
        scores: Of the traces, in order; a few of them are in memory at a time.
        made_from: Hash of what was scored, see `made_from`.
    """
    schema = SCHEMA.with_metadata({_MADE_FROM: made_from})
    parts = in_parts(scores, lambda row: row.logits.size, _SCORES_AT_ONCE)
    tables = (_table(part, schema) for part in parts)
    write_parquet_parts(path, schema, tables, numbers="logits.list.element.list.element")


def _table(scores: Sequence[TraceScores], schema: pa.Schema) -> pa.Table:
    columns: dict[str, Any] = {n: [getattr(row, n) for row in scores] for n in SCHEMA.names}
    columns["spans"] = [[s.prompt, s.thinking, s.closing, s.total] for s in columns["spans"]]
    columns["logits"] = [list(layers) for layers in columns["logits"]]  # arrays, not their numbers
    return pa.table(columns, schema)


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
    """Read what `write_scores` wrote, in little memory.

    Their arrays are views, not to be written to, of a copy on the disk: a file without a name in
    the same folder, or in that of temporary files (``TMPDIR``), of 4 bytes a score. So the system
    keeps in memory what is looked at, while there is room. Without a place for it they are in
    memory.

    Raises:
        RefusalCliffError: The file is damaged, or is one of something else.
    """
    for place in (path.parent, None):
        with suppress(OSError):
            return _read_through(TemporaryFile(dir=place), path)
    return _read_through(BytesIO(), path)


def _read_through(file: IO[bytes], path: Path) -> list[TraceScores]:
    """The scores in a file, their arrays in another, which nobody needs to know of."""
    rows: list[dict[str, Any]] = []
    shapes: list[tuple[int, int]] = []
    with file:
        for table in read_parquet_parts(path, SCHEMA):
            logits = table.column("logits").combine_chunks()
            part = table.drop_columns("logits").to_pylist()
            for row in part:
                row["spans"] = Spans(*row["spans"])
            shapes += _shapes(path, part, logits)
            rows += part
            file.write(logits.flatten().flatten().to_numpy(zero_copy_only=False))
        file.flush()
        flat = np.zeros(0, np.float32)
        if isinstance(file, BytesIO):
            flat = np.frombuffer(file.getvalue(), np.float32)
        elif rows:
            flat = np.memmap(file, np.float32, "r").view(np.ndarray)
    ends = np.cumsum([layers * tokens for layers, tokens in shapes])
    return [
        TraceScores(**row, logits=flat[end - layers * tokens : end].reshape(layers, tokens))
        for row, (layers, tokens), end in zip(rows, shapes, ends, strict=True)
    ]


def _shapes(
    path: Path, rows: Sequence[dict[str, Any]], logits: pa.ListArray
) -> list[tuple[int, int]]:
    """(layers, tokens) of some rows, all of whose layers have the tokens that the spans tell."""
    layers = logits.value_lengths().to_pylist()
    tokens = iter(logits.flatten().value_lengths().to_pylist())
    for row, n in zip(rows, layers, strict=True):
        spans = row["spans"]
        if not spans.in_order or {*islice(tokens, n)} != {spans.total}:
            raise RefusalCliffError(
                f"{path} is damaged: the scores of {row['trace_id']!r} do not fit its spans. Make "
                "the file again."
            )
    return [(n, row["spans"].total) for row, n in zip(rows, layers, strict=True)]
