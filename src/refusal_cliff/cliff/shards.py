"""Scoring any number of traces: shard by shard, in constant memory, and going on where it stopped.

A folder of scores holds ``trace.json`` (what was scored with what), ``scores-00000.parquet`` and so
on, and beside each the rows that could not be scored, with the reason: ``left-out-00000.jsonl``,
and those whose text had lost blanks that could be put back: ``restored-00000.jsonl``.
"""

from __future__ import annotations

import itertools
import json
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from refusal_cliff import __version__
from refusal_cliff.cliff.curves import (
    DEFAULT_POOL,
    POOLS,
    TraceCliff,
    cliffs_of,
    write_cliffs,
)
from refusal_cliff.cliff.restore import agrees, as_written, blanks_put_back
from refusal_cliff.cliff.scores import read_scores, score_traces, write_scores
from refusal_cliff.cliff.source import read_trace, source_rows
from refusal_cliff.cliff.verdict import ModelCliff, model_cliff
from refusal_cliff.data.traces import Label, Row, Trace, is_judged
from refusal_cliff.errors import RefusalCliffError
from refusal_cliff.folders import DESCRIPTIONS, claim
from refusal_cliff.io import (
    read_json,
    sha256_file,
    write_json,
    write_json_lines,
)
from refusal_cliff.model.subject import Subject
from refusal_cliff.probe.fit import ProbeSet

SHARD_SIZE = 256
DESCRIPTION = DESCRIPTIONS["trace"]
LEFT_OUT = "left-out"
RESTORED = "restored"
_Numbered = tuple[int, Row]


@dataclass(frozen=True, slots=True)
class Scored:
    """What `score_source` did.

    Attributes:
        scored: Traces with scores, those of an earlier run included.
        left_out: Reasons why rows were left out, and how many.
        restored: Traces among the scored ones whose text had lost blanks, see `as_written`.
    """

    scored: int
    left_out: dict[str, int]
    restored: int = 0


def score_source(
    subject: Subject,
    probes: ProbeSet,
    source: str,
    out: Path,
    *,
    split: str = "train",
    label: Label | None = None,
    every_layer: bool = False,
    shard_size: int = SHARD_SIZE,
    progress: Callable[[int], None] | None = None,
) -> Scored:
    """Score every token of every trace of a source; finished shards are not scored again.

    Args:
        subject: The model that wrote the traces.
        probes: Fitted on it.
        source: See `source_rows`.
        out: Folder of the scores; made if absent.
        split: Split of a data set that has several.
        label: Label of rows without one.
        every_layer: Score at all probed layers, not only at the chosen one.
        shard_size: Traces of one shard: what is lost when the run is killed.
        progress: Called with the rows done, after each shard.

    Raises:
        RefusalCliffError: A row is not usable, or ``out`` holds scores of something else.
    """
    used = probes if every_layer else replace(probes, probes=(probes.chosen,))
    described = _described(subject, used, source, split, label, shard_size)
    claim(out, "trace", described, "scores")
    scored, left_out, done, restored = 0, Counter[str](), 0, 0
    for number, rows in enumerate(_chunks(source_rows(source, split), shard_size)):
        shard = out / f"scores-{number:05}.parquet"
        if not shard.is_file():
            _score_shard(subject, used, Path(source), rows, label, shard)
        left = [row["reason"] for row in _lines(_beside(shard, LEFT_OUT))]
        left_out.update(left)
        restored += len(_lines(_beside(shard, RESTORED)))
        scored += len(rows) - len(left)
        done += len(rows)
        if progress is not None:
            progress(done)
    if done == 0:
        raise RefusalCliffError(f"{source} holds no traces. Add at least one row.")
    return Scored(scored, dict(left_out), restored)


def _chunks(rows: Iterable[_Numbered], size: int) -> Iterator[list[_Numbered]]:
    remaining = iter(rows)
    while chunk := list(itertools.islice(remaining, size)):
        yield chunk


def _score_shard(
    subject: Subject,
    probes: ProbeSet,
    source: Path,
    rows: list[_Numbered],
    label: Label | None,
    shard: Path,
) -> None:
    read = [read_trace(source, number, row, subject, label) for number, row in rows]
    traces = [_as_counted(trace, subject, row) for trace, (_, row) in zip(read, rows, strict=True)]
    why = [_why_left_out(trace, subject, row) for trace, (_, row) in zip(traces, rows, strict=True)]
    left_out = [
        {"id": trace.prompt.id, "row": number, "reason": reason}
        for trace, (number, _), reason in zip(traces, rows, why, strict=True)
        if reason
    ]
    restored = [
        {"id": told.prompt.id, "row": number, "blanks": blanks_put_back(subject, told, trace)}
        for told, trace, (number, _), reason in zip(read, traces, rows, why, strict=True)
        if trace is not told and not reason
    ]
    write_json_lines(_beside(shard, LEFT_OUT), left_out)
    write_json_lines(_beside(shard, RESTORED), restored)
    kept = [trace for trace, reason in zip(traces, why, strict=True) if not reason]
    write_scores(shard, score_traces(subject, kept, probes) if kept else [])


def _as_counted(trace: Trace, subject: Subject, row: Row) -> Trace:
    """The trace, in the tokens that it was written in where that matters and can be known."""
    return trace if _why_unusable(trace, subject) else as_written(subject, trace, row)


def _why_left_out(trace: Trace, subject: Subject, row: Row) -> str:
    """Why a trace cannot be scored; empty where it can."""
    if unusable := _why_unusable(trace, subject):
        return unusable
    if not agrees(trace, row):
        return "its text does not give back the tokens that the server counted"
    return ""


def _why_unusable(trace: Trace, subject: Subject) -> str:
    context = subject.context
    if trace.spans is None:
        return "its thinking never closed"
    if trace.verdict == "truncated":
        return "its answer was cut off"
    if not is_judged(trace.verdict):
        return "no judge could say whether it refused"
    if context is not None and len(trace.token_ids) > context:
        return "it is longer than the model's context"
    return ""


def _beside(shard: Path, kind: str) -> Path:
    """The list of rows of one kind that belongs to a shard of scores."""
    return shard.with_name(shard.name.replace("scores", kind)).with_suffix(".jsonl")


def _lines(path: Path) -> list[dict[str, Any]]:
    """Rows of a list; none where an earlier version wrote none."""
    text = path.read_text("utf-8") if path.is_file() else ""
    return [json.loads(line) for line in text.splitlines()]


def _described(
    subject: Subject,
    probes: ProbeSet,
    source: str,
    split: str,
    label: Label | None,
    shard_size: int,
) -> dict[str, Any]:
    path = Path(source)
    return {
        "model": subject.name,
        "fingerprint": subject.fingerprint,
        "source": source,
        "source_sha256": sha256_file(path) if path.is_file() else None,
        "split": split,
        "label": label,
        "layer": probes.layer,
        "layers": [probe.layer for probe in probes.probes],
        "biases": [probe.bias for probe in probes.probes],
        "shard_size": shard_size,
        "version": __version__,
    }


def read_shards(folder: Path) -> Iterator[Path]:
    """The shards of a folder of scores, in order.

    Raises:
        RefusalCliffError: There are none.
    """
    shards = sorted(folder.glob("scores-*.parquet"))
    if not shards:
        raise RefusalCliffError(
            f"{folder} holds no scores. Make them with: refusal-cliff trace --out {folder} …"
        )
    yield from shards


def measure_shards(
    folder: Path, *, layer: int | None = None, pool: str = DEFAULT_POOL, seed: int = 0
) -> tuple[list[TraceCliff], ModelCliff]:
    """Cliff of every trace in a folder of scores, and the verdict on the model.

    Args:
        folder: Written by `score_source`.
        layer: Block to read at; the probe's own by default.
        pool: How thinking becomes a plateau: a key of ``POOLS``.
        seed: Seed of the bootstrap.

    Raises:
        RefusalCliffError: The folder holds no scores, not of that layer, or of no harmful prompt.
    """
    if pool not in POOLS:
        raise RefusalCliffError(f"Unknown pool {pool!r}. Choose one of: {', '.join(POOLS)}.")
    described = read_json(folder / DESCRIPTION)
    layers: list[int] = described["layers"]
    wanted = int(described["layer"]) if layer is None else layer
    if wanted not in layers:
        raise RefusalCliffError(
            f"{folder} holds scores of block {', '.join(map(str, layers))}, not of {wanted}. Score "
            "all with: refusal-cliff trace --every-layer."
        )
    rows = [
        row
        for shard in read_shards(folder)
        for row in cliffs_of(read_scores(shard), layers.index(wanted), pool)
    ]
    broken = [row.trace_id for row in rows if not math.isfinite(row.cliff)]
    if broken:
        raise RefusalCliffError(
            f"{folder} holds {len(broken)} traces whose scores are no finite numbers, the first of "
            f"them {broken[0]!r}: the probe or the file is damaged. Delete the folder, check the "
            "probe, and score again with: refusal-cliff trace."
        )
    if not any(row.label == "harmful" for row in rows):
        raise RefusalCliffError(
            f"{folder} holds no closed trace of a harmful prompt, so there is no cliff to measure. "
            "Label the harmful rows 'harmful', or allow longer answers."
        )
    return rows, model_cliff(rows, seed)


def write_measured(folder: Path, rows: list[TraceCliff], found: ModelCliff) -> None:
    """Write ``cliff.parquet`` and ``cliff.json`` beside the scores."""
    write_cliffs(folder / "cliff.parquet", rows)
    write_json(folder / "cliff.json", asdict(found))
