"""Prompts and training examples as JSON Lines; reading them strictly and writing them whole."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path

from refusal_cliff.data.traces import Prompt, SafetyExample, prompt_of_row, read_rows, row_error
from refusal_cliff.io import write_text


def write_prompts(path: Path, prompts: Iterable[Prompt]) -> None:
    """Write prompts so that `read_prompts` gives them back."""
    _write_lines(path, [_row_of(prompt) for prompt in prompts])


def write_examples(path: Path, examples: Iterable[SafetyExample]) -> None:
    """Write training examples so that `read_examples` gives them back."""
    _write_lines(
        path,
        [{**_row_of(e.prompt), "thinking": e.thinking, "response": e.response} for e in examples],
    )


def read_examples(path: Path) -> list[SafetyExample]:
    """Read training examples: the columns of prompts, and ``thinking`` and ``response``.

    Raises:
        RefusalCliffError: The file or a row is not usable; the message names both.
    """
    return [
        SafetyExample(
            prompt_of_row(path, number, row, None),
            _text(path, number, row.get("thinking"), "thinking"),
            _text(path, number, row.get("response"), "response"),
        )
        for number, row in read_rows(path)
    ]


def _text(path: Path, number: int, value: object, column: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise row_error(
            path, number, f"{column!r} is {value!r}, not a non-empty text", "fill it in, or drop it"
        )
    return value


def _row_of(prompt: Prompt) -> dict[str, object]:
    row = asdict(prompt)
    row["prompt"] = row.pop("text")
    return row


def _write_lines(path: Path, rows: Sequence[dict[str, object]]) -> None:
    write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
