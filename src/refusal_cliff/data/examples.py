"""Prompts and training examples as files: written whole, read strictly or row by row.

Sources of other people may hold anything: a bad row is listed, and none is lost.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from refusal_cliff.data.conversation import text_in
from refusal_cliff.data.reading import DEFAULT, Reading, every, source_rows, used_and_left_out
from refusal_cliff.data.rows import Found
from refusal_cliff.data.shapes import example_of_row, prompt_of_row
from refusal_cliff.data.types import LeftOut, Prompt, Row, SafetyExample, row_of_prompt
from refusal_cliff.errors import RefusalCliffError
from refusal_cliff.io import write_text
from refusal_cliff.user_text import source_name

FROM = "from:"
"""Begins the tag that names the source of a prompt."""


def write_prompts(path: Path, prompts: Iterable[Prompt]) -> None:
    """Write prompts so that `read_prompts` gives them back."""
    _write_lines(path, [row_of_prompt(prompt) for prompt in prompts])


def write_examples(path: Path, examples: Iterable[SafetyExample]) -> None:
    """Write training examples so that `read_examples` gives them back."""
    rows = [
        {**row_of_prompt(e.prompt), "thinking": e.thinking, "response": e.response}
        for e in examples
    ]
    _write_lines(path, rows)


def read_examples(path: Path) -> list[SafetyExample]:
    """Read training examples that `write_examples` wrote: texts as they are, none empty.

    Raises:
        RefusalCliffError: The file or a row is not usable; the message names both.
    """

    def made(number: int, row: Row) -> SafetyExample:
        thinking, response = (text_in(row, name) for name in ("thinking", "response"))
        return SafetyExample(prompt_of_row(path, number, row), thinking, response)

    return list(every(path, source_rows(path), made))


def usable_examples(
    source: str | Path, reading: Reading = DEFAULT
) -> tuple[list[SafetyExample], list[LeftOut]]:
    """Training examples out of a source that may hold anything, and the rows that are none.

    Raises:
        RefusalCliffError: The source cannot be read at all, or holds no usable row.
    """
    make = partial(example_of_row, source, reading=reading)
    examples, unread = used_and_left_out(source, source_rows(source, reading), make)
    left_out = [replace(row, detail=reading.remedy(row.detail)) for row in unread]
    if not examples:
        first = left_out[0] if left_out else LeftOut("", 1, "empty", "there is no row")
        raise RefusalCliffError(
            f"{source}, row {first.row}: {first.reason}: {first.why} The other rows cannot be used "
            "either. Correct at least one."
        )
    return examples, left_out


@dataclass(slots=True)
class PromptSet:
    """The usable prompts of a source, and the rows that are not."""

    prompts: list[Prompt] = field(default_factory=list)
    left_out: list[LeftOut] = field(default_factory=list)


def read_prompt_set(source: str | Path, reading: Reading = DEFAULT) -> PromptSet:
    """Read the prompts of a source, whatever is in it, see `read_rows`.

    `traces.read_prompts` stops at the first bad row, which is right for data that a run depends on;
    here thousands of rows are asked, and one bad row must not cost the others.

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
    return PromptSet([from_source(prompt, source) for prompt in prompts], left_out)


def from_source(prompt: Prompt, source: str | Path) -> Prompt:
    """The prompt with the name of the file or benchmark that it was read from among its tags."""
    name = source_name(str(source))
    if name in sources_of(prompt):
        return prompt
    return replace(prompt, tags=(*prompt.tags, f"{FROM}{name}"))


def sources_of(prompt: Prompt) -> tuple[str, ...]:
    """The files and benchmarks that a prompt came from, the first one first."""
    return tuple(tag.removeprefix(FROM) for tag in prompt.tags if tag.startswith(FROM))


def source_of(prompt: Prompt) -> str:
    """The file or benchmark that a prompt first came from; empty if nobody noted it."""
    return next(iter(sources_of(prompt)), "")


def _write_lines(path: Path, rows: Sequence[dict[str, object]]) -> None:
    write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
