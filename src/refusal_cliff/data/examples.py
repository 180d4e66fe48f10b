"""Prompts and training examples as JSON Lines; reading them strictly and writing them whole."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from refusal_cliff.data.fields import bad, checked_text, shown
from refusal_cliff.data.reading import DEFAULT, Reading, every, source_rows, used_and_left_out
from refusal_cliff.data.shapes import example_of_row, prompt_of_row
from refusal_cliff.data.types import LeftOut, Prompt, Row, SafetyExample, row_of_prompt
from refusal_cliff.errors import RefusalCliffError
from refusal_cliff.io import write_text


def write_prompts(path: Path, prompts: Iterable[Prompt]) -> None:
    """Write prompts so that `read_prompts` gives them back."""
    _write_lines(path, [row_of_prompt(prompt) for prompt in prompts])


def write_examples(path: Path, examples: Iterable[SafetyExample]) -> None:
    """Write training examples so that `read_examples` gives them back."""
    _write_lines(
        path,
        [
            {**row_of_prompt(e.prompt), "thinking": e.thinking, "response": e.response}
            for e in examples
        ],
    )


def read_examples(path: Path) -> list[SafetyExample]:
    """Read training examples that `write_examples` wrote: texts as they are, none empty.

    Raises:
        RefusalCliffError: The file or a row is not usable; the message names both.
    """

    def made(number: int, row: Row) -> SafetyExample:
        thinking, response = (_text(row.get(name), name) for name in ("thinking", "response"))
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


def _text(value: object, column: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise bad(
            f"{column!r} is {shown(value)}, not a non-empty text", "fill it in, or drop the row"
        )
    return checked_text(value, column)


def _write_lines(path: Path, rows: Sequence[dict[str, object]]) -> None:
    write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
