"""Prompts out of sources that may hold anything: bad rows are listed, none is lost.

`traces.read_prompts` stops at the first bad row, which is right for data that a run depends on;
here thousands of rows are asked, and one bad row must not cost the others.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from refusal_cliff.data.reading import DEFAULT, Reading, source_rows, used_and_left_out
from refusal_cliff.data.rows import Found
from refusal_cliff.data.shapes import prompt_of_row
from refusal_cliff.data.types import LeftOut, Prompt
from refusal_cliff.errors import RefusalCliffError

FROM = "from:"
"""Begins the tag that names the source of a prompt."""


@dataclass(slots=True)
class PromptSet:
    """The usable prompts of a source, and the rows that are not."""

    prompts: list[Prompt] = field(default_factory=list)
    left_out: list[LeftOut] = field(default_factory=list)


def read_prompt_set(source: str | Path, reading: Reading = DEFAULT) -> PromptSet:
    """Read the prompts of a source, whatever is in it, see `read_rows`.

    Raises:
        RefusalCliffError: The source cannot be read at all, or holds no usable row.
    """
    found = prompt_set(source, source_rows(source, reading), reading)
    if not found.prompts:
        first = f" Row {found.left_out[0].row}: {found.left_out[0].why}" if found.left_out else ""
        raise RefusalCliffError(f"{source} holds no usable prompt.{first} Add at least one row.")
    return found


def prompt_set(source: str | Path, rows: Iterable[Found], reading: Reading = DEFAULT) -> PromptSet:
    """Prompts out of numbered rows, each marked with its source; all others are left out."""
    make = partial(prompt_of_row, source, reading=reading)
    prompts, left_out = used_and_left_out(source, rows, make)
    mark = f"{FROM}{Path(source).stem}"
    marked = [p if source_of(p) else replace(p, tags=(*p.tags, mark)) for p in prompts]
    return PromptSet(marked, left_out)


def source_of(prompt: Prompt) -> str:
    """The file or benchmark that a prompt came from; empty if nobody noted it."""
    return next((tag.removeprefix(FROM) for tag in prompt.tags if tag.startswith(FROM)), "")
