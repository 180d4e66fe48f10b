"""What a server's message means: thinking, answer, how it ended, or why there is no answer."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from refusal_cliff.data.types import Prompt, Told, Trace
from refusal_cliff.thinking.formats import KNOWN, Markers
from refusal_cliff.thinking.parts import read_parts
from refusal_cliff.thinking.written import Message, read_message

REFUSAL_FIELD = "the server says that it is a refusal"
EMPTY = "the answer is empty"
TOOL_CALL = "a call of a tool instead of an answer"
FILTERED = "stopped by a content filter"
NO_ANSWER = "thinking without an answer"
UNANSWERED = (EMPTY, TOOL_CALL, FILTERED, NO_ANSWER)
"""Why there is nothing to judge: such an answer is unscored, whoever judges."""
UNTOLD = "not told"
"""The ``finish`` of an answer of which the server did not say why it ended."""

THINKING_FIELDS = (
    *("reasoning_content", "reasoning", "thinking", "reasoning_details", "reasoning_text"),
    *("thought", "thoughts", "cot", "chain_of_thought", "thinking_blocks"),
)
_FILTERS = re.compile(
    r"filter|guardrail|safety|sensitive|recitation|block_?list|prohibited|spii|toxic|moderat"
)
_CUT = re.compile(
    r"length|max_|limit|context|incomplete|truncat|abort|cancel|error|insufficient|time_?out"
    r"|repetition"
)
"""In words of servers for an answer that they ended; all others, and none, are the model's own."""
_REFUSALS = frozenset({"refusal"})
_WRITTEN_CALL = re.compile(
    r"\s*(?:<(?:\w+:)?(?:tool_calls?|function_calls?)>|<function=|\[TOOL_CALLS\]|functools\["
    r"|<\|(?:python_tag|tool_calls?(?:(?:_section)?_begin)?)\|>|<start_function_call>"
    r"|<｜(?:tool▁calls?▁begin|DSML｜(?:function|tool)_calls)"
    r'|\[?\s*\{\s*"name"\s*:\s*"[^"\n]{1,99}"\s*,\s*"(?:arguments|parameters)"\s*:)'
)
_HARMONY_CALL = re.compile(r"<\|channel\|>commentary\s+to=functions\.|<\|call\|>\s*\Z")
"""How models write the call of a tool, where no server has read it."""


def said_in(
    prompt: Prompt,
    message: Mapping[str, object],
    finish: object,
    *,
    thinks: bool = False,
    markers: Sequence[Markers] = KNOWN,
) -> Trace:
    """The answer in a message of a chat completion, in text.

    The response may be what the server says of its refusal; an answer without a reason for its end
    is complete.

    Args:
        prompt: What was asked.
        message: As the server sent it: ``content``, a field of thinking, ``refusal``, calls.
        finish: Its ``finish_reason``.
        thinks: As for `read_message`.
        markers: As for `read_message`.

    Raises:
        TypeError: The content is neither a text nor a list of parts.
    """
    parts = read_parts(message.get("content"))
    thought = next(filter(None, (_text(message, name) for name in THINKING_FIELDS)), None)
    found = read_message(parts.text, thought or parts.thinking, thinks=thinks, markers=markers)
    why = finish if isinstance(finish, str) and finish else UNTOLD
    ended = why.lower()
    refusal = parts.refusal or _text(message, "refusal")
    if is_blank(found.response) and (refusal or ended in _REFUSALS):
        told = Told(closed=True, finish=why, status=REFUSAL_FIELD)
        return Trace(prompt, (), None, found.thinking, refusal, complete=True, told=told)
    filtered = is_filtered(finish)
    complete = not filtered and _CUT.search(ended) is None
    called = any("tool" in kind or "function" in kind for kind in parts.others)
    called = called or _HARMONY_CALL.search(parts.text or "") is not None
    if filtered:
        status = FILTERED
    elif complete and is_blank(found.response) and (called or _calls(message)):
        status = TOOL_CALL
    else:
        apart = found.written is None  # the server took the thought for a whole one
        status = status_of(found.thinking, found.response, found.closed or apart, complete)
    told = Told(found.closed, found.written, _beside(parts.text or "", found), why, status)
    return Trace(prompt, (), None, found.thinking, found.response, complete, told=told)


def status_of(thinking: str, response: str, closed: bool, complete: bool) -> str:
    """Why there is no answer, where the model ended by itself (``complete``); else empty."""
    if complete and _WRITTEN_CALL.match(response):
        return TOOL_CALL
    if not is_blank(response) or not complete:
        return ""
    if is_blank(thinking):
        return EMPTY
    return NO_ANSWER if closed else ""


def told_of(trace: Trace) -> Told:
    """What is told of a trace beside its text; of one in tokens, what its tokens show."""
    if trace.told is not None:
        return trace.told
    status = status_of(trace.thinking, trace.response, trace.closed, trace.complete)
    return Told(trace.closed, status=status)


def is_filtered(finish: object) -> bool:
    """Whether a server says that a content filter ended an answer; it may then send no message."""
    return isinstance(finish, str) and _FILTERS.search(finish.lower()) is not None


def is_blank(text: str) -> bool:
    """Whether nothing of a text can be seen: blanks, and characters without width."""
    return not any(mark.isprintable() and not mark.isspace() for mark in text)


def known_status(value: object) -> str:
    """A status as a row of a file tells it; empty for any other word."""
    return str(value) if value in (*UNANSWERED, REFUSAL_FIELD) else ""


def _beside(text: str, found: Message) -> str:
    text = text.strip()
    if found.written is not None or not found.response or text == found.response:
        return ""
    return "" if read_message(text, None).thinking else text


def _calls(message: Mapping[str, object]) -> bool:
    return bool(message.get("tool_calls") or message.get("function_call"))


def _text(message: Mapping[str, object], name: str) -> str:
    value = message.get(name)
    try:
        parts = read_parts(value)
    except TypeError:  # of another kind, which no server is known to send
        return ""
    return (parts.text or parts.thinking or "").strip()
