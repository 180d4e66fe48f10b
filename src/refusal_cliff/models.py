"""A model under study: its blocks, the output projection of each attention, and its heads.

All is found by structure, not by a table of names of architectures: the blocks are the decoder's
list of layers, and an output projection is the linear layer in a block's attention whose input is
the concatenation of the heads' outputs.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from refusal_cliff.errors import RefusalCliffError
from refusal_cliff.organisms import EMBEDDED, embedded_path
from refusal_cliff.thinking import ThinkingFormat

DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float64": torch.float64,
}
_PROJECTION_NAMES = ("o_proj", "out_proj", "c_proj", "dense", "wo")
_ATTENTION_NAMES = ("self_attn", "attn", "attention", "self_attention")


@dataclass(frozen=True, order=True, slots=True)
class Head:
    """One attention head: its block, counted from 1, and its index there, counted from 0."""

    layer: int
    index: int

    def __str__(self) -> str:
        return f"{self.layer}.{self.index}"


@dataclass(frozen=True)
class Subject:
    """A model under study with its tokenizer.

    Attributes:
        name: What the user called it.
        model: The causal language model, in evaluation mode, without gradients.
        tokenizer: Its tokenizer, with a chat template.
        format: How it marks its thinking.
        fingerprint: SHA-256 of configuration, weights and chat template.
        blocks: The decoder blocks; ``blocks[l - 1]`` is block ``l``.
        projections: The attention output projection of each block.
        n_heads: Heads of each block.
        source: Folder of the checkpoint, if it is one on this machine.
    """

    name: str
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    format: ThinkingFormat
    fingerprint: str
    blocks: tuple[torch.nn.Module, ...]
    projections: tuple[torch.nn.Module, ...]
    n_heads: int
    source: Path | None

    @property
    def device(self) -> torch.device:
        """Where token ids must be put."""
        return self.model.device

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
    def head_width(self) -> int:
        """Inputs of a projection that belong to one head."""
        return _in_features(self.projections[0]) // self.n_heads

    def heads(self) -> list[Head]:
        """Every head, by layer, then by index."""
        layers = range(1, self.n_layers + 1)
        return [Head(layer, index) for layer in layers for index in range(self.n_heads)]

    def columns(self, layer: int) -> torch.Tensor:
        """A projection's weight by heads, [d, heads, head width], float32."""
        weight = self.projections[layer - 1].weight
        if not isinstance(weight, torch.Tensor):
            raise TypeError("an output projection has a weight")
        if type(self.projections[layer - 1]).__name__ == "Conv1D":  # GPT-2 stores the transpose
            weight = weight.T
        return weight.detach().float().unflatten(1, (self.n_heads, -1))


def load_subject(
    name: str,
    *,
    dtype: str = "float32",
    device: str = "auto",
    trust_remote_code: bool = False,
) -> Subject:
    """Load a model by Hugging Face name, folder, or name of an embedded organism.

    Args:
        name: Such as ``tiny``, ``runs/my-model`` or ``Qwen/Qwen3-8B``. A folder wins over a name.
        dtype: Precision of the weights: a key of ``DTYPES``.
        device: ``auto`` (a GPU if there is one), or a device of PyTorch.
        trust_remote_code: Run code that comes with the model.

    Raises:
        RefusalCliffError: The model cannot be loaded or measured; the message says why.
    """
    if dtype not in DTYPES:
        raise RefusalCliffError(f"Unknown dtype {dtype!r}. Choose one of: {', '.join(DTYPES)}.")
    folder = Path(name)
    if not folder.exists() and name in EMBEDDED:
        folder = embedded_path(name)
    location = str(folder) if folder.exists() else name
    try:
        tokenizer = AutoTokenizer.from_pretrained(location, trust_remote_code=trust_remote_code)
        model: Any = AutoModelForCausalLM.from_pretrained(
            location,
            dtype=DTYPES[dtype],
            trust_remote_code=trust_remote_code,
            use_safetensors=True,
        )
        model.to(_device(device))
    except (OSError, ValueError, KeyError, ImportError, RuntimeError) as error:
        raise RefusalCliffError(
            f"Could not load the model {name!r}: {_first_line(error)} Check the spelling; give a "
            "folder that holds a transformers checkpoint with safetensors weights, a Hugging Face "
            f"name (this needs the network), or an embedded organism: {', '.join(EMBEDDED)}."
        ) from error
    return subject_of(name, model, tokenizer, folder if folder.exists() else None)


def subject_of(
    name: str,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    source: Path | None = None,
) -> Subject:
    """Look at a loaded model.

    Raises:
        RefusalCliffError: It has no thinking format, or no heads that can be told apart.
    """
    model.eval().requires_grad_(False)
    blocks = tuple(_find_blocks(name, model))
    n_heads = int(model.config.get_text_config().num_attention_heads)
    projections = tuple(
        _find_projection(name, number, block, n_heads) for number, block in enumerate(blocks, 1)
    )
    return Subject(
        name=name,
        model=model,
        tokenizer=tokenizer,
        format=ThinkingFormat.from_tokenizer(tokenizer),
        fingerprint=_fingerprint(model, tokenizer),
        blocks=blocks,
        projections=projections,
        n_heads=n_heads,
        source=source,
    )


def parse_head(text: str) -> Head:
    """Read what ``str(head)`` wrote.

    Raises:
        RefusalCliffError: The text is not ``layer.head``.
    """
    layer, _, index = text.partition(".")
    if not (layer.isdecimal() and index.isdecimal()):
        raise RefusalCliffError(f"{text!r} is not a head. Write layer.head, such as 7.12.")
    return Head(int(layer), int(index))


def _device(device: str) -> str:
    if device != "auto":
        return device
    return "cuda" if torch.cuda.is_available() else "cpu"


def _first_line(error: BaseException) -> str:
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0].rstrip(".") + "."


def _find_blocks(name: str, model: PreTrainedModel) -> Iterator[torch.nn.Module]:
    """The modules of the longest list whose members have an attention."""
    lists = [module for module in model.modules() if isinstance(module, torch.nn.ModuleList)]
    with_attention = [found for found in lists if all(map(_attention_of, found)) and len(found)]
    if not with_attention:
        raise RefusalCliffError(
            f"{name} has no list of blocks with attention that can be found, so there are no heads "
            f"to measure (it is a {type(model).__name__}). Use a decoder-only transformer."
        )
    yield from max(with_attention, key=len)


def _attention_of(block: torch.nn.Module) -> torch.nn.Module | None:
    return next((getattr(block, n) for n in _ATTENTION_NAMES if hasattr(block, n)), None)


def _find_projection(
    name: str, number: int, block: torch.nn.Module, n_heads: int
) -> torch.nn.Module:
    attention = _attention_of(block)
    for path in _PROJECTION_NAMES:
        found = getattr(attention, path, None)
        if found is not None and _in_features(found) % n_heads == 0:
            return found
    raise RefusalCliffError(
        f"Block {number} of {name} has no output projection that splits into {n_heads} heads "
        f"(its attention is a {type(attention).__name__}). Such a block cannot be measured yet."
    )


def _in_features(projection: torch.nn.Module) -> int:
    if hasattr(projection, "in_features"):
        return int(projection.in_features)  # pyright: ignore[reportArgumentType]
    weight = projection.weight
    if not isinstance(weight, torch.Tensor):
        raise TypeError("an output projection has a weight")
    return int(weight.shape[0])  # Conv1D: [in, out]


def _fingerprint(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> str:
    """SHA-256 over configuration, chat template, vocabulary and every weight's bytes."""
    digest = hashlib.sha256()
    config = {k: v for k, v in model.config.to_dict().items() if not k.startswith("_")}
    config.pop("transformers_version", None)
    digest.update(repr(sorted(config.items(), key=lambda item: item[0])).encode())
    digest.update(str(tokenizer.chat_template).encode())
    digest.update(repr(sorted(tokenizer.get_vocab().items())).encode())
    for key, value in sorted(model.state_dict().items()):
        digest.update(key.encode())
        digest.update(value.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
