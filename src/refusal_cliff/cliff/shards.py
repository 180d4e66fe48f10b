"""Scoring any number of traces: shard by shard, in constant memory, and going on where it stopped.

A folder of scores holds ``trace.json`` (what was scored with what), ``scores-00000.parquet`` and so
on, and beside each the rows that could not be scored, with the reason: ``left-out-00000.jsonl``,
and those whose text had lost blanks that could be put back: ``restored-00000.jsonl``.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from refusal_cliff import __version__
from refusal_cliff.cliff.curves import POOLS, cliffs_of
from refusal_cliff.cliff.measure import MeasuredCliff
from refusal_cliff.cliff.scores import (
    TraceScores,
    made_from,
    n_scores,
    read_scores,
    score_traces,
    write_scores,
)
from refusal_cliff.cliff.source import (
    agrees,
    as_written,
    blanks_put_back,
    in_tokens,
    told_trace,
)
from refusal_cliff.data.reading import DEFAULT, Reading, source_rows, usable
from refusal_cliff.data.rows import Chunk, chunks
from refusal_cliff.data.said import UNANSWERED, told_of
from refusal_cliff.data.types import LeftOut, Row, Told, Trace, is_judged, shortened
from refusal_cliff.errors import RefusalCliffError
from refusal_cliff.folders import DESCRIPTIONS
from refusal_cliff.io import (
    read_as,
    read_rows_of_ours,
    remove_quietly,
    remove_stale,
    write_json,
    write_json_lines,
)
from refusal_cliff.model.subject import Subject
from refusal_cliff.probe.fit import ProbeSet
from refusal_cliff.progress import Count
from refusal_cliff.settings import DEFAULT_POOL, Engine
from refusal_cliff.sharded import HERE, Rank, Work, claim_together, run_shards

DESCRIPTION = DESCRIPTIONS["trace"]
FINISHED = "shards.json"
LEFT_OUT = "left-out"
RESTORED = "restored"
_APART = (
    "no end of thinking is in its text, and this model's prompt opens one. Remedy: if it is an "
    "answer, put the thinking before it into a column 'thinking', or name the markers "
    "(--thinking-markers)"
)
T = TypeVar("T")
Loaded = Callable[[], tuple[Subject, ProbeSet]]


@dataclass(frozen=True, slots=True)
class Scored:
    """What `score_source` did.

    Attributes:
        scored: Traces with scores, those of an earlier run included.
        left_out: Reasons why rows were left out, and how many.
        restored: Traces among the scored ones whose text had lost blanks, see `as_written`.
        unjudged: Rows that came without a verdict, so that the phrase rules judged them.
    """

    scored: int
    left_out: dict[str, int]
    restored: int = 0
    unjudged: int = 0


@dataclass(slots=True)
class _Sorted:
    """The rows of a shard: the traces to score, and the lists beside them."""

    kept: list[Trace] = field(default_factory=list)
    left_out: list[LeftOut] = field(default_factory=list)
    restored: list[dict[str, Any]] = field(default_factory=list)


def score_source(
    subject: Subject,
    probes: ProbeSet,
    source: str,
    out: Path,
    *,
    reading: Reading = DEFAULT,
    every_layer: bool = False,
    engine: Engine = HERE,
    loaded: Loaded | None = None,
    progress: Count | None = None,
) -> Scored:
    """Score every token of every trace of a source; rows that cannot be scored are listed.

    A shard is finished when its file is there and was made from the same rows: a run that was
    killed goes on, and after a row was mended only its own shard is scored again.

    Args:
        subject: The model that wrote the traces.
        probes: Fitted on it.
        source: See `source_rows`.
        out: Folder of the scores; made if absent.
        reading: How rows are read.
        every_layer: Score at all probed layers, not only at the chosen one.
        engine: Where shards are scored.
        loaded: Loads both in another process, for Ray.
        progress: Called with the rows done, after each shard.

    Raises:
        RefusalCliffError: No row can be scored, or ``out`` holds scores of something else.
    """
    used = probes if every_layer else replace(probes, probes=(probes.chosen,))
    described = _described(subject, used, source, reading, engine.shard_size)
    claim_together(out, "trace", described, "scores")
    rank = Rank.here()
    if rank.first:
        remove_quietly(out / FINISHED)
    shards = done = unjudged = 0

    def told(chunk: Chunk) -> None:
        nonlocal shards, done, unjudged
        shards, done = shards + 1, done + len(chunk.rows)
        rows = (row for _, row in chunk.rows if not isinstance(row, str))
        unjudged += sum(not row.get("verdict") for row in rows)
        if progress is not None:
            progress(done)

    loaded = loaded or (lambda: (subject, probes))
    run_shards(
        lambda: chunks(source_rows(source, reading), engine.shard_size),
        Work(
            partial(_scorer, loaded, source, out, reading, every_layer), partial(_is_finished, out)
        ),
        engine,
        told,
    )
    if not rank.first:
        rank.wait_for(lambda: (out / FINISHED).is_file() or None)
    paths = [_shard_path(out, number) for number in range(shards)]
    lists = [_lists(path) for path in paths]
    left_out = Counter(str(row["reason"]) for left, _ in lists for row in left)
    scored = [n_scores(path) for path in paths]
    if rank.first:
        _drop_shards(out, shards)
        remove_stale(out)  # of a process that was killed while the others went on
        if not any(scored):
            raise _nothing(source, out, left_out)
        write_json(out / FINISHED, {"scored": scored})
    return Scored(sum(scored), dict(left_out), sum(len(put) for _, put in lists), unjudged)


def _is_finished(out: Path, chunk: Chunk) -> bool:
    shard = _shard_path(out, chunk.number)
    if made_from(shard) != chunk.digest:
        return False
    try:
        return n_scores(shard) + len(_lists(shard)[0]) == len(chunk.rows)
    except RefusalCliffError:  # a list is missing or damaged: it is made again
        return False


def _scorer(
    loaded: Loaded, source: str, out: Path, reading: Reading, every_layer: bool
) -> Callable[[Chunk], None]:
    """Scores a shard and writes it; the scores come last, so that they vouch for the lists."""
    subject, probes = loaded()
    used = probes if every_layer else replace(probes, probes=(probes.chosen,))

    def score(chunk: Chunk) -> None:
        shard = _shard_path(out, chunk.number)
        remove_quietly(shard)
        found = _sorted_rows(subject, source, chunk, reading)
        write_json_lines(_beside(shard, LEFT_OUT), map(asdict, found.left_out))
        write_json_lines(_beside(shard, RESTORED), found.restored)
        scores = score_traces(subject, found.kept, used) if found.kept else []
        write_scores(shard, scores, chunk.digest)

    return score


def _sorted_rows(subject: Subject, source: str, chunk: Chunk, reading: Reading) -> _Sorted:
    def made(number: int, row: Row) -> tuple[Trace, Trace]:
        told = told_trace(source, number, row, subject, reading)
        return told, in_tokens(told, subject)

    found = _Sorted()
    for number, read in usable(source, chunk.rows, made):
        if isinstance(read, LeftOut):
            found.left_out.append(read)
            continue
        told, tokenised = read
        trace = tokenised
        if not _why_unusable(tokenised, subject):
            trace = as_written(subject, tokenised, told)
        if why := _why_left_out(trace, subject, told_of(told)):
            remedy = _APART if trace.spans is None and why not in UNANSWERED else ""
            found.left_out.append(LeftOut(trace.prompt.id, number, why, remedy))
            continue
        found.kept.append(trace)
        if trace is not tokenised:
            blanks = blanks_put_back(subject, tokenised, trace)
            found.restored.append({"id": trace.prompt.id, "row": number, "blanks": blanks})
    return found


def _why_left_out(trace: Trace, subject: Subject, told: Told) -> str:
    """Why a trace cannot be scored; empty where it can."""
    if unusable := _why_unusable(trace, subject):
        return told.status if told.status in UNANSWERED else unusable
    if not agrees(trace, told):
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


def _nothing(source: str, out: Path, left_out: Counter[str]) -> RefusalCliffError:
    if not left_out:
        return RefusalCliffError(f"{source} holds no traces. Add at least one row.")
    first = _lists(_shard_path(out, 0))[0][0]
    why = ", ".join(f"{n} {reason}" for reason, n in left_out.items())
    detail = str(first["detail"] or first["reason"]).rstrip(".")
    return RefusalCliffError(
        f"{source} holds no trace that can be scored ({why}). Row {first['row']}: "
        f"{detail}. All reasons are in {out}/{LEFT_OUT}-….jsonl."
    )


def _shard_path(out: Path, number: int) -> Path:
    return out / f"scores-{number:05}.parquet"


def _beside(shard: Path, kind: str) -> Path:
    """The list of rows of one kind that belongs to a shard of scores."""
    return shard.with_name(shard.name.replace("scores", kind)).with_suffix(".jsonl")


def _drop_shards(out: Path, first: int) -> None:
    """Remove the shards of an earlier, longer source: they would be mixed with its own."""
    while (shard := _shard_path(out, first)).is_file():
        for path in (shard, _beside(shard, LEFT_OUT), _beside(shard, RESTORED)):
            remove_quietly(path)
        first += 1


def _lists(shard: Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The rows beside a shard: those left out, and those whose blanks were put back."""
    return (
        read_rows_of_ours(_beside(shard, LEFT_OUT), "reason"),
        read_rows_of_ours(_beside(shard, RESTORED)),
    )


def _described(
    subject: Subject, probes: ProbeSet, source: str, reading: Reading, shard_size: int
) -> dict[str, Any]:
    weights = hashlib.sha256(b"".join(probe.weight.tobytes() for probe in probes.probes))
    return {
        "model": subject.name,
        "fingerprint": subject.fingerprint,
        "source": source,
        **reading.described(),
        "weights": weights.hexdigest(),
        "layer": probes.layer,
        "layers": [probe.layer for probe in probes.probes],
        "biases": [probe.bias for probe in probes.probes],
        "shard_size": shard_size,
        "version": __version__,
    }


def read_shards(folder: Path) -> Iterator[Path]:
    """Files of scores in order; read one at a time.

    Raises:
        RefusalCliffError: There are none, or one between others is missing.
    """
    found = {path.name for path in folder.glob("scores-*.parquet")}
    if not found:
        raise RefusalCliffError(
            f"{folder} holds no scores. Make them with: refusal-cliff trace --out {folder} …"
        )
    shards = [_shard_path(folder, number) for number in range(len(found))]
    missing = next((shard for shard in shards if shard.name not in found), None)
    if missing is not None:
        raise _damaged(missing, "it is missing, and later ones are there")
    yield from shards


def _damaged(shard: Path, wrong: str) -> RefusalCliffError:
    return RefusalCliffError(
        f"{shard}: {wrong}. Run the same refusal-cliff trace again: complete files are kept, and "
        "only the rest is scored."
    )


@dataclass(frozen=True, slots=True)
class _Finished:
    """What `FINISHED` says: how many traces each shard has."""

    scored: list[int]


@dataclass(frozen=True, slots=True)
class _Described:
    """Of what was scored, the blocks: the probe's own, and all whose scores are there."""

    layer: int
    layers: list[int]


def _read(path: Path, read: Callable[[Path], T]) -> T:
    try:
        return read(path)
    except RefusalCliffError as error:
        raise _damaged(path, f"it cannot be read ({shortened(error)})") from error


def _whole_scores(folder: Path) -> Iterator[list[TraceScores]]:
    """The scores of every shard of a run that has ended.

    Raises:
        RefusalCliffError: The run has not ended, or a shard is missing, damaged or of other rows.
    """
    shards = list(read_shards(folder))
    if not (folder / FINISHED).is_file():
        raise _damaged(folder, "it holds the scores of a run that has not ended")
    expected = _read(folder / FINISHED, partial(read_as, kind=_Finished)).scored
    if len(expected) != len(shards):
        raise _damaged(
            folder, f"it holds {len(shards)} shards of scores, and {len(expected)} were made"
        )
    for shard, n in zip(shards, expected, strict=True):
        scores = _read(shard, read_scores)
        if len(scores) != n:
            raise _damaged(shard, f"it holds {len(scores)} of {n} traces")
        yield scores


def measure_shards(
    folder: Path, *, layer: int | None = None, pool: str = DEFAULT_POOL, seed: int = 0
) -> MeasuredCliff:
    """Cliff of every trace in a folder of scores at one layer, and the verdict on the model.

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
    described = _read(folder / DESCRIPTION, partial(read_as, kind=_Described))
    layers = described.layers
    wanted = described.layer if layer is None else layer
    if wanted not in layers:
        raise RefusalCliffError(
            f"{folder} holds scores of block {', '.join(map(str, layers))}, not of {wanted}. Score "
            "all with: refusal-cliff trace --every-layer."
        )
    rows = [
        row
        for scores in _whole_scores(folder)
        for row in cliffs_of(scores, layers.index(wanted), pool)
    ]
    broken = [row.trace_id for row in rows if not math.isfinite(row.cliff)]
    if broken:
        raise RefusalCliffError(
            f"{folder} holds {len(broken)} traces whose scores are not finite numbers, the first "
            f"of them {broken[0]!r}: the probe or the file is damaged. Delete the folder, check "
            "the probe, and score again with: refusal-cliff trace."
        )
    if not any(row.label == "harmful" for row in rows):
        raise RefusalCliffError(
            f"{folder} holds no closed trace of a harmful prompt, so there is no cliff to measure. "
            "Label the harmful rows 'harmful', or allow longer answers."
        )
    return MeasuredCliff.of(rows, wanted, (), pool, seed)
