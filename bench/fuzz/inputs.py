"""What the fuzzing draws: rows, values, damaged bytes and changed JSON."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Sequence
from typing import Any, TypeAlias

from hypothesis import strategies as st

from refusal_cliff.data.conversation import CHAT_COLUMNS, PROMPT_COLUMNS, RESPONSE_COLUMNS
from refusal_cliff.data.said import THINKING_FIELDS

Drawn: TypeAlias = "st.SearchStrategy[Any]"
KEY = "sk-very-secret-4711"

_OURS = ("token_ids", "spans", "closed", "complete", "thinking_cut", "written", "finish", "tokens")
_OTHERS = ("prompt_tokens", "verdict", "judge", "score", "reason", "custom_id", "error", "system")
_FIELDS = (*PROMPT_COLUMNS, *RESPONSE_COLUMNS, *CHAT_COLUMNS, *THINKING_FIELDS, *_OURS, *_OTHERS)
_NAMES = ("id", "label", "group", "category", "tags", "input", "body", "request", "choices")
_KEYS = ("role", "content", "from", "value", "type", "text", "thinking", "refusal", "tool_calls")
_MORE = ("prompt", "closing", "total", "body", "choices", "message", "messages", "finish_reason")
_WORDS = ("user", "assistant", "system", "human", "gpt", "text", "stop", "length", "refused", "")
_ODD = ("harmful", "unsafe", "1", "true", "1e400", "nan", "\0", "\ud800", KEY, "../..", "a\nb")
_THOUGHTS = ("<think>\nHm.\n</think>\n\nNo.", "<think>on", "</think>", "think\na\nanswer\nb")
TEXTS: Drawn = st.one_of(
    st.sampled_from((*_WORDS, *_ODD)), st.sampled_from(_THOUGHTS), st.text(max_size=8)
)
NUMBERS: Drawn = st.one_of(
    st.integers(-3, 400),
    st.sampled_from((2**31, 2**63, 10**400, -1, 0.5, 1.0, math.nan, math.inf, 1e308)),
)
VALUES: Drawn = st.recursive(
    st.none() | st.booleans() | NUMBERS | TEXTS,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from((*_KEYS, *_MORE)), inner, max_size=4)
    ),
    max_leaves=8,
)
_SPANS = st.fixed_dictionaries(
    {},
    optional={n: NUMBERS | TEXTS | st.none() for n in ("prompt", "thinking", "closing", "total")},
)
ROWS: Drawn = st.fixed_dictionaries(
    {},
    optional={
        **dict.fromkeys((*_FIELDS, *_NAMES), VALUES | TEXTS),
        "token_ids": st.lists(NUMBERS, max_size=6) | VALUES,
        "spans": _SPANS | VALUES,
    },
)
WHOLE = {"prompt": "Copy it", "thinking": "Hm.", "response": "No.", "label": "benign"}
ALMOST: Drawn = st.builds(lambda some: {**WHOLE, **some}, ROWS)
"""Rows that would be used but for some of their fields: most of `ROWS` fail at the first."""
_BYTES = st.binary(max_size=12) | st.sampled_from((b'"', b"\n", b"\r", b"\xff", b"\0", b"[" * 5000))
DAMAGE: Drawn = st.tuples(st.integers(0, 1 << 20), _BYTES, st.just(0) | st.integers(0, 4000))
"""Where bytes are replaced, by what, and how many are cut off at the end."""
CHANGES: Drawn = st.lists(
    st.tuples(st.lists(st.integers(0, 40), min_size=1, max_size=4), VALUES | st.just("missing")),
    min_size=1,
    max_size=3,
)
"""Which values of a JSON object are replaced, by what; see `changed`."""


def damaged(whole: bytes, damage: tuple[int, bytes, int]) -> bytes:
    """Bytes with some of them replaced, and the end cut off."""
    at, what, cut = damage
    place = at % (len(whole) + 1)
    found = whole[:place] + what + whole[place + len(what) :]
    return found[: len(found) - cut] if cut < len(found) else found


def changed(whole: Any, changes: Sequence[tuple[Sequence[int], Any]]) -> Any:
    """A JSON value with some of the values inside it replaced, or missing."""
    found = copy.deepcopy(whole)
    for way, value in changes:
        place, last = found, found
        key: Any = None
        for step in way:
            inside = list(place) if isinstance(place, dict) else range(len(_list(place)))
            if not inside:
                break
            last, key = place, inside[step % len(inside)]
            place = place[key]
        if key is None:
            continue
        if value == "missing":
            del last[key]
        else:
            last[key] = value
    return found


def _list(value: Any) -> Sequence[Any]:
    return value if isinstance(value, list) else ()


def bodies() -> Drawn:
    """Status, packing and bytes of what a server sends."""
    message = {"role": "assistant", "content": "<think>\nHm.\n</think>\n\nNo."}
    choice = {"index": 0, "message": message, "finish_reason": "stop", "token_ids": [1, 2]}
    usage = {"prompt_tokens": 1, "total_tokens": 3}
    whole = {"id": "1", "choices": [choice], "usage": usage, "prompt_token_ids": [7]}
    changes = CHANGES.map(lambda some: json.dumps(changed(whole, some)).encode())
    anything = VALUES.map(lambda value: json.dumps(value).encode())
    bytes_ = DAMAGE.map(lambda damage: damaged(json.dumps(whole).encode(), damage))
    packings = st.sampled_from(("", "", "", "gzip", "deflate", "br"))
    statuses = st.sampled_from((200, 200, 200, 400, 503))
    body = st.tuples(statuses, packings, changes | bytes_ | anything)
    return st.lists(body, min_size=1, max_size=4)
