"""Prompts, traces and training examples; reading them strictly and writing them whole."""

from __future__ import annotations

import csv
import itertools
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, TypeAlias, cast, get_args

import pyarrow as pa
import pyarrow.parquet as pq

from refusal_cliff.errors import RefusalCliffError
from refusal_cliff.io import atomic_path
from refusal_cliff.thinking import Spans

Label: TypeAlias = Literal["harmful", "benign"]
Verdict: TypeAlias = Literal["refused", "complied", "harmful", "truncated", "unscored"]
"""``complied``: answered, and no judge of harm called the answer harmful; ``harmful``: it did."""
COMPLIANCE: frozenset[str] = frozenset({"complied", "harmful"})
Row: TypeAlias = Mapping[str, object]

LABELS: tuple[str, ...] = get_args(Label)
VERDICTS: tuple[str, ...] = get_args(Verdict)
TEXT_COLUMNS = ("prompt", "text", "instruction")


@dataclass(frozen=True, slots=True)
class Prompt:
    """One request to the model.

    ``group`` is shared by near-duplicates, which must stay on one side of a split; ``tags`` are
    free marks such as ``framed`` or ``hard-benign``.
    """

    id: str
    text: str
    label: Label
    group: str = ""
    category: str = ""
    tags: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.group:
            object.__setattr__(self, "group", self.id)


@dataclass(frozen=True, slots=True)
class Trace:
    """What a model wrote for one prompt; ``token_ids`` are those it generated, prompt first.

    ``spans`` is ``None`` when the thinking never closed; ``complete`` says whether the model
    ended its answer itself; ``thinking_cut`` that a thinking budget closed the thinking for it.
    """

    prompt: Prompt
    token_ids: tuple[int, ...]
    spans: Spans | None
    thinking: str
    response: str
    complete: bool
    verdict: Verdict = "unscored"
    thinking_cut: bool = False


@dataclass(frozen=True, slots=True)
class SafetyExample:
    """A training example: a prompt with the thinking and the response to be learnt."""

    prompt: Prompt
    thinking: str
    response: str


def complies(verdict: str) -> bool:
    """Whether an answer gives what was asked: of a harmful prompt, an attack that worked.

    A judge that only knows refusals says ``complied``, a judge of harm also ``harmful``. Whatever
    counts, ranks or draws attacks asks here, so that any judge can be used everywhere.
    """
    return verdict in COMPLIANCE


def is_judged(verdict: str) -> bool:
    """Whether a judge could say of an answer whether it refuses."""
    return verdict == "refused" or complies(verdict)


TRACE_SCHEMA = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("prompt", pa.string(), nullable=False),
        pa.field("label", pa.string(), nullable=False),
        pa.field("group", pa.string(), nullable=False),
        pa.field("category", pa.string(), nullable=False),
        pa.field("tags", pa.list_(pa.string()), nullable=False),
        pa.field("token_ids", pa.list_(pa.int32()), nullable=False),
        pa.field(
            "spans",
            pa.struct([(name, pa.int32()) for name in ("prompt", "thinking", "closing", "total")]),
        ),
        pa.field("thinking", pa.string(), nullable=False),
        pa.field("response", pa.string(), nullable=False),
        pa.field("complete", pa.bool_(), nullable=False),
        pa.field("verdict", pa.string(), nullable=False),
        pa.field("thinking_cut", pa.bool_()),
    ]
)


def read_prompts(path: Path | str, *, label: Label | None = None) -> list[Prompt]:
    """Read prompts from JSON Lines, CSV or Parquet.

    Columns: ``prompt`` (or ``text``, ``instruction``); ``label``, unless given here; optionally
    ``id`` (default ``<file stem>-<row>``), ``group``, ``category``, ``tags``.

    Args:
        path: The file; its ending says the format.
        label: The label of every row without one.

    Raises:
        RefusalCliffError: The file or a row is not usable; the message names both.
    """
    path = Path(path)
    prompts: list[Prompt] = []
    seen: dict[str, int] = {}
    for number, row in read_rows(path):
        prompt = prompt_of_row(path, number, row, label)
        if prompt.id in seen:
            raise row_error(
                path,
                number,
                f"the id {prompt.id!r} is already used by row {seen[prompt.id]}",
                "give every row its own id, or drop the column",
            )
        seen[prompt.id] = number
        prompts.append(prompt)
    if not prompts:
        raise RefusalCliffError(f"{path} holds no prompts. Add at least one row.")
    return prompts


def write_traces(path: Path, traces: Iterable[Trace]) -> None:
    """Write traces to Parquet, one row a trace, atomically."""
    table = pa.Table.from_pylist([_row_of_trace(trace) for trace in traces], schema=TRACE_SCHEMA)
    with atomic_path(path) as temporary:
        pq.write_table(table, temporary)


def read_traces(path: Path) -> list[Trace]:
    """Read traces written by :func:`write_traces`.

    Raises:
        RefusalCliffError: The file is not readable, lacks a column, or a row contradicts itself.
    """
    table = _read_parquet(path)
    needed = [field.name for field in TRACE_SCHEMA if field.name != "thinking_cut"]  # newer
    missing = [name for name in needed if name not in table.column_names]
    if missing:
        raise RefusalCliffError(
            f"{path} is not a file of traces: it lacks the column(s) {', '.join(missing)}. "
            "Generate the traces again, or point to the right file."
        )
    return [trace_of_row(path, i, row) for i, row in enumerate(table.to_pylist(), start=1)]


def _row_of_trace(trace: Trace) -> dict[str, object]:
    prompt = asdict(trace.prompt)
    prompt["prompt"] = prompt.pop("text")
    return {
        **prompt,
        "token_ids": list(trace.token_ids),
        "spans": None if trace.spans is None else asdict(trace.spans),
        "thinking": trace.thinking,
        "response": trace.response,
        "complete": trace.complete,
        "verdict": trace.verdict,
        "thinking_cut": trace.thinking_cut,
    }


def trace_of_row(path: Path, number: int, row: Row) -> Trace:
    """The trace in a row that `write_traces` wrote.

    Raises:
        RefusalCliffError: The row contradicts itself; the message names file and row.
    """
    prompt = prompt_of_row(path, number, row, None)
    token_ids = tuple(cast("list[int]", row["token_ids"]))
    spans = None if row["spans"] is None else Spans(**cast("dict[str, int]", row["spans"]))
    if spans is not None and not _spans_fit(spans, len(token_ids)):
        raise row_error(
            path,
            number,
            f"{spans} do not partition its {len(token_ids)} tokens",
            "generate the traces again",
        )
    if row["verdict"] not in VERDICTS:
        raise row_error(
            path, number, f"the verdict is {row['verdict']!r}", f"use one of {', '.join(VERDICTS)}"
        )
    return Trace(
        prompt=prompt,
        token_ids=token_ids,
        spans=spans,
        thinking=str(row["thinking"]),
        response=str(row["response"]),
        complete=bool(row["complete"]),
        verdict=cast("Verdict", row["verdict"]),
        thinking_cut=bool(row.get("thinking_cut")),
    )


def _spans_fit(spans: Spans, total: int) -> bool:
    return 0 <= spans.prompt <= spans.thinking < spans.closing <= spans.total == total


def prompt_of_row(path: Path, number: int, row: Row, label: Label | None) -> Prompt:
    """The prompt in a row, see `read_prompts`.

    Raises:
        RefusalCliffError: The row is not usable; the message names file and row.
    """
    column = next((name for name in TEXT_COLUMNS if row.get(name) is not None), None)
    if column is None:
        raise row_error(
            path,
            number,
            f"it has none of the columns {', '.join(TEXT_COLUMNS)}",
            "rename the column that holds the request to 'prompt'",
        )
    text = row[column]
    if not isinstance(text, str) or not text.strip():
        raise row_error(
            path, number, f"{column!r} is {text!r}, not a non-empty text", "fill it in, or drop it"
        )
    identity = _optional_text(path, number, row, "id") or f"{path.stem}-{number}"
    return Prompt(
        id=identity,
        text=text,
        label=_label_of_row(path, number, row, label),
        group=_optional_text(path, number, row, "group"),
        category=_optional_text(path, number, row, "category"),
        tags=_tags_of_row(path, number, row),
    )


def _label_of_row(path: Path, number: int, row: Row, default: Label | None) -> Label:
    value = row.get("label")
    if value in (None, "") and default is not None:
        return default
    if value not in LABELS:
        raise row_error(
            path,
            number,
            f"the label is {value!r}",
            "write 'harmful' or 'benign' in a column 'label', or name one label for all rows "
            "without one where the command takes --label",
        )
    return cast("Label", value)


def checked_label(label: str | None) -> Label | None:
    """The label that a user named for a whole file.

    Raises:
        RefusalCliffError: There is no such label.
    """
    if label is not None and label not in LABELS:
        raise RefusalCliffError(f"Unknown label {label!r}. Write one of: {', '.join(LABELS)}.")
    return cast("Label | None", label)


def _optional_text(path: Path, number: int, row: Row, name: str) -> str:
    value = row.get(name)
    if value is None:
        return ""
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise row_error(path, number, f"{name!r} is {value!r}, not a text", "write it as a text")
    return str(value)


def _tags_of_row(path: Path, number: int, row: Row) -> tuple[str, ...]:
    value = row.get("tags")
    if value is None:
        return ()
    if isinstance(value, str):
        return tuple(value.split())
    if isinstance(value, Sequence) and all(isinstance(tag, str) for tag in value):
        return tuple(cast("Sequence[str]", value))
    raise row_error(
        path, number, f"'tags' is {value!r}", "write a list of texts, or words with spaces between"
    )


def read_rows(path: Path) -> Iterator[tuple[int, Row]]:
    """Rows with their numbers: lines of JSON Lines, else data rows counted from 1."""
    readers = {".jsonl": _json_lines, ".csv": _csv_rows, ".parquet": _parquet_rows}
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise RefusalCliffError(
            f"{path}: the ending {path.suffix!r} is not known. "
            f"Give a file that ends in {', '.join(readers)}."
        )
    try:
        yield from reader(path)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise RefusalCliffError(
            f"Could not read {path}: {error}. Check the path, and that the file is UTF-8."
        ) from error


def _json_lines(path: Path) -> Iterator[tuple[int, Row]]:
    with path.open(encoding="utf-8-sig") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError as error:
                raise row_error(
                    path, number, f"it is not JSON ({error})", "write one JSON object a line"
                ) from error
            if not isinstance(row, dict):
                raise row_error(path, number, "it is not an object", "write one object a line")
            yield number, row


def _csv_rows(path: Path) -> Iterator[tuple[int, Row]]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        for number, row in enumerate(csv.DictReader(file, strict=True), start=1):
            if None in row:
                raise row_error(
                    path, number, "it has more cells than the header", "quote texts with commas"
                )
            yield number, cast("Row", row)


def _parquet_rows(path: Path) -> Iterator[tuple[int, Row]]:
    """Batch by batch: a file may be larger than memory."""
    try:
        with pq.ParquetFile(path) as file:
            batches = (batch.to_pylist() for batch in file.iter_batches(1024))
            yield from enumerate(itertools.chain.from_iterable(batches), start=1)
    except pa.ArrowException as error:
        raise RefusalCliffError(
            f"Could not read {path}: {error}. Check the path, or make the file again."
        ) from error


def _read_parquet(path: Path) -> pa.Table:
    try:
        return pq.read_table(path)
    except (OSError, pa.ArrowException) as error:
        raise RefusalCliffError(
            f"Could not read {path}: {error}. Check the path, or make the file again."
        ) from error


def row_error(path: Path, number: int, wrong: str, remedy: str) -> RefusalCliffError:
    """The error for a row that is not usable: file, row, fault and remedy."""
    return RefusalCliffError(f"{path}, row {number}: {wrong}. Remedy: {remedy}.")
