"""What a server's answer means: a record, with what it says about how the answer ended."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from refusal_cliff.data.records import (
    EMPTY,
    FILTERED,
    NO_ANSWER,
    REFUSAL_FIELD,
    TOOL_CALL,
    UNTOLD,
    Record,
)
from refusal_cliff.data.traces import Prompt
from refusal_cliff.thinking.parts import read_parts
from refusal_cliff.thinking.written import Message, read_message

THINKING_FIELDS = ("reasoning_content", "reasoning", "thinking")
_CUT = frozenset(
    {"length", "max_tokens", "max_output_tokens", "max_length", "model_length", "incomplete"}
    | {"abort", "cancelled", "error", "network_error", "insufficient_system_resource", "timeout"}
)
"""Words of servers for an answer that they ended; all others, and none, are the model's own end."""
_FILTERS = frozenset(
    {"content_filter", "content_filtered", "guardrail_intervened", "safety", "sensitive"}
    | {"recitation", "blocklist", "prohibited_content", "spii"}
)
_REFUSALS = frozenset({"refusal"})


def record_of_choice(prompt: Prompt, choice: Mapping[str, Any], *, thinks: bool) -> Record:
    """The record of one choice of a chat completion.

    Args:
        prompt: What was asked.
        choice: As the server sent it; its message's content is one that `read_parts` reads.
        thinks: As for `read_message`.
    """
    message = choice.get("message") or {"content": choice.get("text")}
    parts = read_parts(message.get("content"))
    told = next(filter(None, (_text(message, name) for name in THINKING_FIELDS)), None)
    found = read_message(parts.text, told or parts.thinking, thinks=thinks)
    finish = choice.get("finish_reason")
    finish = finish if isinstance(finish, str) and finish else UNTOLD
    complete = finish.lower() not in _CUT | _FILTERS
    refusal = parts.refusal or _text(message, "refusal")
    if not found.response and (refusal or finish.lower() in _REFUSALS):
        return Record(
            prompt, found.thinking, refusal, True, True, finish=finish, status=REFUSAL_FIELD
        )
    return Record(
        prompt,
        found.thinking,
        found.response,
        closed=found.closed,
        complete=complete,
        written=found.written,
        finish=finish,
        status=_status(message, parts.others, found, finish.lower(), complete),
    )


def _status(
    message: Mapping[str, Any],
    others: tuple[str, ...],
    found: Message,
    finish: str,
    complete: bool,
) -> str:
    if finish in _FILTERS:
        return FILTERED
    if found.response or not complete:
        return ""
    called = any("tool" in kind or "function" in kind for kind in others)
    if called or message.get("tool_calls") or message.get("function_call"):
        return TOOL_CALL
    if not found.thinking:
        return EMPTY
    apart = found.written is None  # the server took the thought for a whole one
    return NO_ANSWER if found.closed or apart else ""


def _text(message: Mapping[str, Any], name: str) -> str:
    value = message.get(name)
    return (read_parts(value).text or "").strip() if isinstance(value, str) else ""
