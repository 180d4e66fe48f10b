"""Conversations as public data and servers write them: who speaks, and each one's message."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import cast

from refusal_cliff.data.fields import BadRow, bad, shown
from refusal_cliff.data.said import is_filtered, read_parts

_ROLES = {
    "human": "user",
    "prompter": "user",
    "gpt": "assistant",
    "model": "assistant",
    "bot": "assistant",
    "developer": "system",
}
_WHO = ("role", "from")
_SAID = ("content", "value", "text", "parts")
_INNER = ("analysis", "commentary")
"""Channels of harmony whose messages are no answers."""
_MESSAGE = frozenset({*_SAID, "thinking", "reasoning", "refusal", "tool_calls", "function_call"})
_KIND = frozenset({*_WHO, "type"})
_PRINTED = re.compile(r"\s*\[?\s*\{'(?:role|from|type|content)': ?'")
_FINISH = ("finish", "finish_reason", "stop_reason", "done_reason", "finishReason", "stopReason")
"""Names of servers and logs for why an answer ended."""


@dataclass(frozen=True, slots=True)
class Turn:
    """One message of a conversation.

    Attributes:
        role: ``user``, ``assistant``, ``system``, or what the data calls it.
        message: Its fields, what is said under ``content``.
        finish: Why a server stopped, in its own word; ``None`` where it did not say so, and empty
            where no server is known of.
    """

    role: str
    message: Mapping[str, object]
    finish: object = ""

    @property
    def text(self) -> str:
        """What is said, without what is thought.

        Raises:
            BadRow: There is something else in it.
        """
        try:
            parts = read_parts(self.message.get("content"))
        except TypeError as error:
            raise not_text(str(error)) from error
        if parts.others:
            raise not_text(f"a message holds a part that is no text, but {parts.others[0][:40]!a}")
        return parts.text or ""


def turn_of(message: Mapping[str, object], finish: object = "") -> Turn:
    """A message with the keys of OpenAI (``role``, ``content``) or of ShareGPT (``from``)."""
    role = _named(message, _WHO)
    name = role if isinstance(role, str) else ""
    said = next((message[key] for key in _SAID if message.get(key) not in (None, "")), None)
    said = _named(message, _SAID) if said is None else said
    held = {**message, "content": said}
    if message.get("channel") in _INNER:
        held |= {"content": None, "thinking": said}
    return Turn(_ROLES.get(name, name), held, finish)


def turns_of(value: object, role: str, column: str) -> list[Turn]:
    """The turns in a column: a text or its parts, one message, or a list of messages.

    Args:
        value: What the column holds; a list of messages may be written as JSON.
        role: Who speaks where nobody is named.
        column: Its name.

    Raises:
        BadRow: It is none of these.
    """
    if isinstance(value, str):
        value = _parsed(value)
    if isinstance(value, str):
        return [Turn(role, {"content": value})]
    if isinstance(value, Mapping):
        if not value.keys() & _MESSAGE:
            raise not_text(f"an object with {_keys(value)} is no message with a content")
        message = cast("Mapping[str, object]", value)
        turn = turn_of(message, finish_of(message, ""))
        return [turn if turn.role else replace(turn, role=role)]
    if isinstance(value, Sequence) and all(isinstance(m, Mapping) for m in value):
        messages = cast("Sequence[Mapping[str, object]]", value)
        if any(_named(message, _WHO) is not None for message in messages):
            return _whole([turn_of(message, finish_of(message, "")) for message in messages])
        return [Turn(role, {"content": messages})]
    raise not_text(f"{column!r} is {shown(value)}, neither a text nor a list of messages")


def _parsed(text: str) -> object:
    """The messages that a text is as JSON, as tables hold them; else the text itself."""
    if not text.lstrip().startswith(("[", "{")):
        return text
    if _PRINTED.match(text):
        raise bad("it holds messages as Python prints them", "export the file again, as JSON")
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return text
    held = value if isinstance(value, list) else [value]
    messages = all(isinstance(m, dict) and m.keys() & _KIND and m.keys() & _MESSAGE for m in held)
    return value if held and messages else text


def _whole(turns: Sequence[Turn]) -> list[Turn]:
    """With the thoughts that harmony has as messages of their own beside the answer after them."""
    found: list[Turn] = []
    for turn in turns:
        before = found[-1].message if found else {}
        if turn.role == "assistant" and before.get("channel") in _INNER:
            thoughts = (before.get("thinking"), turn.message.get("thinking"))
            both = "\n\n".join(str(one) for one in thoughts if one)
            found[-1] = replace(turn, message={**turn.message, "thinking": both})
        else:
            found.append(turn)
    return found


def finish_of(fields: Mapping[str, object], otherwise: object) -> object:
    """Why an answer ended, in the word of its server; ``otherwise`` where no field is for that."""
    told = [fields[name] for name in _FINISH if name in fields]
    return next(filter(None, told), told[0] if told else otherwise)


def refuse_several(answers: Sequence[object]) -> None:
    """Refuse a row that holds more than one answer to its request."""
    if len(answers) > 1:
        raise bad(f"it holds {len(answers)} answers", "write one row for each answer")


def choice_of(value: object) -> Turn | None:
    """The answer in what an OpenAI-compatible server sent, or a line of its batches; else ``None``.

    Raises:
        BadRow: The request failed, or the answer is of another form.
    """
    if not isinstance(value, Mapping):
        return None
    if isinstance(value.get("body"), Mapping) and "choices" not in value:
        status = value.get("status_code")
        if status not in (None, 200):
            raise not_text(f"the request of the batch failed with status {status!a:.40}")
        return choice_of({"choices": None, **value["body"]})
    choices = value.get("choices")
    if choices is None and not ("choices" in value and value.get("error")):
        return None
    if isinstance(choices, Sequence):
        refuse_several(choices)
    first = choices[0] if isinstance(choices, Sequence) and choices else None
    first = first if isinstance(first, Mapping) else {}
    message = first.get("message")
    if message is None and isinstance(first.get("text"), str):
        message = {"content": first["text"]}  # of a completion without a chat
    if message is None and is_filtered(finish_of(first, None)):
        message = {}
    if not isinstance(message, Mapping):
        error = value.get("error")
        raise not_text(
            f"the request failed: {shown(error)}" if error else "its choices hold no message"
        )
    turn = turn_of(cast("Mapping[str, object]", message), finish_of(first, None))
    return replace(turn, role="assistant")


def texts_in(value: object) -> Iterator[str]:
    """Every text in a value of JSON."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for held in value.values():
            yield from texts_in(held)
    elif isinstance(value, Sequence) and not isinstance(value, bytes):
        for held in value:
            yield from texts_in(held)


def not_text(why: str) -> BadRow:
    """The reason of a row that holds something else than texts."""
    return bad(why, "write one request and one answer as texts")


def _keys(value: Mapping[object, object]) -> str:
    return ", ".join(ascii(key)[:20] for key in list(value)[:4]) or "nothing in it"


def _named(message: Mapping[str, object], names: Sequence[str]) -> object:
    return next((message[name] for name in names if message.get(name) is not None), None)
