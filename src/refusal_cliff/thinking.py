"""How a model writes its thoughts, and the four spans of a trace."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import cast

from transformers import PreTrainedTokenizerBase

from refusal_cliff.errors import RefusalCliffError

KNOWN_MARKERS: tuple[tuple[str, str], ...] = (
    ("<think>", "</think>"),
    ("[THINK]", "[/THINK]"),
    ("<seed:think>", "</seed:think>"),
    (
        "<|channel|>analysis<|message|>",
        "<|end|><|start|>assistant<|channel|>final<|message|>",
    ),
    ("<|channel>thought", "<channel|>"),
)
_PLACEHOLDER = "Hello"


@dataclass(frozen=True, slots=True)
class Spans:
    """Half-open ends of the four parts of a trace, in tokens.

    ``[0, prompt)`` is the prompt with the marker that opens the thinking (whoever wrote it),
    ``[prompt, thinking)`` the thinking, ``[thinking, closing)`` the closing tokens and
    ``[closing, total)`` the response with its end-of-sequence token.
    """

    prompt: int
    thinking: int
    closing: int
    total: int

    @property
    def last_closing(self) -> int:
        """Index of the token from which the first response token is predicted."""
        return self.closing - 1


@dataclass(frozen=True, slots=True)
class ThinkingFormat:
    """The markers around a model's thinking, and whether the prompt already opens it."""

    opener: str
    closer: str
    opened_by_prompt: bool

    def completion(self, thinking: str, response: str) -> str:
        """What the model would write after the prompt, without the end-of-sequence token."""
        line_break, blank_line = ("\n", "\n\n") if self.opener == "<think>" else ("", "")
        opening = "" if self.opened_by_prompt else self.opener + line_break
        return f"{opening}{thinking}{line_break}{self.closer}{blank_line}{response}"

    @classmethod
    def from_tokenizer(cls, tokenizer: PreTrainedTokenizerBase) -> ThinkingFormat:
        """Find the markers from the chat template first, then from the vocabulary.

        Raises:
            RefusalCliffError: There is no chat template, or no known marker in it.
        """
        prompt = _render(tokenizer, _PLACEHOLDER).rstrip()
        for opener, closer in KNOWN_MARKERS:
            if prompt.endswith(opener):
                return cls(opener, closer, opened_by_prompt=True)
        template = str(tokenizer.chat_template)
        added = _added_tokens(tokenizer)
        for haystack in (template, added):
            for opener, closer in KNOWN_MARKERS:
                if opener in haystack:
                    return cls(opener, closer, opened_by_prompt=False)
        known = ", ".join(opener for opener, _ in KNOWN_MARKERS)
        raise RefusalCliffError(
            f"The tokenizer of {tokenizer.name_or_path or 'this model'} marks no thinking: neither "
            f"its chat template nor its vocabulary has one of {known}. Use a reasoning model, or "
            "give the tokenizer the chat template that the model was trained with."
        )


def render_prompt(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Token ids of one user message up to where the model starts to write.

    The chat template is rendered to text and tokenised once, without a second BOS.

    Raises:
        RefusalCliffError: The tokenizer has no chat template, or the template fails.
    """
    return list(tokenizer(_render(tokenizer, text), add_special_tokens=False)["input_ids"])


def split_spans(
    token_ids: Sequence[int],
    prompt_length: int,
    tokenizer: PreTrainedTokenizerBase,
    fmt: ThinkingFormat,
) -> Spans | None:
    """Split a trace at the last closing marker of its generated part.

    Args:
        token_ids: The whole trace, prompt first; the ids as generated, not re-tokenised.
        prompt_length: Number of prompt tokens; markers inside them are ignored.
        tokenizer: The tokenizer the ids belong to.
        fmt: The model's thinking format.

    Returns:
        The spans, or ``None`` if the thinking never closes. Whitespace tokens around the closing
        marker belong to the closing span. Empty thinking has ``thinking == prompt``.
    """
    generated = list(token_ids[prompt_length:])
    pieces = [str(tokenizer.decode([token])) for token in generated]
    closers = _occurrences(generated, pieces, fmt.closer, tokenizer)
    if not closers:
        return None
    thinking, closing = closers[-1]
    start = 0 if fmt.opened_by_prompt else _after_opener(generated, pieces, fmt, tokenizer)
    start = min(start, thinking)
    while thinking > start and _is_space(pieces[thinking - 1]):
        thinking -= 1
    while closing < len(pieces) and _is_space(pieces[closing]):
        closing += 1
    ends = (start, thinking, closing, len(generated))
    return Spans(*(prompt_length + end for end in ends))


def tokenise_trace(
    tokenizer: PreTrainedTokenizerBase,
    fmt: ThinkingFormat,
    prompt: str,
    thinking: str | None,
    response: str,
) -> tuple[list[int], Spans | None]:
    """Token ids and spans of a trace that is known as text only, tokenised once, as a whole.

    Args:
        tokenizer: A fast tokenizer of the model.
        fmt: The model's thinking format.
        prompt: The user's message.
        thinking: What the model thought; ``None`` where it is inside the response, between markers.
        response: What it answered. A marker inside the thinking counts: the last one closes.

    Returns:
        The ids, with the end-of-sequence token, and the spans; ``None`` if the thinking never
        closes.

    Raises:
        RefusalCliffError: The text holds a lone surrogate, or the tokenizer gives no offsets.
    """
    rendered = _render(tokenizer, prompt)
    written = response if thinking is None else fmt.completion(thinking, response)
    text = rendered + written + str(tokenizer.eos_token or "")
    try:
        encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    except (UnicodeEncodeError, TypeError, NotImplementedError) as error:
        raise RefusalCliffError(
            f"The trace of the prompt {prompt[:40]!r} cannot be tokenised: {error}. Remove lone "
            "surrogates from the text, and use a model with a fast tokenizer."
        ) from error
    ids: list[int] = list(encoded["input_ids"])
    ends = [end for _, end in encoded["offset_mapping"]]
    prompt_length = next((i for i, end in enumerate(ends) if end > len(rendered)), len(ends))
    return ids, split_spans(ids, prompt_length, tokenizer, fmt)


def thinking_text(
    tokenizer: PreTrainedTokenizerBase, token_ids: Sequence[int], spans: Spans
) -> str:
    """The thinking as text, without the markers around it."""
    return _decode(tokenizer, token_ids[spans.prompt : spans.thinking])


def response_text(
    tokenizer: PreTrainedTokenizerBase, token_ids: Sequence[int], spans: Spans
) -> str:
    """The response as text, without the end-of-sequence token."""
    return _decode(tokenizer, token_ids[spans.closing : spans.total])


def _decode(tokenizer: PreTrainedTokenizerBase, token_ids: Sequence[int]) -> str:
    return str(tokenizer.decode(list(token_ids), skip_special_tokens=True))


def _render(tokenizer: PreTrainedTokenizerBase, text: str) -> str:
    if not tokenizer.chat_template:
        raise RefusalCliffError(
            f"The tokenizer of {tokenizer.name_or_path or 'this model'} has no chat template, so "
            "the prompt cannot be written as the model expects it. Set tokenizer.chat_template, "
            "or use the instruction-tuned version of the model."
        )
    messages = [{"role": "user", "content": text}]
    try:
        rendered = tokenizer.apply_chat_template(
            messages,
            tokenize=False,
            add_generation_prompt=True,
            enable_thinking=True,
            thinking=True,
        )
    except Exception as error:
        raise RefusalCliffError(
            f"The chat template of {tokenizer.name_or_path or 'this model'} failed on a single "
            f"user message: {error}. Repair the template, or use another tokenizer."
        ) from error
    return str(rendered)


def _added_tokens(tokenizer: PreTrainedTokenizerBase) -> dict[str, int]:
    return cast("Callable[[], dict[str, int]]", tokenizer.get_added_vocab)()


def _is_space(piece: str) -> bool:
    return piece != "" and piece.isspace()


def _after_opener(
    generated: Sequence[int],
    pieces: Sequence[str],
    fmt: ThinkingFormat,
    tokenizer: PreTrainedTokenizerBase,
) -> int:
    """Index of the first thinking token when the model opens its thinking itself, else 0."""
    openers = _occurrences(generated, pieces, fmt.opener, tokenizer)
    if not openers or "".join(pieces[: openers[0][0]]).strip():
        return 0
    end = openers[0][1]
    while end < len(pieces) and _is_space(pieces[end]):
        end += 1
    return end


def _occurrences(
    generated: Sequence[int],
    pieces: Sequence[str],
    marker: str,
    tokenizer: PreTrainedTokenizerBase,
) -> list[tuple[int, int]]:
    """Half-open token ranges that hold ``marker``.

    A marker whose ends are tokens of their own is looked for by id, so that the same characters
    spelled out in ordinary tokens do not count; any other marker is looked for in the text.
    """
    ids = tokenizer.encode(marker, add_special_tokens=False)
    added = set(_added_tokens(tokenizer).values())
    if ids and ids[0] in added and ids[-1] in added:
        starts = range(len(generated) - len(ids) + 1)
        return [(i, i + len(ids)) for i in starts if list(generated[i : i + len(ids)]) == ids]
    return _text_occurrences(pieces, marker)


def _text_occurrences(pieces: Sequence[str], marker: str) -> list[tuple[int, int]]:
    owner = [index for index, piece in enumerate(pieces) for _ in piece]
    text = "".join(pieces)
    found: list[tuple[int, int]] = []
    at = text.find(marker)
    while at >= 0:
        found.append((owner[at], owner[at + len(marker) - 1] + 1))
        at = text.find(marker, at + 1)
    return found
