"""What an endpoint's message says: thinking apart, or inside the text between known markers."""

from __future__ import annotations

from dataclasses import dataclass

from refusal_cliff.thinking.markers import KNOWN, Markers


@dataclass(frozen=True, slots=True)
class Message:
    """Thinking and answer of one message.

    Attributes:
        thinking: Without markers.
        response: The answer; empty where the thinking never closed.
        closed: Whether the thinking ended.
        written: The whole text, where thinking did not come in a field of its own.
    """

    thinking: str
    response: str
    closed: bool
    written: str | None


def read_message(content: str | None, reasoning: str | None, *, thinks: bool = False) -> Message:
    """Split what a server sent into thinking and answer.

    - Thinking in its own field and an answer: both as they are. Without any answer the thinking
      never closed: servers send an unfinished thought alone.
    - Inline markers: the answer is what follows the last closer; a closer without an opener ends
      thinking that the prompt opened; an opener after the last closer, or without one, is a thought
      that never closed.
    - No marker at all: an answer without thinking, unless the model always thinks.

    Args:
        content: The message's text.
        reasoning: Its ``reasoning_content`` or ``reasoning``.
        thinks: The model always thinks, so that a text without the end of a thought is a thought.
    """
    text = content or ""
    if reasoning is not None and reasoning.strip():
        answer = text.strip()
        return Message(reasoning.strip(), answer, closed=bool(answer), written=None)
    for markers in KNOWN:
        if markers.opener in text or (markers.answer or markers.closer) in text:
            return _inline(text, markers)
    if thinks:
        return Message(text.strip(), "", closed=False, written=text)
    return Message("", text.strip(), closed=True, written=text)


def _inline(text: str, markers: Markers) -> Message:
    closer = markers.answer or markers.closer
    before, found, after = text.rpartition(closer)
    if not found or markers.opener in after:
        unfinished = text.replace(markers.opener, "", 1).replace(closer, "")
        return Message(unfinished.strip(), "", closed=False, written=text)
    thinking = before.replace(markers.opener, "", 1)
    if markers.ender:
        thinking = thinking.partition(markers.ender)[0]
    return Message(thinking.strip(), after.strip(), closed=True, written=text)
