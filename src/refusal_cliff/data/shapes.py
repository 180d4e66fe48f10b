"""Rows of any known shape to validated prompts, traces and examples: the one door for all data.

A row holds what was asked, and, except for prompts, what a model said: in columns of its own, as
messages, or as a server sent it. Every command reads rows here, so that they mean the same in all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from refusal_cliff.data.conversation import (
    BELOW,
    INSTEAD_OF,
    PROMPT_COLUMNS,
    RESPONSE_COLUMNS,
    asked_turns,
    begins_thought,
    column_of,
    conversation,
    refuse_other_prompt,
    request_of,
    text_in,
    without_system,
)
from refusal_cliff.data.fields import (
    BadRow,
    bad,
    bool_of,
    category_of,
    checked_text,
    count_of,
    label_in,
    label_of,
    score_of,
    shown,
    spans_of,
    tags_of,
    text_of,
    token_ids_of,
    verdict_of,
)
from refusal_cliff.data.messages import Turn, not_text, texts_in
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
    turns = asked_turns(row)
    refuse_other_prompt(row, turns)
    return _prompt(source, number, row, request_of(turns), reading)


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
    turns = [] if _is_own(row) else conversation(row)
    if asked_again:
        refuse_other_prompt(row, turns)
    text = text_in(row, column_of(row, PROMPT_COLUMNS)) if _is_own(row) else request_of(turns)
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
        complete=bool_of(row, "complete", said.complete) and said.complete,
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
    hidden = {name for field in own for name in INSTEAD_OF.get(field, ())}
    elsewhere = {column for name, column in reading.columns.items() if name != "text"}
    row = {name: value for name, value in row.items() if name not in elsewhere.intersection(BELOW)}
    if reading.columns.get("text") == "instruction" and isinstance(own["prompt"], str):
        own["prompt"] = text_in(row, "instruction")
    if "label" in own:
        own["label"] = label_in(reading.columns["label"], own["label"])
    return {name: value for name, value in row.items() if name not in hidden} | own


def _prompt(source: str | Path, number: int, row: Row, text: str, reading: Reading) -> Prompt:
    if _rates_completion(row) and "label" not in reading.columns:
        row = {**row, "label": None}
    return Prompt(
        id=text_of(row, "id") or text_of(row, "custom_id") or default_id(source, number),
        text=text,
        label=label_of(row, reading.label),
        group=text_of(row, "group"),
        category=category_of(row),
        tags=tags_of(row),
    )


def _rates_completion(row: Row) -> bool:
    """Whether ``label`` says, as TRL's data do, that the completion is a good one."""
    said = str(row.get("label")).lower() in ("true", "false")
    return said and row.get("completion") is not None


def _is_own(row: Row) -> bool:
    """Whether the row is one of our own traces, with thinking and answer apart."""
    has_tokens = row.get("token_ids") is not None and "spans" in row
    has_parts = row.get("closed") not in (None, "") and {"thinking", "complete"} <= row.keys()
    return has_parts or has_tokens


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
    answer = without_system(turns)[1:]
    if not answer:
        column_of(row, RESPONSE_COLUMNS)
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
        opened = thinks or begins_thought(prompt.text)
        thinks = opened and all(thought is None for thought in apart.values())
        said = said_in(prompt, turn.message, turn.finish, thinks=thinks, markers=reading.markers)
    except TypeError as error:
        raise bad(str(error), "write the answer as a text") from error
    told = told_of(said)
    if told.status == EMPTY and (others := read_parts(turn.message.get("content")).others):
        raise not_text(f"its answer holds no text, but a part of the kind {others[0]!a:.40}")
    finish = "" if turn.finish == "" else checked_text(told.finish, "finish")
    return replace(said, told=replace(told, finish=finish))
