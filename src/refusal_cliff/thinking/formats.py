"""How a model writes its thoughts: the markers, found in its chat template and vocabulary."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import cast

from transformers import PreTrainedTokenizerBase

from refusal_cliff.errors import RefusalCliffError
from refusal_cliff.io import fields_of
from refusal_cliff.thinking.rendering import (
    REASONING_FIELDS,
    after_answer,
    past_thought,
    template_tail,
)
from refusal_cliff.user_text import marker_words

HEADER_END = "<|message|>"
"""Ends the header of a channel."""
_LITERAL = re.compile(r"(?:\\[^\w\s]|[^\\.*+?()\[\]{}^$|])*")


@dataclass(frozen=True, slots=True)
class Markers:
    """What stands around a thought.

    ``opening`` and ``closing`` are the markers with the blanks and headers around them, from the
    end of the prompt to the thought and from the thought to the answer. In formats of several
    channels only ``answer`` begins the answer, and ``ender`` ends a thought; else both are empty.
    """

    opener: str
    closer: str
    opening: str = ""
    closing: str = ""
    answer: str = ""
    ender: str = ""


@dataclass(frozen=True, slots=True)
class Finding:
    """Markers, whether the prompt opens the thinking, and whether the chat template knows them.

    Markers that only the vocabulary or the response template knows may never be written: models
    that share a tokenizer with a reasoning model have them too.
    """

    markers: Markers
    opened_by_prompt: bool = False
    in_template: bool = True


def _tags(opener: str, closer: str) -> Markers:
    return Markers(opener, closer, opener, closer)


def _channels(opener: str, ender: str, answer: str) -> Markers:
    closer = f"{ender}<|start|>assistant{answer}"
    return Markers(opener, closer, opener, closer, answer, ender)


KNOWN: tuple[Markers, ...] = (
    Markers("<think>", "</think>", "<think>\n", "\n</think>\n\n"),
    _tags("[THINK]", "[/THINK]"),
    _tags("<seed:think>", "</seed:think>"),
    _tags("<mm:think>", "</mm:think>"),
    _tags("<think:opensource>", "</think:opensource>"),
    _tags("<|inner_prefix|>", "<|inner_suffix|>"),
    _tags("<thought>", "</thought>"),
    _tags("<thinking>", "</thinking>"),
    _tags("<reasoning>", "</reasoning>"),
    Markers("<Thought>", "</Thought>", "<Thought>\n", "\n</Thought>\n\n<Output>\n"),
    Markers(
        "<|begin_of_thought|>",
        "<|end_of_thought|>",
        "<|begin_of_thought|>\n\n",
        "\n\n<|end_of_thought|>\n\n<|begin_of_solution|>\n\n",
    ),
    _tags("◁think▷", "◁/think▷"),
    _tags("<|plamo:begin_think:plamo|>", "<|plamo:end_think:plamo|>"),
    Markers("<unused94>thought", "<unused95>", "<unused94>thought\n", "<unused95>"),
    Markers(
        "<|START_THINKING|>",
        "<|END_THINKING|>",
        "<|START_THINKING|>",
        "<|END_THINKING|><|START_RESPONSE|>",
    ),
    _channels("<|channel|>analysis<|message|>", "<|end|>", "<|channel|>final<|message|>"),
    _channels(" to=self<|message|>", "<|eom|>", " to=user<|message|>"),
    Markers("<|channel>thought", "<channel|>", "<|channel>thought\n", "\n<channel|>"),
)


def markers_of(named: str) -> Markers:
    """The markers that a user named, ``OPEN CLOSE`` with a blank between.

    Raises:
        RefusalCliffError: These are not two different words.
    """
    return _tags(*marker_words(named))


def find_markers(tokenizer: PreTrainedTokenizerBase, tail: str) -> Finding | None:
    """Look for markers, the surest evidence first; ``None`` if nothing speaks of thinking.

    The evidence, in order: what the prompt ends with; a past thought as the template writes it; a
    token at the prompt's end that the vocabulary can close;
    a known marker anywhere in the template, be it in code that strips it; the tokenizer's
    ``response_template`` (or the older ``response_schema``); both markers in the vocabulary.

    Args:
        tokenizer: The tokenizer with its chat template.
        tail: What the template writes after the user's text.
    """
    past = past_thought(tokenizer)
    finding = (
        _from_prompt(tail)
        or _from_past_thought(past, tail)
        or _from_pair(tokenizer, tail)
        or _from_mention(str(tokenizer.chat_template), in_template=True)
        or _from_response_template(getattr(tokenizer, "response_template", None))
        or _from_response_schema(getattr(tokenizer, "response_schema", None))
        or _from_vocabulary(added_tokens(tokenizer))
    )
    if finding is None or past is None or finding.markers.closer not in past[1]:
        return finding
    return replace(finding, markers=replace(finding.markers, opening=past[0], closing=past[1]))


def added_tokens(tokenizer: PreTrainedTokenizerBase) -> dict[str, int]:
    """Ids of the tokens that stand outside the ordinary vocabulary, by their text."""
    return cast("Callable[[], dict[str, int]]", tokenizer.get_added_vocab)()


def _from_prompt(tail: str) -> Finding | None:
    end = tail.rstrip()
    for markers in KNOWN:
        if end.endswith(markers.opener) or end.endswith(markers.closer):
            return Finding(markers, opened_by_prompt=end.endswith(markers.opener))
    return None


def _from_pair(tokenizer: PreTrainedTokenizerBase, tail: str) -> Finding | None:
    """A token that ends the prompt and has a closing one in the vocabulary, of any name.

    Not those around an answer or a turn: the template writes their end after an answer.
    """
    added, end = added_tokens(tokenizer), tail.rstrip()
    for closer in added:
        opener = closer.replace("/", "", 1)
        if opener != closer and opener in added and end.endswith(opener):
            around_answer = closer in (after_answer(tokenizer, goes_on=False) or "")
            return None if around_answer else Finding(_tags(opener, closer), opened_by_prompt=True)
    return None


def _from_past_thought(past: tuple[str, str] | None, tail: str) -> Finding | None:
    if past is None or not past[1].strip():
        return None
    known = next((markers for markers in KNOWN if markers.closer in past[1]), None)
    if known is not None:
        return Finding(known)
    opener, closer = past[0].strip(), past[1].strip()
    if opener:
        return Finding(Markers(opener, closer, *past))
    opener = closer.replace("/", "", 1)
    if opener != closer and tail.rstrip().endswith(opener):
        return Finding(Markers(opener, closer, *past), opened_by_prompt=True)
    return None


def _from_mention(text: str, *, in_template: bool) -> Finding | None:
    """A known marker anywhere in a text."""
    found = (m for m in KNOWN if m.opener in text or m.closer in text)
    return next((Finding(markers, in_template=in_template) for markers in found), None)


def _from_response_template(template: object) -> Finding | None:
    fields = template.get("fields") if isinstance(template, Mapping) else None
    if not isinstance(fields, Mapping):
        return None
    thought = next((fields[name] for name in REASONING_FIELDS if name in fields), None)
    if not isinstance(thought, Mapping):
        return None
    opener, ender = _anchor(thought, "open").strip(), _anchor(thought, "close").strip()
    for markers in KNOWN:
        if opener.startswith(markers.opener) or (not opener and ender == markers.closer):
            return Finding(markers, in_template=False)
    if not (opener and ender):
        return None
    content = fields.get("content")
    answer = _anchor(content, "open").strip() if isinstance(content, Mapping) else ""
    return Finding(Markers(opener, ender, opener, ender + answer), in_template=False)


def _anchor(field: Mapping[str, object], end: str) -> str:
    """The literal that opens or closes a field; empty if it is a pattern that is not one."""
    literal = field.get(end)
    if isinstance(literal, list) and literal:
        literal = literal[0]
    if isinstance(literal, str):
        return literal
    pattern = str(field.get(f"{end}_pattern", "")).removesuffix(r"\s*")
    return _unescaped(pattern) if _LITERAL.fullmatch(pattern) else ""


def _from_response_schema(schema: object) -> Finding | None:
    if not isinstance(schema, Mapping):
        return None
    return _from_mention(_unescaped(str(schema.get("x-regex", ""))), in_template=False)


def _unescaped(pattern: str) -> str:
    return re.sub(r"\\([^\w\s])", r"\1", pattern)


def _from_vocabulary(added: Mapping[str, int]) -> Finding | None:
    both = (m for m in KNOWN if m.opener in added and m.closer in added)
    return next((Finding(markers, in_template=False) for markers in both), None)


@dataclass(frozen=True, slots=True)
class ThinkingFormat(Markers):
    """The markers around a model's thinking, and whether the prompt already opens it.

    A model without thinking has empty markers. It is measured over the tokens that its chat
    template writes after the user's text, see :func:`split_spans`.

    Attributes:
        opened_by_prompt: Whether the chat template writes the opener.
        skipping: What it writes before an answer without thinking; empty also where only the
            vocabulary or the response template has the markers, so that the model may never
            write them.
        tail: What the chat template writes after the user's text.
    """

    opened_by_prompt: bool = False
    skipping: str = ""
    tail: str = ""

    @property
    def thinks(self) -> bool:
        """Whether the model has markers to think between; it may still answer at once."""
        return self.closer != ""

    @property
    def closed_by_prompt(self) -> bool:
        """Whether the chat template closes an empty thinking before the model writes."""
        return self.thinks and self.tail.rstrip().endswith(self.closer)

    @property
    def trailer(self) -> str:
        """What follows the closer before the answer, blanks aside."""
        return self.closing.partition(self.closer)[2].strip() if self.closer else ""

    @property
    def gap(self) -> int | None:
        """Characters of blanks that the chat template writes between closer and answer.

        ``None`` where it writes none, or is not known to: then any blanks are part of the closing.
        """
        return len(self.closing.rpartition(self.closer)[2]) or None if self.closer else None

    def between(self, markers: Markers) -> ThinkingFormat:
        """The format of a model whose markers a user named, since nothing tells them."""
        opened = self.tail.rstrip().endswith(markers.opener)
        around = ("" if opened else markers.opening, markers.closing)
        return ThinkingFormat(
            markers.opener, markers.closer, *around, opened_by_prompt=opened, tail=self.tail
        )

    def completion(self, thinking: str, response: str) -> str:
        """What the model would write after the prompt, without the end-of-sequence token.

        Raises:
            RefusalCliffError: There is thinking, and the model's prompt leaves no place for it.
        """
        if not thinking.strip():
            return self.skipping + response
        if not self.thinks or self.closed_by_prompt:
            raise RefusalCliffError(
                "The text has thinking, but the chat template of this model "
                + ("closes the thinking in the prompt. " if self.thinks else "has no thinking. ")
                + "Use texts whose thinking is empty, or a chat template that lets the model think."
            )
        return f"{self.opening}{thinking}{self.closing}{response}"

    @classmethod
    def from_tokenizer(cls, tokenizer: PreTrainedTokenizerBase) -> ThinkingFormat:
        """Find the format from the chat template, the response template and the vocabulary.

        Nothing is looked up by the model's name. Where no marker is found, the model is one
        without thinking.

        Raises:
            RefusalCliffError: There is no chat template, or it fails on a user message.
        """
        tail = template_tail(tokenizer)
        found = find_markers(tokenizer, tail)
        if found is None:
            return cls("", "", tail=tail)
        markers, opened = found.markers, found.opened_by_prompt
        closed = not opened and tail.rstrip().endswith(markers.closer)
        opening = "" if opened or closed else markers.opening
        closing = "" if closed else markers.closing
        skipping = (markers.answer or opening + closing) if found.in_template else ""
        shown = fields_of(replace(markers, opening=opening, closing=closing))
        return cls(**shown, opened_by_prompt=opened, skipping=skipping, tail=tail)
