"""Safety data in the formats in which it is published: one row to one training example."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from refusal_cliff.cliff.source import THINKING_COLUMNS
from refusal_cliff.data.traces import Label, Row, SafetyExample, prompt_of_row
from refusal_cliff.errors import RefusalCliffError
from refusal_cliff.thinking import ThinkingFormat

PROMPT_COLUMNS = ("prompt", "question", "instruction", "query", "text")
RESPONSE_COLUMNS = ("completion", "response", "output", "answer", "response_raw")
CHAT_COLUMNS = ("messages", "conversations")
_ROLES = {"human": "user", "gpt": "assistant"}
_KEPT = ("id", "label", "group", "tags")


@dataclass(frozen=True, slots=True)
class LeftOut:
    """Why a row is not used.

    Attributes:
        reason: One of a few words that are counted.
        detail: What is wrong with this row.
    """

    reason: str
    detail: str = ""


class _Unusable(Exception):
    """The row is left out; its argument says why."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(reason)
        self.left_out = LeftOut(reason, detail)


def read_candidate(
    source: Path, number: int, row: Row, fmt: ThinkingFormat, label: Label = "harmful"
) -> SafetyExample | LeftOut:
    """A training example out of a row, its thinking empty where the row has none.

    Known are: ``messages`` (and ``conversations``) of one user turn and one answer; ``prompt`` and
    ``completion``, as texts or as messages; ``instruction``, ``input`` and ``output`` (Alpaca);
    ``question`` or ``prompt`` with ``response``, ``response_raw``, ``output`` or ``answer``. The
    thinking is a column or key of its own (``thinking``, ``reasoning``, ``reasoning_content``), or
    stands in the answer between the model's markers or ``<think>`` and ``</think>``.

    Args:
        source: File or data set; names rows without an id.
        number: Number of the row.
        row: Its columns.
        fmt: How the model marks its thinking.
        label: Label of a row without one.

    Returns:
        The example, or why there is none: the row is of another ``format``, has an ``empty`` prompt
        or answer, or thinking that never closes.
    """
    try:
        prompt, thinking, answer = _texts(row)
        if thinking is None:
            thinking, answer = _split(answer, fmt)
        named = {name: row[name] for name in _KEPT if row.get(name) is not None}
        category = _category(row.get("category"))
        asked = prompt_of_row(source, number, {**named, "prompt": prompt, **category}, label)
    except _Unusable as error:
        return error.left_out
    except RefusalCliffError as error:
        return LeftOut("other format", str(error))
    if not answer.strip():
        return LeftOut("empty", "the answer is empty")
    return SafetyExample(asked, thinking, answer)


def _texts(row: Row) -> tuple[str, str | None, str]:
    """Prompt, thinking where it stands apart, and answer."""
    chat = next((row[name] for name in CHAT_COLUMNS if row.get(name) is not None), None)
    if chat is not None:
        return _of_chat(_messages(chat))
    asked, answered = _column(row, PROMPT_COLUMNS), _column(row, RESPONSE_COLUMNS)
    if asked is None or answered is None:
        raise _Unusable("other format", f"it has only the columns {', '.join(sorted(row))}")
    if not (isinstance(asked, str) and isinstance(answered, str)):
        return _of_chat([*_messages(asked), *_messages(answered, "assistant")])
    thinking = _column(row, THINKING_COLUMNS)
    if thinking is not None and not isinstance(thinking, str):
        raise _Unusable("other format", "its thinking is not a text")
    return _filled(asked + _input_of(row)), thinking, answered


def _column(row: Row, names: Sequence[str]) -> object:
    return next((row[name] for name in names if row.get(name) is not None), None)


def _input_of(row: Row) -> str:
    """What Alpaca puts below the instruction."""
    given = row.get("input")
    return f"\n\n{given}" if isinstance(given, str) and given.strip() else ""


def _messages(value: object, role: str = "user") -> list[Mapping[str, object]]:
    if isinstance(value, str):
        return [{"role": role, "content": value}]
    if isinstance(value, Sequence) and value and all(isinstance(m, Mapping) for m in value):
        return list(cast("Sequence[Mapping[str, object]]", value))
    raise _Unusable("other format", "its messages are not a list of objects")


def _of_chat(messages: Sequence[Mapping[str, object]]) -> tuple[str, str | None, str]:
    turns = [_turn(message) for message in messages]
    roles = [role for role, _, _ in turns]
    if roles != ["user", "assistant"]:
        said = ", ".join(roles)
        raise _Unusable("other format", f"its turns are {said}, not one request and one answer")
    (_, prompt, _), (_, answer, thinking) = turns
    return _filled(prompt), thinking, answer


def _turn(message: Mapping[str, object]) -> tuple[str, str, str | None]:
    """Role, content and thinking of a message, OpenAI's keys or ShareGPT's."""
    role = str(message.get("role", message.get("from", "")))
    content = message.get("content", message.get("value"))
    thinking = _column(message, THINKING_COLUMNS)
    if not isinstance(content, str) or not isinstance(thinking, str | None):
        raise _Unusable("other format", "a message has no text")
    return _ROLES.get(role, role), content, thinking


def _filled(prompt: str) -> str:
    if not prompt.strip():
        raise _Unusable("empty", "the prompt is empty")
    return prompt


def _split(answer: str, fmt: ThinkingFormat) -> tuple[str, str]:
    """Thinking and answer of a text that holds both: the split is at the last closing marker."""
    for opener, closer in _markers(fmt):
        before, closed, after = answer.rpartition(closer)
        if closed:
            return before.strip().removeprefix(opener).strip(), after.strip()
        if opener in answer:
            raise _Unusable("thinking never closes", f"it has {opener} and no {closer}")
    return "", answer


def _markers(fmt: ThinkingFormat) -> Iterator[tuple[str, str]]:
    if fmt.thinks:
        yield fmt.opener, fmt.closer
    yield "<think>", "</think>"


def _category(value: object) -> dict[str, str]:
    """One text; published data also has lists of categories."""
    if isinstance(value, str):
        return {"category": value}
    if isinstance(value, Sequence):
        return {"category": "; ".join(map(str, value))}
    return {}
