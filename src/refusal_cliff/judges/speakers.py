"""Models that say one short thing to each request: what guard models and LLM judges run on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, TypeAlias, cast

import torch
from transformers import PreTrainedTokenizerBase

from refusal_cliff.data.types import LeftOut
from refusal_cliff.errors import RefusalCliffError
from refusal_cliff.model.loading import read_checkpoint
from refusal_cliff.model.weights import check_finite
from refusal_cliff.sharded import Rank
from refusal_cliff.thinking.rendering import conversation_text

Messages: TypeAlias = Sequence[Mapping[str, str]]
Request: TypeAlias = str | Messages
"""A conversation, written by the chat template; or a text that is already as the model wants it."""

Reply: TypeAlias = str | LeftOut
_ROWS_AT_ONCE = 8


class Speaker(Protocol):
    """Says something to each request, greedily: a model here, or an `EndpointBackend`.

    Attributes:
        name: The model.
    """

    name: str

    def say(self, requests: Sequence[Request]) -> list[Reply]:
        """What it says, in order; or why it said nothing."""
        ...


class LocalSpeaker:
    """A causal language model on this machine.

    Args:
        name: Hugging Face name or folder.
        max_new_tokens: Longest reply.

    Raises:
        RefusalCliffError: It cannot be loaded, or some of its weights are missing or damaged.
    """

    def __init__(self, name: str, max_new_tokens: int) -> None:
        self.name = name
        self._limit = max_new_tokens
        try:
            rank = Rank.here()  # one of several processes keeps to its own GPU
            spread = "auto" if rank.world == 1 else None
            loaded = read_checkpoint(
                name, dtype="auto", device=rank.device("auto"), device_map=spread
            )
            check_finite(name, loaded.model)
        except RefusalCliffError as error:
            raise RefusalCliffError(
                f"Could not load the judge {name!r}. {error} Or serve the judge elsewhere and give "
                "--judge-endpoint."
            ) from error
        self._model, self._tokenizer = loaded.model.eval(), loaded.tokenizer
        self._tokenizer.padding_side = "left"
        if self._tokenizer.pad_token_id is None:
            self._tokenizer.pad_token = self._tokenizer.eos_token

    @torch.inference_mode()
    def say(self, requests: Sequence[Request]) -> list[Reply]:
        """Batches of similar length; token ids never pass through text twice."""
        ids = [_ids_of(self._tokenizer, request) for request in requests]
        order = sorted(range(len(ids)), key=lambda index: len(ids[index]))
        said: dict[int, str] = {}
        for start in range(0, len(order), _ROWS_AT_ONCE):
            chosen = order[start : start + _ROWS_AT_ONCE]
            said |= zip(chosen, self._batch([ids[index] for index in chosen]), strict=True)
        return [said[index] for index in range(len(ids))]

    def _batch(self, rows: Sequence[Sequence[int]]) -> list[str]:
        padded = self._tokenizer.pad({"input_ids": list(map(list, rows))}, return_tensors="pt")
        inputs = padded.to(self._model.device)
        output = cast("Any", self._model).generate(
            **inputs,
            max_new_tokens=self._limit,
            do_sample=False,
            temperature=None,
            top_p=None,
            top_k=None,
            pad_token_id=self._tokenizer.pad_token_id,
        )
        new = output[:, inputs["input_ids"].shape[1] :]
        return [str(text) for text in self._tokenizer.batch_decode(new, skip_special_tokens=True)]


def _ids_of(tokenizer: PreTrainedTokenizerBase, request: Request) -> list[int]:
    """Token ids: a text gets the tokenizer's own BOS, a conversation its chat template's."""
    if isinstance(request, str):
        return list(tokenizer(request)["input_ids"])
    try:
        text = conversation_text(tokenizer, request, {})
    except RefusalCliffError as error:
        raise RefusalCliffError(
            f"The chat template of the judge {tokenizer.name_or_path!r} leaves out what is to be "
            "judged, or fails on it. Use the tokenizer that the judge was published with, or serve "
            "the judge and give --judge-endpoint."
        ) from error
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])
