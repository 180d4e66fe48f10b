"""How a model writes its thoughts: the markers, and whether the prompt already opens them."""

from __future__ import annotations

from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from refusal_cliff.errors import RefusalCliffError
from refusal_cliff.thinking.markers import Markers, find_markers
from refusal_cliff.thinking.rendering import template_tail


@dataclass(frozen=True, slots=True)
class ThinkingFormat:
    """The markers around a model's thinking, and whether the prompt already opens it.

    A model without thinking has empty markers. It is measured over the tokens that its chat
    template writes after the user's text, see :func:`split_spans`.

    Attributes:
        opener: The marker that opens the thinking.
        closer: The marker between thinking and answer.
        opened_by_prompt: Whether the chat template writes the opener.
        opening: What the model writes from the end of the prompt to its first thought.
        closing: What it writes from its last thought to its answer, blanks and headers included.
        skipping: What it writes before an answer without thinking; empty also where only the
            vocabulary or the response template has the markers, so that the model may never
            write them.
        answer: In formats of several channels (gpt-oss), the marker that begins the answer.
        ender: In these formats, the marker that ends a thought.
        tail: What the chat template writes after the user's text.
    """

    opener: str
    closer: str
    opened_by_prompt: bool
    opening: str = ""
    closing: str = ""
    skipping: str = ""
    answer: str = ""
    ender: str = ""
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
        opening = "" if opened else markers.opening
        return ThinkingFormat(
            markers.opener, markers.closer, opened, opening, markers.closing, tail=self.tail
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
            return cls("", "", opened_by_prompt=False, tail=tail)
        markers, opened = found.markers, found.opened_by_prompt
        closed = not opened and tail.rstrip().endswith(markers.closer)
        opening = "" if opened or closed else markers.opening
        closing = "" if closed else markers.closing
        skipping = markers.answer or opening + closing
        return cls(
            opener=markers.opener,
            closer=markers.closer,
            opened_by_prompt=opened,
            opening=opening,
            closing=closing,
            skipping=skipping if found.in_template else "",
            answer=markers.answer,
            ender=markers.ender,
            tail=tail,
        )
