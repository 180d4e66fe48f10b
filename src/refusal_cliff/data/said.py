"""A server's message: the parts of its content, and what it means.

It holds thinking and answer, and how that ended, or why there is no answer.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from refusal_cliff.data.types import Prompt, Told, Trace
from refusal_cliff.thinking.formats import KNOWN, Markers
from refusal_cliff.thinking.written import Message, once_each, read_message

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
_SETTINGS = frozenset(
    {"on", "off", "none", "auto", "default", "enabled", "disabled", "adaptive", "true", "false"}
    | {"minimal", "low", "medium", "high", "xhigh", "max", "nan", "null", "n/a"}
)
"""Words in a field of thinking that say how much a model is to think, or that it holds nothing."""
_FILTERS = re.compile(
    r"filter|guardrail|safety|sensitive|recitation|blocked|block_?list|prohibited|policy|spii|toxic"
    r"|moderat"
)
_CUT = re.compile(
    r"length|max[_-]|limit|context|incomplete|truncat|abort|cancel|error|insufficient|time_?out"
    r"|repetition|fail|interrupt|preempt|exceed|num_predict|user_stop|pause|not_finished|in_progress"
)
"""In words of servers for an answer that they ended; all others, and none, are the model's own."""
_REFUSALS = frozenset({"refusal"})
_WRITTEN_CALL = re.compile(
    r"\s*(?:<\|?(?:\w{1,24}[:_])??(?:tool|function)_?calls?(?:_\w{1,24})?\|?>|<function="
    r"|\[TOOL_CALLS\]|functools\[|<\|(?:python_tag|action_start|START_ACTION)\|>"
    r"|<start_function_call>|<｜(?:tool▁calls?▁begin|DSML｜(?:function|tool)_calls)|```tool_(?:code|call)"
    r'|(?:```(?:json)?\s*)?\[?\s*\{\s*"(?:name"\s*:\s*"[^"\n]{1,99}"\s*,\s*"(?:arguments|parameters)"'
    r'|type"\s*:\s*"function")\s*[:,])',
    re.IGNORECASE,
)
_HARMONY_CALL = re.compile(r"<\|channel\|>commentary\s+to=functions\.|<\|call\|>\s*\Z")
"""How models write the call of a tool, where no server has read it."""
_TEXTS = ("text", "output_text", "input_text", "markdown")
_THOUGHTS = (
    *("thinking", "reasoning", "reasoning_content", "reasoning_text", "summary", "thought"),
    *("reasoningContent", "reasoningText"),
)
_DEEPEST = 4
_HUMP = re.compile(r"(?<=[a-z])(?=[A-Z])")
_HALVES = re.compile(r"[\ud800-\udfff]")


@dataclass(frozen=True, slots=True)
class Parts:
    """What a content holds.

    Attributes:
        text: The text of all its text parts; ``None`` where it has none.
        thinking: That of all its thoughts; ``None`` where it has none.
        refusal: What a part of the kind ``refusal`` says; empty without one.
        others: Kinds of the parts that hold no text: images, calls of tools.
    """

    text: str | None
    thinking: str | None = None
    refusal: str = ""
    others: tuple[str, ...] = ()


def read_parts(content: object) -> Parts:
    """Text and thinking of a message's content, in any of the shapes that servers send.

    A text is itself. Of a list, parts of the kind ``text`` (OpenAI, Mistral, Anthropic) are the
    text, ``thinking`` (Mistral, whose thought is a list again) and ``reasoning`` the thinking, and
    ``refusal`` is one. A text that is marked as a thought (``"thought": true``, Gemini) is thinking
    too, and so is a part without a kind that holds a field of thinking (Bedrock). One part may
    stand alone. Half a surrogate pair becomes U+FFFD.

    Raises:
        TypeError: It is neither a text nor such a list.
    """
    if isinstance(content, Mapping) and content.keys() & {"parts", "type", *_TEXTS}:
        content = content.get("parts", [content])
    if content is None:
        return Parts(None)
    if isinstance(content, str):
        return Parts(_whole(content))
    if not isinstance(content, Sequence) or isinstance(content, bytes):
        raise TypeError(f"the content is neither a text nor a list of parts, but {_kind(content)}")
    found: dict[str, list[str]] = {"text": [], "thinking": [], "refusal": [], "others": []}
    for part in content:
        _add(found, part)
    text, thinking = (
        _whole("".join(found[name])) if found[name] else None for name in ("text", "thinking")
    )
    return Parts(text, thinking, _whole("".join(found["refusal"])), tuple(found["others"]))


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
    thought = once_each(_text(message, name) for name in THINKING_FIELDS) or parts.thinking
    found = read_message(parts.text, thought, thinks=thinks, markers=markers)
    ended = word_of(finish)
    why = finish if isinstance(finish, str) and finish else ended or UNTOLD
    refusal = parts.refusal or _text(message, "refusal")
    if refusal or ended in _REFUSALS:
        told = Told(closed=True, finish=why, status=REFUSAL_FIELD)
        said = refusal or found.response
        return Trace(prompt, (), None, found.thinking, said, complete=True, told=told)
    filtered = is_filtered(finish)
    complete = not filtered and _CUT.search(ended) is None
    called = any("tool" in kind or "function" in kind for kind in parts.others)
    called = called or _HARMONY_CALL.search(parts.text or "") is not None
    called = called or bool(message.get("tool_calls") or message.get("function_call"))
    if filtered:
        status = FILTERED
    elif complete and is_blank(found.response) and called:
        status = TOOL_CALL
    else:
        apart = found.written is None  # the server took the thought for a whole one
        status = status_of(found.thinking, found.response, found.closed or apart, complete)
    beside = _beside(parts.text or "", found, markers)
    told = Told(found.closed, found.written, beside, why, status)
    return Trace(prompt, (), None, found.thinking, found.response, complete, told=told)


def status_of(thinking: str, response: str, closed: bool, complete: bool) -> str:
    """Why there is no answer, where the model ended by itself; else empty.

    Args:
        thinking: Its thinking.
        response: Its answer.
        closed: Whether the thinking ended.
        complete: Whether the model ended by itself, or nothing else is known.
    """
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
    return _FILTERS.search(word_of(finish)) is not None


def word_of(finish: object) -> str:
    """Why an answer ended, in small letters; empty where no word says it.

    Args:
        finish: What a server or a log holds for it: ``length``, ``maxTokens``, ``["length"]`` or
            ``{"reason": "length"}``.
    """
    if isinstance(finish, Mapping):
        finish = finish.get("reason", finish.get("type"))
    elif isinstance(finish, Sequence) and not isinstance(finish, str) and len(finish) == 1:
        finish = finish[0]
    return _HUMP.sub("_", finish).lower() if isinstance(finish, str) else ""


def is_setting(value: object) -> bool:
    """Whether a field of thinking holds no thought, but how the model is to think."""
    if isinstance(value, Mapping):
        return is_setting(value.get("type")) or is_setting(value.get("effort"))
    if isinstance(value, str):
        return value.strip().lower() in _SETTINGS
    return isinstance(value, bool)


def is_part(value: Mapping[str, object]) -> bool:
    """Whether an object is a part of a content: of a known kind, or marked as a thought."""
    kind = value.get("type")
    if isinstance(kind, str):
        return kind in {*_TEXTS, *_THOUGHTS, "refusal"} - {"summary"} and kind in value
    return value.get("thought") is True or "reasoningContent" in value


def thought_in(value: object) -> str:
    """The thought in a field of a message: a text, or the parts of one; empty where it has none."""
    try:
        parts = read_parts(value)
    except TypeError:  # of another kind, which no server is known to send
        return ""
    return parts.text or parts.thinking or ""


def is_blank(text: str) -> bool:
    """Whether nothing of a text can be seen: blanks, and characters without width."""
    return not any(mark.isprintable() and not mark.isspace() for mark in text)


def known_status(value: object) -> str:
    """A status as a row of a file tells it; empty for any other word."""
    return str(value) if value in (*UNANSWERED, REFUSAL_FIELD) else ""


def _beside(text: str, found: Message, markers: Sequence[Markers]) -> str:
    """The answer with a second end of the thought before it, if nothing else stands there."""
    if found.written is not None or not found.response:
        return ""
    before = text.rpartition(found.response)[0].lstrip()
    closers = {known.closer for known in markers if not known.answer}
    return before + found.response if before and closers.issuperset(before.split()) else ""


def _text(message: Mapping[str, object], name: str) -> str:
    value = message.get(name)
    return "" if is_setting(value) else thought_in(value).strip()


def _add(found: dict[str, list[str]], part: object) -> None:
    if isinstance(part, str):
        found["text"].append(part)
        return
    if not isinstance(part, Mapping):
        raise TypeError(f"a part of the content is {_kind(part)}")
    kind = str(part.get("type") or next((name for name in _THOUGHTS if part.get(name)), "text"))
    if part.get("thought") is True or kind.partition(".")[0] in _THOUGHTS:  # reasoning.summary
        found["thinking"].append(_text_of(_told_in(part) or ""))
    elif kind.lower() in _TEXTS:
        name = next((name for name in (*_TEXTS, "value", "content") if name in part), None)
        if name is None:
            raise TypeError(f"a part of the content has {', '.join(map(ascii, part))}, but no text")
        found["text"].append(_text_of(part[name]))
    elif kind == "message":
        held = part.get("content")
        for inner in [held] if isinstance(held, str) else held or ():
            _add(found, inner)
    elif kind == "refusal":
        found["refusal"].append(_text_of(part.get("refusal")))
    else:
        found["others"].append(kind)


def _told_in(part: Mapping[str, object]) -> object:
    """What a part of thinking holds, under any of the names that servers have for it."""
    told = (part.get(name) for name in (*_THOUGHTS, "content", "text"))
    return next((value for value in told if value and value is not True), None)


def _text_of(value: object, deepest: int = _DEEPEST) -> str:
    """The text of a part: itself, or that of the parts it holds."""
    if value is None or isinstance(value, str):
        return value or ""
    if isinstance(value, Mapping):
        value = [value]
    if not isinstance(value, Sequence) or isinstance(value, bytes):
        raise TypeError(f"the text of a part is {_kind(value)}")
    held = [_told_in(part) if isinstance(part, Mapping) else part for part in value]
    if not deepest or not all(held):
        raise TypeError("a part of a part holds no text")
    return "".join(_text_of(part, deepest - 1) for part in held)


def _whole(text: str) -> str:
    return _HALVES.sub("\ufffd", text)


def _kind(value: object) -> str:
    return f"a {type(value).__name__}"
