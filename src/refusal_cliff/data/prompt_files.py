"""Prompts out of files that may hold anything: bad rows are listed with their reason, none is lost.

`traces.read_prompts` stops at the first bad row, which is right for data that a run depends on;
here thousands of rows are asked, and one bad row must not cost the others.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import pyarrow as pa
import pyarrow.parquet as pq

from refusal_cliff.data.records import LeftOut, shortened
from refusal_cliff.data.traces import Label, Prompt, Row, prompt_of_row
from refusal_cliff.errors import RefusalCliffError

FROM = "from:"
"""Begins the tag that names the source of a prompt."""
_LARGEST_CELL = 2**31 - 1
Found = tuple[int, Row | str]
"""Number of a row, and its columns or what is wrong with it."""


@dataclass(slots=True)
class PromptSet:
    """The usable prompts of a source, and the rows that are not."""

    prompts: list[Prompt] = field(default_factory=list)
    left_out: list[LeftOut] = field(default_factory=list)


def read_prompt_set(
    path: Path, *, columns: Mapping[str, str] | None = None, label: Label | None = None
) -> PromptSet:
    """Read prompts from JSON Lines, CSV or Parquet, whatever is in it.

    Args:
        path: The file; its ending says the format.
        columns: Which column holds a field of a prompt: ``{"text": "Goal", "category": "Type"}``.
        label: The label of every row without one.

    Raises:
        RefusalCliffError: The file cannot be read at all, or holds no usable row.
    """
    found = prompt_set(path, usable_rows(path), columns or {}, label)
    if not found.prompts:
        first = (
            f" Row {found.left_out[0].row}: {found.left_out[0].reason}" if found.left_out else ""
        )
        raise RefusalCliffError(f"{path} holds no usable prompt.{first} Add at least one row.")
    return found


def usable_rows(path: Path) -> Iterator[Found]:
    """Numbered rows of a file, or what is wrong with a row.

    Raises:
        RefusalCliffError: The file cannot be read at all.
    """
    readers = {".jsonl": _json_lines, ".csv": _csv_rows, ".parquet": _parquet_rows}
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise RefusalCliffError(
            f"{path}: the ending {path.suffix!r} is not known. Give a file that ends in "
            f"{', '.join(readers)}, or the name of a benchmark."
        )
    try:
        yield from reader(path)
    except (OSError, pa.ArrowException) as error:
        raise RefusalCliffError(
            f"Could not read {path}: {error}. Check the path, or make the file again."
        ) from error


def prompt_set(
    source: Path, rows: Iterable[Found], columns: Mapping[str, str], label: Label | None
) -> PromptSet:
    """Prompts out of numbered rows; a row that is a text is a bad row with that reason."""
    found = PromptSet()
    seen: dict[str, int] = {}
    for number, row in rows:
        if isinstance(row, str):
            found.left_out.append(LeftOut(f"{source.stem}-{number}", number, row))
            continue
        try:
            prompt = _checked(prompt_of_row(source, number, _renamed(row, columns), label))
            if prompt.id in seen:
                raise RefusalCliffError(f"the id {prompt.id!r} is that of row {seen[prompt.id]}")
        except RefusalCliffError as error:
            found.left_out.append(LeftOut(f"{source.stem}-{number}", number, shortened(error)))
            continue
        seen[prompt.id] = number
        found.prompts.append(replace(prompt, tags=(*prompt.tags, f"{FROM}{source.stem}")))
    return found


def source_of(prompt: Prompt) -> str:
    """The file or benchmark that a prompt came from; empty if nobody noted it."""
    return next((tag.removeprefix(FROM) for tag in prompt.tags if tag.startswith(FROM)), "")


def _renamed(row: Row, columns: Mapping[str, str]) -> Row:
    names = {"text": "prompt"}
    mapped = {names.get(name, name): row.get(column) for name, column in columns.items()}
    return {**row, **mapped}


def _checked(prompt: Prompt) -> Prompt:
    for text in (prompt.text, prompt.id, prompt.group, prompt.category):
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise RefusalCliffError(
                f"it holds bytes that are not UTF-8, or half a surrogate pair, at character "
                f"{error.start} of {text[:40]!a}"
            ) from error
    return prompt


def _json_lines(path: Path) -> Iterator[Found]:
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                yield number, _json_object(line)


def _json_object(line: bytes) -> Row | str:
    try:
        row = json.loads(line.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        return f"it is not UTF-8 (byte {error.start})"
    except (ValueError, RecursionError) as error:
        return shortened(f"it is not JSON ({error})")
    return row if isinstance(row, dict) else "it is not an object"


def _csv_rows(path: Path) -> Iterator[Found]:
    csv.field_size_limit(_LARGEST_CELL)
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        rows = csv.DictReader(file, strict=True)
        number = 0
        while True:
            number += 1
            try:
                row = cast("dict[Any, Any]", next(rows))
            except StopIteration:
                return
            except csv.Error as error:
                yield number, f"it is not CSV ({error})"
                continue
            yield number, "it has more cells than the header" if None in row else row


def _parquet_rows(path: Path) -> Iterator[Found]:
    with pq.ParquetFile(path) as file:
        number = 0
        for batch in file.iter_batches(256):
            for place in range(batch.num_rows):
                number += 1
                yield number, _parquet_row(batch.slice(place, 1))


def _parquet_row(batch: pa.RecordBatch) -> Row | str:
    try:
        return batch.to_pylist()[0]
    except (ValueError, UnicodeDecodeError, OverflowError) as error:
        return shortened(f"it cannot be read ({error})")
