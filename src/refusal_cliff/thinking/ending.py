"""The tokens that end an answer: what the checkpoint names, and what its chat template writes."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

from transformers import GenerationConfig, PreTrainedTokenizerBase

from refusal_cliff.errors import RefusalCliffError
from refusal_cliff.thinking.formats import ThinkingFormat, added_tokens
from refusal_cliff.thinking.rendering import after_answer


@dataclass(frozen=True, slots=True)
class Ending:
    """How a model ends an answer.

    Attributes:
        stops: Tokens at each of which an answer is over.
        written: The tokens with which the model ends one: those of the chat template, else the
            end-of-sequence token; empty if it has neither.
    """

    stops: frozenset[int]
    written: tuple[int, ...]

    def ends(self, token_ids: Sequence[int]) -> bool:
        """Whether an answer is over with the last of some tokens."""
        return bool(token_ids) and token_ids[-1] in self.stops

    def without(self, token_ids: Sequence[int]) -> Sequence[int]:
        """The tokens without the one that ends the answer: it need not be a special token."""
        return token_ids[:-1] if self.ends(token_ids) else token_ids


def find_ending(
    tokenizer: PreTrainedTokenizerBase, configured: GenerationConfig | None, fmt: ThinkingFormat
) -> Ending:
    """Find how a model ends an answer.

    Many checkpoints name ``<|endoftext|>`` as the end of sequence while their chat template ends a
    turn with ``<|im_end|>``. Both end an answer: what the template writes after an answered message
    is found by rendering one, never by name. Where it writes nothing there, the token with which
    the user's next turn begins ends the answer, too. A token of the thinking format ends nothing:
    gpt-oss ends a thought with ``<|end|>``, and goes on.

    Args:
        tokenizer: The tokenizer with its chat template.
        configured: The model's generation config, which may name several tokens.
        fmt: The model's thinking format.
    """
    named = _named(tokenizer, configured)
    after_last = after_answer(tokenizer, goes_on=False)
    last = _run_of_tokens(tokenizer, after_last or "")
    between = last or _run_of_tokens(tokenizer, after_answer(tokenizer, goes_on=True) or "")
    if after_last is None:  # a template that takes no answer: a request ends alike
        between = between or _run_of_tokens(tokenizer, fmt.tail)
    thought = _tokens_of_thinking(tokenizer, fmt)
    last, between = ([] if run[:1] and run[0] in thought else run for run in (last, between))
    return Ending(frozenset([*named, *between[:1]]), tuple(last or named[:1]))


def _named(tokenizer: PreTrainedTokenizerBase, configured: GenerationConfig | None) -> list[int]:
    """End-of-sequence tokens: the tokenizer's first, then those of the generation config."""
    of_model = None if configured is None else configured.eos_token_id
    every = [tokenizer.eos_token_id, *(of_model if isinstance(of_model, list) else [of_model])]
    named = [token for token in every if token is not None]
    odd = next((token for token in named if type(token) is not int or token < 0), None)
    if odd is not None:
        raise RefusalCliffError(
            f"The model's configuration names {str(odd)[:60]!r} as its end of sequence, but that "
            "is not a token. Correct eos_token_id in generation_config.json, or in config.json."
        )
    return list(dict.fromkeys(cast("list[int]", named)))


def _run_of_tokens(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """The first token outside the ordinary vocabulary in a text, and those that follow at once."""
    added = _outside(tokenizer)
    if not added:
        return []
    one = "|".join(map(re.escape, sorted(added, key=len, reverse=True)))
    found = re.search(f"(?:{one})+", text)
    return [added[name] for name in re.findall(one, found[0])] if found else []


def _outside(tokenizer: PreTrainedTokenizerBase) -> dict[str, int]:
    """Added and special tokens by their text, blanks aside."""
    special = {
        str(token): cast("int", tokenizer.convert_tokens_to_ids(str(token)))
        for token in tokenizer.all_special_tokens
    }
    return {text: n for text, n in {**added_tokens(tokenizer), **special}.items() if text.strip()}


def _tokens_of_thinking(tokenizer: PreTrainedTokenizerBase, fmt: ThinkingFormat) -> set[int]:
    """Tokens of what a model writes before its answer."""
    markers = (fmt.opener, fmt.closer, fmt.ender, fmt.answer, fmt.opening, fmt.closing)
    return {n for text, n in _outside(tokenizer).items() if any(text in m for m in markers)}
