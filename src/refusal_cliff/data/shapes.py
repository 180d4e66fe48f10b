"""Rows of any known shape to validated prompts, traces and examples: the one door for all data.

A row holds what was asked, and, except for prompts, what a model said: in columns of its own, as
messages, or as a server sent it. Every command reads rows here, so that they mean the same in all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from refusal_cliff.data.fields import (
    BadRow,
    bad,
    bool_of,
    category_of,
    checked_text,
    count_of,
    label_of,
    score_of,
    shown,
    spans_of,
    tags_of,
    text_of,
    token_ids_of,
    verdict_of,
)
from refusal_cliff.data.messages import (
    Turn,
    choice_of,
    finish_of,
    not_text,
    refuse_several,
    texts_in,
    turns_of,
)
from refusal_cliff.data.reading import DEFAULT, Reading, default_id
from refusal_cliff.data.said import (
    EMPTY,
    THINKING_FIELDS,
    UNANSWERED,
    is_blank,
    is_setting,
    known_status,
    read_parts,
    said_in,
    told_of,
)
from refusal_cliff.data.types import Prompt, Row, SafetyExample, Told, Trace

PROMPT_COLUMNS = ("prompt", "text", "instruction", "question", "query", "problem")
RESPONSE_COLUMNS = ("response", "completion", "answer", "output", "response_raw")
_SAMPLES = ("generations", "completions", "responses", "outputs", "samples")
"""Lists of answers to one request: of one row, one answer is used."""
_ANSWERS = ("response", "completion", "response_raw")
"""Columns that hold a model's answer, and never the right one of a task."""
CHAT_COLUMNS = ("messages", "conversations", "conversation")
SYSTEM_COLUMNS = ("system", "system_prompt", "system_message")
_BESIDE = (*THINKING_FIELDS, "refusal", "tool_calls", "function_call")
"""What may stand beside an answer in columns of its own; a switch (``reasoning: on``) is none."""
_NAMES = {"text": "prompt"}


def prompt_of_row(source: str | Path, number: int, row: Row, reading: Reading = DEFAULT) -> Prompt:
    """The prompt in a row: a column of its own, or the request of its messages.

    Args:
        source: Names rows without an id.
        number: Number of the row.
        row: Its columns.
        reading: How they are read.

    Raises:
        BadRow: The row is not usable.
    """
    row = _renamed(row, reading)
    name = next((name for name in PROMPT_COLUMNS if row.get(name) is not None), None)
    turns = _asked_turns(row) if name is None else _asked_in(row, name)
    _refuse_system(row, turns)
    return _prompt(source, number, row, _asked(turns), reading)


def trace_of_row(
    source: str | Path,
    number: int,
    row: Row,
    reading: Reading = DEFAULT,
    *,
    asked_again: bool = False,
    thinks: bool = False,
) -> Trace:
    """What a model said, out of a row of any known shape, every field of it checked.

    Thinking and answer of our own rows (``closed``, or ``token_ids`` with ``spans``) are apart
    already and stay as they are; all others are read by `said_in`.

    Args:
        source: Names rows without an id.
        number: Number of the row.
        row: Its columns.
        reading: How they are read.
        asked_again: The prompt is put before a model here, so that no system turn may be missing.
        thinks: The model always thinks: a text without the end of a thought is one.

    Raises:
        BadRow: The row is not usable.
    """
    row = _renamed(row, reading)
    turns = [] if _is_own(row) else _conversation(row)
    if asked_again:
        _refuse_system(row, turns)
    text = text_in(row, _column_of(row, PROMPT_COLUMNS)) if _is_own(row) else _asked(turns)
    prompt = _prompt(source, number, row, text, reading)
    said = _own(prompt, row) if _is_own(row) else _read(prompt, row, turns, reading, thinks)
    ids = token_ids_of(row)
    prompt_tokens = count_of(row, "prompt_tokens")
    if ids and prompt_tokens is not None and prompt_tokens > len(ids):
        raise bad(f"its prompt has {prompt_tokens} of {len(ids)} tokens", "drop the token ids")
    spans = spans_of(row, len(ids)) if ids or row.get("spans") is not None else None
    told = replace(told_of(said), tokens=count_of(row, "tokens"), prompt_tokens=prompt_tokens)
    split = ids and prompt_tokens is None and (spans is not None or not told.closed)
    return replace(
        said,
        complete=bool_of(row, "complete", said.complete),
        token_ids=ids,
        spans=spans,
        thinking_cut=bool_of(row, "thinking_cut", False),
        verdict=verdict_of(row),
        judge=text_of(row, "judge"),
        score=score_of(row),
        reason=text_of(row, "reason"),
        told=None if split else told,
    )


def example_of_row(
    source: str | Path, number: int, row: Row, reading: Reading = DEFAULT
) -> SafetyExample:
    """A training example out of a row, its thinking empty where the row has none.

    Raises:
        BadRow: The row is of another ``format``, has an ``empty`` prompt or answer, or thinking
            that never closes.
    """
    found = trace_of_row(source, number, row, reading, asked_again=True)
    status = told_of(found).status
    if status in UNANSWERED:
        raise BadRow("empty", f"it has no answer: {status}")
    if not found.closed:
        raise BadRow("thinking never closes", "its thinking begins and does not end")
    if is_blank(found.response):
        raise BadRow("empty", "the answer is empty")
    if not found.complete:
        raise BadRow("cut off", "its answer was cut off")
    return SafetyExample(found.prompt, found.thinking, found.response)


def _renamed(row: Row, reading: Reading) -> Row:
    """The row with the columns that a user named under our own names."""
    if not reading.columns:
        return row
    missing = [(name, c) for name, c in reading.columns.items() if c not in row]
    if missing:
        name, column = missing[0]
        raise bad(f"it has no column {column!r}", f"name another one (--column {name}=COLUMN)")
    own = {_NAMES.get(name, name): row[column] for name, column in reading.columns.items()}
    hidden = {*CHAT_COLUMNS} if {"prompt", "response"} & own.keys() else set[str]()
    if "thinking" in own:
        hidden |= {*THINKING_FIELDS}
    return {name: value for name, value in row.items() if name not in hidden} | own


def _prompt(source: str | Path, number: int, row: Row, text: str, reading: Reading) -> Prompt:
    return Prompt(
        id=text_of(row, "id") or text_of(row, "custom_id") or default_id(source, number),
        text=text,
        label=label_of(row, reading.label),
        group=text_of(row, "group"),
        category=category_of(row),
        tags=tags_of(row),
    )


def _column_of(row: Row, names: Sequence[str]) -> str:
    name = next((name for name in names if row.get(name) is not None), None)
    if name is None:
        raise bad(
            f"it has none of the columns {', '.join((*names, 'messages'))}",
            f"rename the column that holds the {names[0]} to {names[0]!r}, or name it "
            f"(--column {'text' if names is PROMPT_COLUMNS else names[0]}=COLUMN)",
        )
    return name


def text_in(row: Row, name: str) -> str:
    """A text that is not empty; what Alpaca puts below an instruction is part of it."""
    text = row.get(name)
    if not isinstance(text, str) or not text.strip():
        reason = "empty" if isinstance(text, str) else "other format"
        wrong = f"{name!r} is {shown(text)}, not a non-empty text"
        raise BadRow(reason, wrong, "fill it in, or drop the row")
    given = row.get("input") if name == "instruction" else None
    below = f"\n\n{given}" if isinstance(given, str) and given.strip() else ""
    return checked_text(text + below, name)


def _conversation(row: Row) -> list[Turn]:
    """Request and answer as turns, wherever in the row they stand."""
    turns = _asked_turns(row)
    if turns[-1:] and turns[-1].role == "assistant" and not turns[-1].message["content"]:
        answered = _answered_turns(row)  # a last message that is empty may wait for the answer
        turns = [*turns[:-1], *answered] if answered else turns
    elif not any(turn.role == "assistant" for turn in turns):
        turns += _answered_turns(row)
    elif turns[-1].role == "assistant":
        _refuse_another_answer(row, turns[-1])
    if turns and turns[-1].role == "assistant":
        last = turns[-1]
        apart = {
            name: row[name]
            for name in _BESIDE
            if row.get(name) is not None and not is_setting(row[name])
        }
        turns[-1] = replace(
            last, message={**apart, **last.message}, finish=finish_of(row, last.finish)
        )
    return turns


def _refuse_another_answer(row: Row, turn: Turn) -> None:
    """Refuse a row whose column says something else than the answer of its messages."""
    given = {name: other for name in _ANSWERS if isinstance(other := row.get(name), str)}
    said = " ".join(turn.text.split()) if given else ""
    for name, other in given.items():
        words = " ".join(other.split())
        if words not in said and said not in words:
            raise bad(
                f"it has two answers, one in its messages and another in {name!r}",
                f"name the one that counts (--column response={name}), or drop the other",
            )


def _asked_turns(row: Row) -> list[Turn]:
    """The conversation in the row, or in the request of a batch, or the request in a column."""
    if isinstance(row.get("history"), list) and row["history"]:
        raise bad("it has earlier turns in 'history'", "keep the first request and its answer")
    body = row.get("body", row.get("request"))
    body = body.get("body", body) if isinstance(body, Mapping) else None
    for place in (row, body if isinstance(body, Mapping) else {}):
        for name in CHAT_COLUMNS:
            if place.get(name) is not None:
                return turns_of(place[name], "user", name)
    return _asked_in(row, _column_of(row, PROMPT_COLUMNS))


def _asked_in(row: Row, name: str) -> list[Turn]:
    """The request in a column: a text, or messages."""
    asked = row[name] if isinstance(row[name], list | Mapping) else text_in(row, name)
    return turns_of(asked, "user", name)


def _answered_turns(row: Row) -> list[Turn]:
    """The answer in a column, with its thinking; or as a server sent it."""
    if row.get("error") not in (None, "", {}):
        raise not_text(f"the request failed: {shown(row['error'])}")
    sent = choice_of(row)
    if sent is None and (samples := _samples(row)):
        return samples
    filled = [name for name in RESPONSE_COLUMNS if row.get(name) is not None]
    name = next((name for name in filled if row[name] != ""), next(iter(filled), None))
    if sent is None and name is not None:
        sent = choice_of(row[name])
    if sent is not None:
        return [sent]
    if name is None and not any(column in row for column in RESPONSE_COLUMNS):
        return []
    # A column that is there and empty is an empty answer.
    return turns_of([] if name is None else row[name], "assistant", name or "response")


def _samples(row: Row) -> list[Turn]:
    """The answer in a list of answers, where no column has one."""
    if any(row.get(name) is not None for name in RESPONSE_COLUMNS):
        return []
    for name in _SAMPLES:
        found = row.get(name)
        if isinstance(found, list) and found:
            refuse_several(found)
            return turns_of(found[0], "assistant", name)
    return []


def _refuse_system(row: Row, turns: Sequence[Turn]) -> None:
    """Refuse a system prompt that says something, in a column or as the first turn."""
    body = row.get("body")
    places = (row, body) if isinstance(body, Mapping) else (row,)
    said = [place.get(name) for place in places for name in SYSTEM_COLUMNS]
    if turns and turns[0].role == "system":
        said.append(turns[0].message["content"])
    if any(map(_says, said)):
        raise bad(
            "it has a system prompt, which the model would not be given here",
            "drop it from the row if the answer does not depend on it",
        )


def _says(value: object) -> bool:
    """Whether a system prompt says anything."""
    try:
        parts = read_parts(value)
    except TypeError:
        return bool(value)
    return bool(parts.others) or not is_blank(parts.text or "")


def _without_system(turns: Sequence[Turn]) -> Sequence[Turn]:
    return turns[1:] if turns and turns[0].role == "system" else turns


def _asked(turns: Sequence[Turn]) -> str:
    """The text of the one request."""
    turns = _without_system(turns)
    roles = [turn.role for turn in turns]
    if roles not in (["user"], ["user", "assistant"]):
        raise bad(
            f"its turns are {_listed(roles)}, not one request and one answer",
            "keep the first request and its answer",
        )
    return text_in({"prompt": turns[0].text}, "prompt")


def _listed(names: Sequence[str]) -> str:
    """Names with commas, in ASCII, no more than a few."""
    more = ", …" if len(names) > 6 else ""
    return ", ".join(ascii(name)[1:-1][:20] for name in names[:6]) + more


def _is_own(row: Row) -> bool:
    """Whether the row is one of our own traces, with thinking and answer apart."""
    has_tokens = row.get("token_ids") is not None and "spans" in row
    return row.get("closed") not in (None, "") or has_tokens


def _own(prompt: Prompt, row: Row) -> Trace:
    response = row.get("response")
    if not isinstance(response, str):
        wrong = f"'response' is {shown(response)}, not a text"
        raise bad(wrong, "put what the model answered into 'response'")
    written = row.get("written")
    if not isinstance(written, str | None):
        raise bad(f"'written' is {shown(written)}, not a text", "drop it")
    told = Told(
        closed=bool_of(row, "closed", row.get("spans", True) is not None),
        written=None if written is None else checked_text(written, "written"),
        beside=text_of(row, "beside"),
        finish=text_of(row, "finish"),
        status=known_status(row.get("status")),
    )
    thinking, response = text_of(row, "thinking"), checked_text(response, "response")
    return Trace(prompt, (), None, thinking, response, complete=True, told=told)


def _read(prompt: Prompt, row: Row, turns: Sequence[Turn], reading: Reading, thinks: bool) -> Trace:
    """The answer of a row as anybody writes it, split into thinking and answer."""
    answer = _without_system(turns)[1:]
    if not answer:
        _column_of(row, RESPONSE_COLUMNS)
        raise bad("it has no answer", "put what the model answered into 'response'")
    turn = answer[0]
    for text in texts_in(turn.message):
        if "\0" in checked_text(text, "response"):
            raise BadRow("not readable", "its answer holds a NUL character", "drop the row")
    apart = {name: turn.message.get(name) for name in THINKING_FIELDS}
    apart = {name: thought for name, thought in apart.items() if not is_setting(thought)}
    for name, thought in apart.items():
        try:
            read_parts(thought)
        except TypeError as error:
            wrong = f"its thinking is {shown(thought)} (in {name}), not a text"
            raise bad(wrong, "write it as a text") from error
    try:
        thinks = thinks and all(thought is None for thought in apart.values())
        said = said_in(prompt, turn.message, turn.finish, thinks=thinks, markers=reading.markers)
    except TypeError as error:
        raise bad(str(error), "write the answer as a text") from error
    told = told_of(said)
    if told.status == EMPTY and (others := read_parts(turn.message.get("content")).others):
        raise not_text(f"its answer holds no text, but a part of the kind {others[0]!a:.40}")
    finish = "" if turn.finish == "" else checked_text(told.finish, "finish")
    return replace(said, told=replace(told, finish=finish))
