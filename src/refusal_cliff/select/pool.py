"""Reading a data set into shards of candidates, in constant memory; all that is left out is listed.

The folder holds ``pool.json`` (counts, once all is read), ``pool/candidates-00000.parquet`` and so
on, each the usable rows among ``shard_size`` rows of the data set, and ``pool/left-out-…jsonl``.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from refusal_cliff.cliff.source import source_rows
from refusal_cliff.data.traces import Label, Prompt, Row, SafetyExample
from refusal_cliff.io import atomic_path, read_json, write_json, write_text
from refusal_cliff.select.contamination import Evaluation, Seen
from refusal_cliff.select.safety_data import LeftOut, read_candidate
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
    """

    rows: int
    kept: int
    shards: int
    left_out: dict[str, int]
    evaluation: int


def shard_path(out: Path, number: int) -> Path:
    """Candidates of one shard."""
    return out / "pool" / f"candidates-{number:05}.parquet"


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
    split: str = "train",
    label: Label = "harmful",
    shard_size: int = 256,
    progress: Callable[[int], None] | None = None,
) -> PoolCounts:
    """Read the data set once, in order; the first of several equal prompts stays.

    What memory grows with is 16 bytes a row, to know duplicates. A run that was killed reads anew
    and writes the same files.

    Args:
        source: See `source_rows`.
        out: Folder of the selection.
        fmt: How the model marks its thinking.
        evaluation: Prompts that must not be trained on.
        own_thinking: The model's own thinking will be scored, so rows need none.
        split: Split of a data set that has several.
        label: Label of rows without one.
        shard_size: Rows of the data set in one shard.
        progress: Called with the rows done, after each shard.
    """
    asked, seen, left_out = Evaluation(evaluation), Seen(), Counter[str]()
    rows = kept = shards = 0
    for chunk in _chunks(source_rows(source, split), shard_size):
        usable: list[Numbered] = []
        lines: list[str] = []
        for number, row in chunk:
            found = read_candidate(Path(source), number, row, fmt, label)
            if isinstance(found, SafetyExample):
                found = _refused(found, asked, seen, own_thinking) or found
            if isinstance(found, SafetyExample):
                usable.append((number, found))
            else:
                left_out[found.reason] += 1
                lines.append(left_out_line(number, found))
        write_text(left_out_path(out, shards), "".join(lines))
        write_candidates(shard_path(out, shards), usable)
        rows, kept, shards = rows + len(chunk), kept + len(usable), shards + 1
        if progress is not None:
            progress(rows)
    counts = PoolCounts(rows, kept, shards, dict(left_out), len(asked))
    write_json(out / COUNTS, asdict(counts))
    return counts


def read_counts(out: Path) -> PoolCounts | None:
    """What `read_pool` has counted; ``None`` if it has not ended."""
    path = out / COUNTS
    return PoolCounts(**read_json(path)) if path.is_file() else None


def left_out_line(number: int, why: LeftOut) -> str:
    """One line of a list of rows left out."""
    return json.dumps({"row": number, **asdict(why)}, ensure_ascii=False) + "\n"


def _refused(
    example: SafetyExample, asked: Evaluation, seen: Seen, own_thinking: bool
) -> LeftOut | None:
    """Why a well-formed example is left out; a row left out does not make later ones duplicates."""
    overlapping = asked.overlaps(example.prompt.text)
    if overlapping is not None:
        return LeftOut("overlaps with the evaluation", f"prompt {overlapping!r}")
    if not own_thinking and not example.thinking.strip():
        return LeftOut(NO_THINKING, "use the model's own thinking (--thinking own)")
    if not seen.add(example.prompt.text):
        return LeftOut("duplicate", "an earlier row has the same prompt")
    return None


def _chunks(rows: Iterable[tuple[int, Row]], size: int) -> Iterator[list[tuple[int, Row]]]:
    remaining = iter(rows)
    while chunk := list(islice(remaining, size)):
        yield chunk


def write_candidates(path: Path, examples: Sequence[Numbered]) -> None:
    """Write examples with the numbers of their rows, as `read_candidates` gives them back."""
    rows = [
        {**asdict(e.prompt), "row": number, "thinking": e.thinking, "response": e.response}
        for number, e in examples
    ]
    with atomic_path(path) as temporary:
        pq.write_table(pa.Table.from_pylist(rows, schema=_SCHEMA), temporary)


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
        for row in pq.read_table(path).to_pylist()
    ]
