"""The content of a chat message: a text, or a list of parts of which some are thoughts."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

_TEXTS = ("text", "output_text", "input_text")
_THOUGHTS = (
    *("thinking", "reasoning", "reasoning_content", "reasoning_text", "summary", "thought"),
    *("reasoningContent", "reasoningText"),
)
_DEEPEST = 4
_HALVES = re.compile(r"[\ud800-\udfff]")


@dataclass(frozen=True, slots=True)
class Parts:
    """What a content holds.

    Attributes:
        text: The text of all its text parts; ``None`` where it has none.
        thinking: That of all its thoughts; ``None`` where it has none.
        refusal: What a part of the kind ``refusal`` says; empty without one.
        others: Kinds of the parts that hold no text: images, calls of tools.
    """

    text: str | None
    thinking: str | None = None
    refusal: str = ""
    others: tuple[str, ...] = ()


def read_parts(content: object) -> Parts:
    """Text and thinking of a message's content, in any of the shapes that servers send.

    A text is itself. Of a list, parts of the kind ``text`` (OpenAI, Mistral, Anthropic) are the
    text, ``thinking`` (Mistral, whose thought is a list again) and ``reasoning`` the thinking, and
    ``refusal`` is one. A text that is marked as a thought (``"thought": true``, Gemini) is thinking
    too, and so is a part without a kind that holds a field of thinking (Bedrock). One part may
    stand alone. Half a surrogate pair becomes U+FFFD.

    Raises:
        TypeError: It is neither a text nor such a list.
    """
    if isinstance(content, Mapping) and content.keys() & {"parts", *_TEXTS}:
        content = content.get("parts", [content])
    if content is None:
        return Parts(None)
    if isinstance(content, str):
        return Parts(_whole(content))
    if not isinstance(content, Sequence) or isinstance(content, bytes):
        raise TypeError(f"the content is neither a text nor a list of parts, but {_kind(content)}")
    found: dict[str, list[str]] = {"text": [], "thinking": [], "refusal": [], "others": []}
    for part in content:
        _add(found, part)
    text, thinking = (
        _whole("".join(found[name])) if found[name] else None for name in ("text", "thinking")
    )
    return Parts(text, thinking, _whole("".join(found["refusal"])), tuple(found["others"]))


def _add(found: dict[str, list[str]], part: object) -> None:
    if isinstance(part, str):
        found["text"].append(part)
        return
    if not isinstance(part, Mapping):
        raise TypeError(f"a part of the content is {_kind(part)}")
    kind = str(part.get("type") or next((name for name in _THOUGHTS if part.get(name)), "text"))
    if part.get("thought") is True or kind.partition(".")[0] in _THOUGHTS:  # reasoning.summary
        found["thinking"].append(_text(_told(part) or ""))
    elif kind in _TEXTS:
        found["text"].append(_text(part.get("text")))
    elif kind == "refusal":
        found["refusal"].append(_text(part.get("refusal")))
    else:
        found["others"].append(kind)


def _told(part: Mapping[str, object]) -> object:
    """What a part of thinking holds, under any of the names that servers have for it."""
    told = (part.get(name) for name in (*_THOUGHTS, "content", "text"))
    return next((value for value in told if value and value is not True), None)


def _text(value: object, deepest: int = _DEEPEST) -> str:
    """The text of a part: itself, or that of the parts it holds."""
    if value is None or isinstance(value, str):
        return value or ""
    if isinstance(value, Mapping):
        value = [value]
    if not isinstance(value, Sequence) or isinstance(value, bytes):
        raise TypeError(f"the text of a part is {_kind(value)}")
    held = [_told(part) if isinstance(part, Mapping) else part for part in value]
    if not deepest or not all(held):
        raise TypeError("a part of a part holds no text")
    return "".join(_text(part, deepest - 1) for part in held)


def _whole(text: str) -> str:
    return _HALVES.sub("\ufffd", text)


def _kind(value: object) -> str:
    return f"a {type(value).__name__}"
