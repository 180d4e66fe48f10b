"""The request and the answer in a row, in whichever of its columns they stand.

A row may hold more than one text of each kind. Where it is certain which one the model read or
wrote, that one is taken; where it is not, the row is refused.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace

from refusal_cliff.data.fields import BadRow, bad, checked_text, shown
from refusal_cliff.data.messages import (
    Turn,
    answer_turns,
    choice_of,
    finish_of,
    not_text,
    refuse_several,
    texts_in,
    turns_of,
)
from refusal_cliff.data.said import THINKING_FIELDS, is_blank, is_setting, read_parts
from refusal_cliff.data.types import Row
from refusal_cliff.thinking.written import ANSWER_HEADER

PROMPT_COLUMNS = ("prompt", "instruction", "question", "query", "problem", "text")
RESPONSE_COLUMNS = ("response", "completion", "output", "answer", "response_raw")
CHAT_COLUMNS = ("messages", "conversations", "conversation")
_SYSTEM_COLUMNS = ("system", "system_prompt", "system_message")
_SAMPLES = ("generations", "completions", "responses", "outputs", "samples")
"""Lists of answers to one request: of one row, one answer is used."""
_SURE = ("response", "completion", *_SAMPLES, "output")
"""Columns that hold what a model answered."""
_UNSURE = ("answer", "response_raw")
"""The first may hold the right answer of a task, the second more than the answer."""
BELOW = ("input", "context")
"""Columns with what a request is about."""
INSTEAD_OF = {
    "prompt": (*PROMPT_COLUMNS, *BELOW, *CHAT_COLUMNS),
    "response": (*RESPONSE_COLUMNS, *_SAMPLES, "choices", *CHAT_COLUMNS),
    "thinking": THINKING_FIELDS,
}
"""Columns that are not read where a user names the one of such a field."""
_BESIDE = (*THINKING_FIELDS, "tool_calls", "function_call")
"""What may stand beside an answer in columns of its own; a switch (``reasoning: on``) is none."""
_RENDERED = re.compile(
    r"\s*(?:(?:<s>|<bos>|<\|begin_of_text\|>|<｜begin▁of▁sentence｜>)\s*)*"
    r"(?:<\|(?:im_start|start_header_id|start|user|system)\|>|<｜User｜>|<start_of_turn>|\[INST\]).*"
    rf"(?:{ANSWER_HEADER}|<\|(?:assistant|start\|>assistant)\|?>?|\[/INST\])"
    r"\s*(?:(?P<thought><think>|\[THINK\])\s*)?",
    re.IGNORECASE | re.DOTALL,
)
"""A request as a chat template writes it, from the first header to where the answer begins."""


def asked_turns(row: Row) -> list[Turn]:
    """What a prompt's row asks: a column of its own, or its messages.

    Raises:
        BadRow: There is no request, or more than one.
    """
    name = _request_column(row)
    if name is None or (name == "text" and _chat_in(row)):
        return _conversation_turns(row)
    return _turns_in(row, name)


def conversation(row: Row) -> list[Turn]:
    """Request and answer as turns, wherever in the row they stand.

    Raises:
        BadRow: There is no request; or there is more than one answer.
    """
    turns = _conversation_turns(row)
    own = turns[-1:] if turns[-1:] and turns[-1].role == "assistant" else []
    if own or not any(turn.role == "assistant" for turn in turns):
        turns = [*turns[: len(turns) - len(own)], *_answer(row, own)]
    if turns and turns[-1].role == "assistant":
        last = turns[-1]
        apart = {
            name: row[name]
            for name in _BESIDE
            if last.message.get(name) is None
            and row.get(name) is not None
            and not is_setting(row[name])
        }
        if not _plain(last) and _is_said(row.get("refusal")):
            apart["refusal"] = row["refusal"]
        told = {name: value for name, value in row.items() if name != "stop"}  # a setting there
        turns[-1] = replace(
            last, message={**last.message, **apart}, finish=finish_of(told, last.finish)
        )
    return turns


def request_of(turns: Sequence[Turn]) -> str:
    """The text of the one request in a conversation.

    Raises:
        BadRow: There are other turns than a request and an answer.
    """
    turns = without_system(turns)
    roles = [turn.role for turn in turns]
    if roles not in (["user"], ["user", "assistant"]):
        raise bad(
            f"its turns are {_listed(roles)}, not one request and one answer",
            "keep the first request and its answer",
        )
    return text_in({"prompt": turns[0].text}, "prompt")


def begins_thought(request: str) -> bool:
    """Whether a request is written in a chat template that opens the thought, too."""
    begun = _RENDERED.fullmatch(request)
    return begun is not None and begun["thought"] is not None


def refuse_other_prompt(row: Row, turns: Sequence[Turn]) -> None:
    """Refuse what a model is not asked here: a system prompt, or a chat template of another.

    Raises:
        BadRow: There is a system prompt that says something, in a column or as the first turn; or
            the request is written in a chat template.
    """
    body = row.get("body")
    places = (row, body) if isinstance(body, Mapping) else (row,)
    said = [place.get(name) for place in places for name in _SYSTEM_COLUMNS]
    if turns and turns[0].role == "system":
        said.append(turns[0].message["content"])
    if any(map(_says, said)):
        raise bad(
            "it has a system prompt, which the model would not be given here",
            "drop it from the row if the answer does not depend on it",
        )
    asked = without_system(turns)
    if asked and _RENDERED.fullmatch(_plain(asked[0])):
        raise bad(
            "its request is written in a chat template, down to where the answer begins",
            "write the request alone",
        )


def without_system(turns: Sequence[Turn]) -> Sequence[Turn]:
    """The turns after a system prompt."""
    return turns[1:] if turns and turns[0].role == "system" else turns


def column_of(row: Row, names: Sequence[str]) -> str:
    """The first of some columns that holds anything.

    Raises:
        BadRow: None does.
    """
    name = next((name for name in names if row.get(name) is not None), None)
    if name is None:
        raise bad(
            f"it has none of the columns {', '.join((*names, 'messages'))}",
            f"rename the column that holds the {names[0]} to {names[0]!r}, or name it "
            f"(--column {'text' if names is PROMPT_COLUMNS else names[0]}=COLUMN)",
        )
    return name


def text_in(row: Row, name: str) -> str:
    """A text that is not empty; what Alpaca and Dolly put below an instruction is part of it.

    Raises:
        BadRow: It is empty or no text; or something stands below another column than
            ``instruction``, so that nobody says what the model was given.
    """
    text = row.get(name)
    if not isinstance(text, str) or not text.strip():
        reason = "empty" if isinstance(text, str) else "other format"
        wrong = f"{name!r} is {shown(text)}, not a non-empty text"
        raise BadRow(reason, wrong, "fill it in, or drop the row")
    for below in BELOW if name in PROMPT_COLUMNS else ():
        given = row.get(below)
        if not isinstance(given, str) or _words(given) in _words(text):
            continue
        if name != "instruction":
            raise bad(
                f"beside {name!r} it has {below!r}, and it is not told how the model read both",
                f"write all that it read into one column; if that is {name!r}, name it (--column "
                f"text={name})",
            )
        text = f"{text}\n\n{given}"
    return checked_text(text, name)


def _request_column(row: Row) -> str | None:
    """The column of the request, if there is one.

    Where one holds another, it is what the model read; but ``text`` is then the whole conversation
    in a chat template, with the answer.
    """
    filled = [name for name in PROMPT_COLUMNS if row.get(name) is not None]
    texts = {name: _words(text) for name in filled if isinstance(text := row[name], str)}
    name = next((name for name in filled if texts.get(name) != ""), next(iter(filled), None))
    if name is None or name not in texts:
        return name
    for other, words in texts.items():
        if words in texts[name] or (other == "text" and texts[name] in words):
            continue
        if texts[name] not in words:
            raise bad(
                f"it has two requests, in {name!r} and in {other!r}",
                f"name the one that the model read (--column text={name}), or drop the other",
            )
        name = other
    return name


def _chat_in(row: Row) -> bool:
    return any(row.get(name) is not None for name in CHAT_COLUMNS)


def _conversation_turns(row: Row) -> list[Turn]:
    """The conversation in the row, or in the request of a batch, or the request in a column."""
    if isinstance(row.get("history"), list) and row["history"]:
        raise bad("it has earlier turns in 'history'", "keep the first request and its answer")
    body = row.get("body", row.get("request"))
    body = body.get("body", body) if isinstance(body, Mapping) else None
    for place in (row, body if isinstance(body, Mapping) else {}):
        for name in CHAT_COLUMNS:
            if place.get(name) is None:
                continue
            turns = turns_of(place[name], "user", name)
            if place is not row and turns and turns[-1].role == "assistant":
                raise bad("its request begins the answer, too", "drop the row")
            return turns
    return _turns_in(row, _request_column(row) or column_of(row, PROMPT_COLUMNS))


def _turns_in(row: Row, name: str) -> list[Turn]:
    """The request in a column: a text, or messages."""
    asked = row[name] if isinstance(row[name], list | Mapping) else text_in(row, name)
    return turns_of(asked, "user", name)


def _answer(row: Row, own: Sequence[Turn]) -> list[Turn]:
    """The one answer of a row, out of all places that may hold it; empty where none does.

    Args:
        row: The row.
        own: That of its messages, if they have one.

    Raises:
        BadRow: Two places hold different answers, or the request failed.
    """
    if not own and row.get("error") not in (None, "", {}):
        raise not_text(f"the request failed: {shown(row['error'])}")
    found = _answers(row, [turn for turn in own if _holds(turn)])
    said = {name: some for name, turns in found.items() if (some := [*filter(_plain, turns)])}
    if not said:
        blank = _all(found) or list(own)
        # A column that is there and empty is an empty answer.
        there = blank or any(name in row for name in RESPONSE_COLUMNS)
        return (blank or turns_of([], "assistant", "response"))[:1] if there else []
    first, *others = said.items()
    same = [turn for turns in said.values() for turn in turns if _alike(first[1][0], turn)]
    for name, turns in others:
        if not any(turn in same for turn in turns):
            raise bad(
                f"it has two answers, in {first[0]} and in {name}",
                "name the column that counts (--column response=COLUMN), or drop the other",
            )
    alone = [turn for turns in said.values() if len(turns) == 1 for turn in turns if turn in same]
    longest = max(alone, key=_size)  # it has the thought, too, and what a begun answer goes on with
    ended = next((turn.finish for turn in same if turn.finish), longest.finish)
    return [replace(longest, finish=ended)]


def _answers(row: Row, own: Sequence[Turn]) -> dict[str, list[Turn]]:
    """What every place of a row says was answered, the surest place first.

    Lists of answers may hold several beside messages, which say which one counts.
    """
    found = {"its messages": list(own)} if own else {}
    for name in ("choices", *_SURE, *_UNSURE):
        if row.get(name) is None and name != "choices":
            continue
        sure = any(map(_plain, _all(found)))
        unread = found.keys() - _gold_beside(row) if name == "answer" else sure
        if name in _UNSURE and unread:
            continue
        try:
            turns = _read_answers(row, name)
        except BadRow:
            if not sure:
                raise
            continue  # beside an answer it may hold anything, such as a mark
        if len(turns) > 1 and not any(map(_plain, own)):
            refuse_several(turns)
        if turns:
            found[repr(name)] = turns
    return found


def _read_answers(row: Row, name: str) -> list[Turn]:
    """The answers in one place of a row; none in what is no list where a list is looked for."""
    if name == "choices":
        choices = row.get(name)
        if isinstance(choices, list) and choices and not isinstance(choices[0], Mapping):
            return []  # of a question with several answers to choose from
        sent = choice_of(row)
        return [] if sent is None else [sent]
    if name not in _SAMPLES:
        return _one_answer(row[name], name)
    value = row[name]
    several = value if isinstance(value, list) else []
    return [turn for one in several for turn in answer_turns(one, name)[:1]]


def _gold_beside(row: Row) -> set[str]:
    """A text in ``output`` may be what ``answer`` is beside: then nobody says which one counts."""
    return {"'output'"} if isinstance(row.get("output"), str) else set()


def _one_answer(value: object, name: str) -> list[Turn]:
    turns = answer_turns(value, name)
    if [turn.role for turn in turns] != ["assistant"]:
        roles = _listed([turn.role for turn in turns])
        raise bad(f"{name!r} holds the turns {roles}, not one answer", "keep the answer alone")
    return turns


def _all(found: Mapping[str, Sequence[Turn]]) -> list[Turn]:
    return [turn for turns in found.values() for turn in turns]


def _alike(one: Turn, other: Turn) -> bool:
    """Whether one answer holds the other, blanks aside: beside a thought, or as its beginning."""
    ours, theirs = _words(_plain(one)), _words(_plain(other))
    return ours in theirs or theirs in ours


def _holds(turn: Turn) -> bool:
    """Whether a message says, thinks or calls anything; one that does not waits for its answer."""
    beside = (turn.message.get(name) for name in (*_BESIDE, "refusal"))
    return bool(turn.message["content"]) or any(beside)


def _plain(turn: Turn) -> str:
    """What is said in a turn; empty where that is nothing, or no text."""
    try:
        text = turn.text
    except BadRow:
        return ""
    return "" if is_blank(text) else text


def _size(turn: Turn) -> int:
    said = (turn.message.get(name) for name in ("content", *THINKING_FIELDS))
    return sum(len(text) for held in said for text in texts_in(held))


def _words(text: str) -> str:
    return " ".join(text.split())


def _is_said(value: object) -> bool:
    """Whether a column beside an empty answer holds the words of a refusal, not a label of it."""
    return isinstance(value, str) and len(value.split()) > 1


def _says(value: object) -> bool:
    """Whether a system prompt says anything."""
    try:
        parts = read_parts(value)
    except TypeError:
        return bool(value)
    return bool(parts.others) or not is_blank(parts.text or "")


def _listed(names: Sequence[str]) -> str:
    """Names with commas, in ASCII, no more than a few."""
    more = ", …" if len(names) > 6 else ""
    return ", ".join(ascii(name)[1:-1][:20] for name in names[:6]) + more
