"""Prompts out of sources that may hold anything: bad rows are listed, none is lost.

`traces.read_prompts` stops at the first bad row, which is right for data that a run depends on;
here thousands of rows are asked, and one bad row must not cost the others.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from refusal_cliff.data.reading import DEFAULT, Reading, source_rows, usable
from refusal_cliff.data.rows import Found
from refusal_cliff.data.shapes import prompt_of_row
from refusal_cliff.data.types import Label, LeftOut, Prompt
from refusal_cliff.errors import RefusalCliffError

FROM = "from:"
"""Begins the tag that names the source of a prompt."""


@dataclass(slots=True)
class PromptSet:
    """The usable prompts of a source, and the rows that are not."""

    prompts: list[Prompt] = field(default_factory=list)
    left_out: list[LeftOut] = field(default_factory=list)


def read_prompt_set(
    source: str | Path,
    *,
    columns: Mapping[str, str] | None = None,
    label: Label | None = None,
    reading: Reading = DEFAULT,
) -> PromptSet:
    """Read the prompts of a source, whatever is in it.

    Args:
        source: See `read_rows`.
        columns: Which column holds a field of a prompt: ``{"text": "Goal", "category": "Type"}``;
            in place of those of ``reading``.
        label: The label of every row without one; in place of that of ``reading``.
        reading: How rows are read.

    Raises:
        RefusalCliffError: The source cannot be read at all, or holds no usable row.
    """
    if columns is not None:
        reading = replace(reading, columns=columns)
    if label is not None:
        reading = replace(reading, label=label)
    found = prompt_set(source, source_rows(source, reading), reading)
    if not found.prompts:
        first = f" Row {found.left_out[0].row}: {found.left_out[0].why}" if found.left_out else ""
        raise RefusalCliffError(f"{source} holds no usable prompt.{first} Add at least one row.")
    return found


def prompt_set(source: str | Path, rows: Iterable[Found], reading: Reading = DEFAULT) -> PromptSet:
    """Prompts out of numbered rows, each marked with its source; all others are left out."""
    found = PromptSet()
    for _, prompt in usable(source, rows, partial(prompt_of_row, source, reading=reading)):
        if isinstance(prompt, LeftOut):
            found.left_out.append(prompt)
        else:
            mark = () if source_of(prompt) else (f"{FROM}{Path(source).stem}",)
            found.prompts.append(replace(prompt, tags=(*prompt.tags, *mark)))
    return found


def source_of(prompt: Prompt) -> str:
    """The file or benchmark that a prompt came from; empty if nobody noted it."""
    return next((tag.removeprefix(FROM) for tag in prompt.tags if tag.startswith(FROM)), "")
