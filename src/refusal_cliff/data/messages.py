"""Messages as servers and public data write them: who speaks, what is said, what is thought."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import cast

THINKING_COLUMNS = ("thinking", "reasoning", "reasoning_content")
_ROLES = {
    "human": "user",
    "prompter": "user",
    "gpt": "assistant",
    "model": "assistant",
    "bot": "assistant",
    "developer": "system",
}
_WHO = ("role", "from")
_SAID = ("content", "value", "text")
_TEXT_PARTS = (None, "text", "output_text", "refusal")


class NotText(ValueError):
    """A message holds something else than text."""


@dataclass(frozen=True, slots=True)
class Turn:
    """One message of a conversation.

    Attributes:
        role: ``user``, ``assistant``, ``system``, or what the data calls it.
        content: What is said; ``None`` where nothing is, as in a call of a tool.
        thinking: What is thought, where it stands apart.
        finish: Why a server stopped, in its own word.
    """

    role: str
    content: str | None
    thinking: str | None = None
    finish: str = ""


def turn_of(message: Mapping[str, object], finish: object = None) -> Turn:
    """A message with the keys of OpenAI (``role``, ``content``) or ShareGPT (``from``, ``value``).

    Content may be a list of parts; what a server says in ``refusal`` alone is its answer.

    Args:
        message: The message.
        finish: Why the server stopped.

    Raises:
        NotText: It holds something else than text.
    """
    role = _named(message, _WHO)
    content, thinking = _content(_named(message, _SAID))
    apart = _named(message, THINKING_COLUMNS)
    thinking = thinking if apart is None else _joined(_texts(apart, "thinking"))
    refusal = message.get("refusal")
    if not content and isinstance(refusal, str) and refusal.strip():
        content = refusal
    if not content and message.get("tool_calls"):
        finish = finish or "tool_calls"
    name = role if isinstance(role, str) else ""
    return Turn(
        _ROLES.get(name, name), content, thinking, finish if isinstance(finish, str) else ""
    )


def turns_of(value: object, role: str) -> list[Turn]:
    """The turns in a column: a text or its parts, one message, or a list of messages.

    Args:
        value: What the column holds.
        role: Who speaks where nobody is named.

    Raises:
        NotText: It is none of these.
    """
    if isinstance(value, str):
        return [Turn(role, value)]
    if isinstance(value, Mapping):
        turn = turn_of(cast("Mapping[str, object]", value))
        return [turn if turn.role else replace(turn, role=role)]
    if isinstance(value, Sequence) and value and all(isinstance(m, Mapping) for m in value):
        messages = cast("Sequence[Mapping[str, object]]", value)
        if any(_named(message, _WHO) is not None for message in messages):
            return [turn_of(message) for message in messages]
        return [Turn(role, *_content(messages))]
    raise NotText("its messages are not a list of objects")


def choice_of(value: object) -> Turn | None:
    """The answer in what an OpenAI-compatible server sent, or a line of its batches; else ``None``.

    Raises:
        NotText: The request failed, or the answer is of another form.
    """
    if not isinstance(value, Mapping):
        return None
    if isinstance(value.get("body"), Mapping):
        status = value.get("status_code")
        if status not in (None, 200):
            raise NotText(f"the request of the batch failed with status {status!r}")
        return choice_of(value["body"])
    choices = value.get("choices")
    if choices is None:
        return None
    first = choices[0] if isinstance(choices, Sequence) and choices else None
    message = first.get("message") if isinstance(first, Mapping) else None
    if not isinstance(first, Mapping) or not isinstance(message, Mapping):
        raise NotText("its choices hold no message")
    return turn_of(cast("Mapping[str, object]", message), first.get("finish_reason"))


def _named(message: Mapping[str, object], names: Sequence[str]) -> object:
    return next((message[name] for name in names if message.get(name) is not None), None)


def _content(value: object) -> tuple[str | None, str | None]:
    """What is said and what is thought in a content, which may be a list of parts."""
    if value is None or isinstance(value, str):
        return value, None
    if not isinstance(value, Sequence) or not all(
        isinstance(part, Mapping | str) for part in value
    ):
        raise NotText("a message has no text")
    said: list[str] = []
    thought: list[str] = []
    for part in value:
        if isinstance(part, Mapping) and part.get("type") in ("thinking", "reasoning"):
            thought += _texts(
                _named(part, ("thinking", "reasoning", "text", "summary")), "thinking"
            )
        else:
            said += _texts(part, "text")
    return "".join(said), _joined(thought) if thought else None


def _texts(value: object, kind: str) -> list[str]:
    """The texts in a text, a part, or a list of parts."""
    if value is None:
        return []
    if isinstance(value, str):
        return [value]
    if isinstance(value, Mapping):
        text = value.get("refusal" if value.get("type") == "refusal" else "text")
        if value.get("type") in _TEXT_PARTS and isinstance(text, str):
            return [text]
    elif isinstance(value, Sequence):
        return [text for part in value for text in _flat(part, kind)]
    raise NotText(f"a message holds a part that is no text ({kind})")


def _flat(part: object, kind: str) -> list[str]:
    """The texts of one part of a list, which holds no further list."""
    if isinstance(part, str | Mapping):
        return _texts(part, kind)
    raise NotText(f"a message holds a part that is no text ({kind})")


def _joined(texts: Sequence[str]) -> str:
    return "\n\n".join(texts)
