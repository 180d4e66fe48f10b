"""Reading a data set into shards of candidates, in constant memory; all that is left out is listed.

The folder holds ``pool.json`` (counts, once all is read), ``pool/candidates-00000.parquet`` and so
on, each the usable rows among ``shard_size`` rows of the data set, and ``pool/left-out-…jsonl``.
Candidates that come out otherwise than an earlier run read them lose their scores: so scores are
always those of the candidates beside them, and all others are kept.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import pyarrow as pa

from refusal_cliff.data.reading import Reading, source_rows, usable
from refusal_cliff.data.rows import chunks, source_digest
from refusal_cliff.data.shapes import example_of_row
from refusal_cliff.data.types import LeftOut, Prompt, SafetyExample
from refusal_cliff.errors import RefusalCliffError
from refusal_cliff.io import read_as, remove_quietly, write_json, write_json_lines
from refusal_cliff.progress import Count
from refusal_cliff.select.contamination import Evaluation, Seen
from refusal_cliff.tables import read_parquet, write_parquet
from refusal_cliff.thinking import ThinkingFormat

COUNTS = "pool.json"
NO_THINKING = "no thinking"
Numbered = tuple[int, SafetyExample]
_TEXTS = ("id", "text", "label", "group", "category")
_SCHEMA = pa.schema(
    [
        ("row", pa.int64()),
        *((name, pa.string()) for name in _TEXTS),
        ("tags", pa.list_(pa.string())),
        ("thinking", pa.string()),
        ("response", pa.string()),
    ]
)


@dataclass(frozen=True, slots=True)
class PoolCounts:
    """What became of the rows of a data set.

    Attributes:
        rows: All of them.
        kept: Those that can be scored.
        shards: Files of candidates.
        left_out: Reasons, and how many rows each.
        evaluation: Prompts that the rows were compared with.
        source_sha256: Hash of what the data set held; ``None`` for one of the hub.
    """

    rows: int
    kept: int
    shards: int
    left_out: dict[str, int]
    evaluation: int
    source_sha256: str | None = None


def shard_path(out: Path, number: int) -> Path:
    """Candidates of one shard."""
    return out / "pool" / f"candidates-{number:05}.parquet"


def scores_path(out: Path, number: int) -> Path:
    """Scores of one shard."""
    return out / "scores" / f"scores-{number:05}.parquet"


def left_out_path(out: Path, number: int) -> Path:
    """Rows of one shard that were left out while reading."""
    return out / "pool" / f"left-out-{number:05}.jsonl"


def read_pool(
    source: str,
    out: Path,
    fmt: ThinkingFormat,
    evaluation: Sequence[Prompt],
    *,
    own_thinking: bool,
    reading: Reading,
    shard_size: int,
    progress: Count,
) -> PoolCounts:
    """Read the data set once, in order; the first of several equal prompts stays.

    What memory grows with is some 200 bytes a row, to know ids and duplicates. A run that was
    killed reads anew and writes the same files.

    Args:
        source: See `source_rows`.
        out: Folder of the selection.
        fmt: How the model marks its thinking.
        evaluation: Prompts that must not be trained on.
        own_thinking: The model's own thinking will be scored, so rows need none.
        reading: How rows are read; rows without a label are harmful by default.
        shard_size: Rows of the data set in one shard.
        progress: Called with the rows done, after each shard.
    """
    reading = reading.by_default("harmful").of_model(fmt)
    make = partial(example_of_row, source, reading=reading)
    digest = source_digest(source)
    remove_quietly(out / COUNTS)
    asked, seen, left_out = Evaluation(evaluation), Seen(), Counter[str]()
    rows = kept = shards = 0
    for chunk in chunks(source_rows(source, reading), shard_size):
        found: list[Numbered] = []
        why: list[LeftOut] = []
        for number, made in usable(source, chunk.rows, make):
            if isinstance(made, SafetyExample):
                made = _refused(number, made, asked, seen, own_thinking) or made
            if isinstance(made, SafetyExample):
                found.append((number, made))
            else:
                why.append(made)
        left_out.update(row.reason for row in why)
        write_json_lines(left_out_path(out, shards), map(asdict, why))
        _replace_candidates(out, shards, found)
        rows, kept, shards = rows + len(chunk.rows), kept + len(found), shards + 1
        progress(rows)
    _drop_shards(out, shards)
    counts = PoolCounts(rows, kept, shards, dict(left_out), len(asked), digest)
    write_json(out / COUNTS, asdict(counts))
    return counts


def read_counts(out: Path, digest: str | None) -> PoolCounts | None:
    """What `read_pool` has counted of a data set; ``None`` if it has not ended, or of another.

    Args:
        out: Folder of the selection.
        digest: See `source_digest`.
    """
    counts = read_as(out / COUNTS, PoolCounts) if (out / COUNTS).is_file() else None
    return counts if counts is not None and counts.source_sha256 == digest else None


def _refused(
    number: int, example: SafetyExample, asked: Evaluation, seen: Seen, own_thinking: bool
) -> LeftOut | None:
    """Why a well-formed example is left out; a row left out does not make later ones duplicates."""
    prompt = example.prompt
    overlapping = asked.overlaps(prompt.text)
    if overlapping is not None:
        reason, detail = "overlaps with the evaluation", f"prompt {overlapping!r}"
    elif not own_thinking and not example.thinking.strip():
        reason, detail = NO_THINKING, "use the model's own thinking (--thinking own)"
    elif not seen.add(prompt.text):
        reason, detail = "duplicate", "an earlier row has the same prompt"
    else:
        return None
    return LeftOut(prompt.id, number, reason, detail)


def _replace_candidates(out: Path, number: int, found: Sequence[Numbered]) -> None:
    """Write a shard of candidates; the scores of others are removed before it is."""
    path = shard_path(out, number)
    try:
        same = path.is_file() and read_candidates(path) == list(found)
    except (OSError, ValueError, KeyError, pa.ArrowException, RefusalCliffError):
        same = False
    if not same:
        remove_quietly(scores_path(out, number))
        write_candidates(path, found)


def _drop_shards(out: Path, first: int) -> None:
    """Remove the shards of an earlier, longer data set: they would be mixed with its own."""
    while shard_path(out, first).is_file():
        for path in (scores_path, shard_path, left_out_path):
            remove_quietly(path(out, first))
        first += 1


def write_candidates(path: Path, examples: Sequence[Numbered]) -> None:
    """Write examples with the numbers of their rows, as `read_candidates` gives them back."""
    rows = [
        {**asdict(e.prompt), "row": number, "thinking": e.thinking, "response": e.response}
        for number, e in examples
    ]
    write_parquet(path, pa.Table.from_pylist(rows, schema=_SCHEMA))


def read_candidates(path: Path) -> list[Numbered]:
    """Read what `write_candidates` wrote."""
    return [
        (
            row["row"],
            SafetyExample(
                Prompt(**{name: row[name] for name in _TEXTS}, tags=tuple(row["tags"])),
                row["thinking"],
                row["response"],
            ),
        )
        for row in read_parquet(path).to_pylist()
    ]
