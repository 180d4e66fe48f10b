"""Conversations as public data and servers write them: who speaks, and each one's message."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import cast

from refusal_cliff.data.fields import BadRow, bad, shown
from refusal_cliff.data.said import is_filtered, is_part, read_parts, thought_in

_ROLES = {
    "human": "user",
    "prompter": "user",
    "gpt": "assistant",
    "model": "assistant",
    "bot": "assistant",
    "ai": "assistant",
    "developer": "system",
}
_WHO = ("role", "from")
_SAID = ("content", "value", "text", "parts", "answer", "response", "final_answer")
_INNER = ("analysis", "commentary")
"""Channels of harmony whose messages are no answers."""
_MESSAGE = frozenset({*_SAID, "thinking", "reasoning", "refusal", "tool_calls", "function_call"})
_PRINTED = re.compile(
    r"\[?\s*(?:\{'(?:role|from|type|content|text|thinking|reasoning\w*|signature|citations|parts)':"
    r"|\{'id': 'chatcmpl|content=['\"](?=.*additional_kwargs=)"
    r"|(?:(?:Text|Thinking|RedactedThinking|ToolUse)Block|(?:Parsed)?ChatCompletion\w*|AIMessage"
    r"|ModelResponse|GenerateContentResponse)\(\w+=)",
    re.DOTALL,
)
"""Begins messages as Python prints them."""
_FINISH = (
    *("finish", "finish_reason", "stop_reason", "done_reason", "finishReason", "stopReason"),
    *("stop_type", "incomplete_details"),
)
"""Names of servers and logs for why an answer ended."""
_FINISH_WITHIN = ("meta_info", "response_metadata", "generation_info", "details")
_UNFINISHED = (
    *((name, "false") for name in ("done", "finished", "is_finished", "stop")),
    *(("stopped_limit", "true"), ("status", "incomplete")),
)
"""What servers and logs say of an answer that has not ended by itself."""


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
    extra = message.get("additional_kwargs")  # of LangChain
    message = {**extra, **message} if isinstance(extra, Mapping) else message
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


def answer_turns(value: object, column: str) -> list[Turn]:
    """The answer in a column: a text, messages, or what a server sent; JSON of it is the same.

    Raises:
        BadRow: As of `turns_of` and `choice_of`.
    """
    value = _parsed(value, answers=True) if isinstance(value, str) else value
    sent = choice_of(value)
    if sent is None and _is_response(value):
        items = cast("Sequence[Mapping[str, object]]", value)
        ended = next(filter(None, (finish_of(item, "") for item in items)), "")
        sent = Turn("assistant", {"content": items}, ended)
    return turns_of(value, "assistant", column) if sent is None else [sent]


def _is_response(value: object) -> bool:
    """Whether a list holds the items of OpenAI's responses, all of them the model's."""
    if not isinstance(value, list) or not all(isinstance(item, Mapping) for item in value):
        return False
    items = cast("list[Mapping[str, object]]", value)
    named = {item.get("role") for item in items} - {None}
    return named <= {"assistant"} and any(item.get("type") == "message" for item in items)


def _parsed(text: str, *, answers: bool = False) -> object:
    """What a text is as JSON, if that is messages or parts; else the text itself.

    Args:
        text: As tables hold it.
        answers: It may also be what a server sent.
    """
    if _PRINTED.match(text.lstrip()):
        raise bad("it holds messages as Python prints them", "export the file again, as JSON")
    if not text.lstrip().startswith(("[", "{")):
        return text
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return text
    if answers and _is_completion(value):
        return value
    held = value if isinstance(value, list) else [value]
    sent = any(map(_is_sent, held))
    return value if sent and all(_is_sent(one) or _is_text(one) for one in held) else text


def _is_sent(value: object) -> bool:
    """Whether an object is a message or a part of one, and no JSON that a model wrote."""
    if not isinstance(value, dict):
        return False
    if value.keys() & {*_WHO} or value.get("type") == "message":
        return bool(value.keys() & _MESSAGE)
    return is_part(value)


def _is_text(value: object) -> bool:
    """Whether it is what Gemini and Bedrock put beside a thought, which alone says what it is."""
    return isinstance(value, dict) and value.keys() == {"text"}


def _is_completion(value: object) -> bool:
    choices = value.get("choices") if isinstance(value, dict) else None
    if not isinstance(choices, list) or not choices:
        return False
    return all(isinstance(one, dict) and one.keys() & {"message", "text"} for one in choices)


def _whole(turns: Sequence[Turn]) -> list[Turn]:
    """With the thoughts that harmony has as messages of their own beside the answer after them."""
    found: list[Turn] = []
    for turn in turns:
        before = found[-1].message if found else {}
        if turn.role == "assistant" and before.get("channel") in _INNER:
            thoughts = (before.get("thinking"), turn.message.get("thinking"))
            both = "\n\n".join(filter(None, map(thought_in, thoughts)))
            found[-1] = replace(turn, message={**turn.message, "thinking": both})
        else:
            found.append(turn)
    return found


def finish_of(fields: Mapping[str, object], otherwise: object) -> object:
    """Why an answer ended, in the word of its server; ``otherwise`` where no field is for that."""
    told = [fields[name] for name in _FINISH if name in fields]
    within = (fields.get(name) for name in _FINISH_WITHIN)
    told += [finish_of(held, None) for held in within if isinstance(held, Mapping)]
    if any(str(fields.get(name)).lower() == says for name, says in _UNFINISHED):
        told.append("incomplete")
    return next(filter(None, (*told, otherwise)), told[0] if told else otherwise)


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
