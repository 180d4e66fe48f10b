"""A model under study: loading it, naming its heads, and knowing it again by its fingerprint."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from threading import RLock
from typing import Any, cast
from weakref import WeakKeyDictionary

import torch
from pydantic_core import core_schema
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from refusal_cliff.errors import RefusalCliffError
from refusal_cliff.model.architecture import analyse
from refusal_cliff.model.blocks import Block, in_features, input_device
from refusal_cliff.model.loading import read_checkpoint
from refusal_cliff.model.weights import named, weight_hashes
from refusal_cliff.settings import DTYPES, PLAIN, Chat, Loading
from refusal_cliff.thinking import ThinkingFormat
from refusal_cliff.thinking.ending import Ending, find_ending
from refusal_cliff.thinking.formats import KNOWN, Markers
from refusal_cliff.thinking.rendering import render_prompt


@dataclass(frozen=True, order=True, slots=True)
class Head:
    """One attention head: its block, counted from 1, and its index there, counted from 0."""

    layer: int
    index: int

    def __str__(self) -> str:
        return f"{self.layer}.{self.index}"

    @classmethod
    def __get_pydantic_core_schema__(cls, *_: Any) -> core_schema.CoreSchema:
        """In JSON a head is its text."""
        return core_schema.no_info_plain_validator_function(
            _read_head, serialization=core_schema.to_string_ser_schema()
        )


@dataclass(frozen=True, repr=False)
class Subject:
    """A model under study with its tokenizer.

    Attributes:
        name: What the user called it.
        model: The causal language model, in evaluation mode, without gradients.
        tokenizer: Its tokenizer, with a chat template.
        format: How it marks its thinking.
        ending: How it ends an answer.
        fingerprint: SHA-256 of configuration, weights and chat template; where an adapter changes
            no weight, of the adapter too, so that it never is that of its base.
        blocks: The decoder blocks; ``blocks[l - 1]`` is block ``l``.
        source: Folder of the checkpoint, if it is one on this machine.
        chat: How it is spoken to; the tokenizer's template says so already.
    """

    name: str
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    format: ThinkingFormat
    ending: Ending
    fingerprint: str
    blocks: tuple[Block, ...]
    source: Path | None
    chat: Chat = PLAIN

    def __repr__(self) -> str:
        kind, heads = type(self.model).__name__, len(self.heads())
        return f"<{self.name}: {kind}, {self.n_layers} blocks, {heads} heads, on {self.device}>"

    @property
    def device(self) -> torch.device:
        """Where token ids must be put."""
        return input_device(self.model)

    @property
    def n_layers(self) -> int:
        """Number of blocks."""
        return len(self.blocks)

    @property
    def n_parameters(self) -> int:
        """Number of parameters, tied ones counted once."""
        return sum(parameter.numel() for parameter in self.model.parameters())

    @property
    def width(self) -> int:
        """Width of the residual stream."""
        return int(self.model.config.get_text_config().hidden_size)

    @property
    def vocabulary(self) -> int:
        """Number of token ids that the model has an embedding for."""
        return _rows(self.model)

    @property
    def context(self) -> int | None:
        """Most tokens that the model was made for; ``None`` where its configuration says nothing.

        Multimodal models say it in the configuration of their text part.
        """
        found = getattr(self.model.config.get_text_config(), "max_position_embeddings", None)
        return int(found) if found else None

    @property
    def n_heads(self) -> int:
        """Most heads of any block."""
        return max(block.n_heads for block in self.blocks)

    @property
    def skipped(self) -> dict[int, str]:
        """Blocks without heads to measure, and why."""
        return {block.layer: block.skipped for block in self.blocks if not block.n_heads}

    def heads(self) -> list[Head]:
        """Every head, by layer, then by index."""
        return [Head(block.layer, i) for block in self.blocks for i in range(block.n_heads)]

    def projection(self, layer: int) -> torch.nn.Module:
        """Output projection of the attention of a block.

        Raises:
            ValueError: The block has no heads.
        """
        found = self.blocks[layer - 1].projection
        if found is None:
            raise ValueError(f"block {layer} has no heads: {self.blocks[layer - 1].skipped}")
        return found

    def head_width(self, layer: int) -> int:
        """Inputs of a block's projection that belong to one head."""
        return in_features(self.projection(layer)) // self.blocks[layer - 1].n_heads


_LOCKS: WeakKeyDictionary[torch.nn.Module, RLock] = WeakKeyDictionary()


def in_turn(subject: Subject) -> RLock:
    """What a thread holds while it uses a model: hooks on it see the passes of every thread."""
    return _LOCKS.setdefault(subject.model, RLock())


def load(name: str, loading: Loading) -> Subject:
    """The model of that name, loaded as a user said; see `load_subject`."""
    return load_subject(
        name,
        dtype=loading.dtype,
        device=loading.device,
        device_map=loading.device_map,
        trust_remote_code=loading.trust_remote_code,
        chat=loading.chat,
    )


def between(subject: Subject, markers: Sequence[Markers]) -> Subject:
    """The model as one that thinks between the markers that a user named, if any was named.

    Args:
        subject: The model as its template and vocabulary tell.
        markers: Formats as a `Reading` has them: named ones stand before those that are known.
    """
    named = next((one for one in markers if one not in KNOWN), None)
    return replace(subject, format=subject.format.between(named)) if named else subject


def load_subject(
    name: str | Path,
    *,
    dtype: str = "float32",
    device: str = "auto",
    device_map: str | None = None,
    trust_remote_code: bool = False,
    chat: Chat = PLAIN,
) -> Subject:
    """Load a model by Hugging Face name, folder, or name of an embedded organism.

    Args:
        name: Such as ``tiny``, ``runs/my-model`` or ``Qwen/Qwen3-8B``. A folder wins over a name;
            one that holds a PEFT adapter only stands for its base with the adapter merged in, and
            with the chat template beside the adapter, if there is one.
        dtype: Precision of the weights: one of ``DTYPES``.
        device: ``auto`` (a GPU if there is one), or a device of PyTorch.
        device_map: ``auto`` lets accelerate spread the blocks over all devices instead.
        trust_remote_code: Run code that comes with the model.
        chat: A system prompt and arguments of the chat template; they are part of what is measured,
            and so of the fingerprint.

    Raises:
        RefusalCliffError: The model cannot be loaded or measured; the message says why.
    """
    if not isinstance(name, str | Path):
        raise RefusalCliffError(
            f"A model is loaded by name or folder, not from a {type(name).__name__}. Write it and "
            "its tokenizer into a folder first (save_pretrained), and give that."
        )
    if not isinstance(chat, Chat):
        raise RefusalCliffError(f"chat is a {type(chat).__name__}. Give Chat(system=...).")
    name = str(name)
    if dtype not in DTYPES:
        raise RefusalCliffError(f"Unknown dtype {dtype!r}. Choose one of: {', '.join(DTYPES)}.")
    found = read_checkpoint(
        name,
        dtype=getattr(torch, dtype),
        device=device,
        device_map=device_map,
        trust_remote_code=trust_remote_code,
        chat=chat,
    )
    return subject_of(name, found.model, found.tokenizer, found.folder, found.mark, chat)


def subject_of(
    name: str,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    source: Path | None = None,
    mark: bytes = b"",
    chat: Chat = PLAIN,
) -> Subject:
    """Look at a loaded model.

    Args:
        name: What the user called it.
        model: The model.
        tokenizer: Its tokenizer.
        source: Folder of the checkpoint, if it is one on this machine.
        mark: Hashed into the fingerprint, see `Checkpoint`.
        chat: How it is spoken to.

    Raises:
        RefusalCliffError: It has no chat template, weights that are not finite, a block that is
            not a sum of its parts, or no embedding for tokens that every conversation has.
    """
    model.eval().requires_grad_(False)
    thinking = ThinkingFormat.from_tokenizer(tokenizer)
    _check_vocabulary(name, model, tokenizer, thinking)
    return Subject(
        name=name,
        model=model,
        tokenizer=tokenizer,
        format=thinking,
        ending=find_ending(tokenizer, model.generation_config, thinking),
        fingerprint=_fingerprint(name, model, tokenizer, mark),
        blocks=analyse(name, model),
        source=source,
        chat=chat,
    )


def parse_head(text: str) -> Head:
    """Read what ``str(head)`` wrote.

    Raises:
        RefusalCliffError: The text is not ``layer.head``.
    """
    layer, _, index = text.partition(".")
    if not (re.fullmatch(r"[0-9]{1,9}\.[0-9]{1,9}", text)):
        raise RefusalCliffError(f"{text!r} is not a head. Write layer.head, such as 7.12.")
    return Head(int(layer), int(index))


def _read_head(value: object) -> Head:
    """A head out of a file of ours; older ones hold ``{"layer": 7, "index": 12}``."""
    match value:
        case Head():
            return value
        case {"layer": int(layer), "index": int(index)}:
            return Head(layer, index)
    try:
        return parse_head(str(value))
    except RefusalCliffError as error:
        raise ValueError(str(error).rstrip(".")) from error


def _rows(model: PreTrainedModel) -> int:
    """Rows of the embedding matrix."""
    return int(cast("torch.Tensor", model.get_input_embeddings().weight).shape[0])


def _check_vocabulary(
    name: str, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, thinking: ThinkingFormat
) -> None:
    """Refuse a tokenizer that writes tokens into every conversation that the model does not know.

    Others may be unknown (the text model Gemma 3 has no embedding for the image token of its
    tokenizer); a text that holds one is refused when it is read.
    """
    written = thinking.opener + thinking.closing + thinking.answer + thinking.ender
    ids = {*render_prompt(tokenizer, "Hello"), *tokenizer.encode(written, add_special_tokens=False)}
    ids |= {cast("int", tokenizer.eos_token_id)} - {None}
    unknown = [token for token in ids if token >= _rows(model)]
    if unknown:
        tokens = [repr(token) for token in tokenizer.convert_ids_to_tokens(unknown)]
        raise RefusalCliffError(
            f"The tokenizer of {name!r} has {len(tokenizer)} tokens and the model embeddings for "
            f"{_rows(model)}. Every conversation would hold tokens that the model does not know: "
            f"{named(tokens)}. Use the tokenizer that the model was trained with, or weights whose "
            "embeddings were resized to it (resize_token_embeddings) and trained."
        )


def _fingerprint(
    name: str, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, mark: bytes
) -> str:
    """SHA-256 over configuration, chat template, vocabulary and every weight's bytes."""
    digest = hashlib.sha256(mark)
    config = {k: v for k, v in model.config.to_dict().items() if not k.startswith("_")}
    for written_by_saving in ("transformers_version", "architectures", "dtype"):
        config.pop(written_by_saving, None)
    digest.update(repr(sorted(config.items(), key=lambda item: item[0])).encode())
    digest.update(str(tokenizer.chat_template).encode())
    digest.update(repr(sorted(tokenizer.get_vocab().items())).encode())
    for key, weights in sorted(weight_hashes(name, model)):
        digest.update(key.encode())
        digest.update(weights)
    return digest.hexdigest()
