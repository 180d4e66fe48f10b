"""The command line as the user typed it, for reports: whole, quoted, and without secrets."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from contextvars import ContextVar

PROGRAM = "refusal-cliff"
_HIDDEN = "[hidden]"
_KEYS = ("--key", "--judge-key")
_VARIABLE = re.compile(r"[A-Z_][A-Z0-9_]*", re.ASCII)
"""What a name of an environment variable looks like; a key that was given instead does not."""
_USER = re.compile(r"(?<=://)[^/@\s]+(?=@)")
_SECRET = re.compile(r"(?i)\b(?:sk|hf|key|gsk|ghp|xai|token|bearer)[-_][\w-]{8,}")

_typed: ContextVar[tuple[str, ...]] = ContextVar("typed", default=())


def remember(arguments: Sequence[str]) -> None:
    """Keep what was typed after the program's name."""
    _typed.set(tuple(arguments))


def command_line() -> str:
    """What was typed, as a shell takes it; a secret in it is hidden."""
    words: list[str] = []
    for word in _typed.get():
        option, equals, value = word.partition("=")
        if equals and option in _KEYS:
            word = f"{option}={name_or_hidden(value)}"
        elif words and words[-1] in _KEYS:
            word = name_or_hidden(word)
        words.append(_SECRET.sub(_HIDDEN, _USER.sub(_HIDDEN, word)))
    return shlex.join([PROGRAM, *words])


def name_or_hidden(value: str) -> str:
    """The name of an environment variable; anything else may be the key itself, and is hidden."""
    return value if _VARIABLE.fullmatch(value) else _HIDDEN
