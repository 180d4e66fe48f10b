"""How a setting is declared: its help says what it means, for users and for readers of the code."""

from __future__ import annotations

from dataclasses import field
from typing import Any


def setting(default: Any, help: str, **option: Any) -> Any:
    """A field of a class of settings: its default, and how its option is shown.

    Args:
        default: The value where a user says nothing.
        help: What it means, as ``--help`` says it.
        option: ``flag`` where the option is not called as the field; ``choices`` of a word,
            ``positive`` of a number, or ``check``, a function that refuses a wrong text; and what
            `typer.Option` takes besides.
    """
    return field(default=default, metadata={"help": help, **option})
