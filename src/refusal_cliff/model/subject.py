"""A model under study: loading it, naming its heads, and knowing it again by its fingerprint."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from accelerate.utils import align_module_device
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from refusal_cliff.errors import RefusalCliffError
from refusal_cliff.io import read_json
from refusal_cliff.model.architecture import analyse
from refusal_cliff.model.blocks import Block, in_features, input_device
from refusal_cliff.organisms import ORGANISMS, embedded_path
from refusal_cliff.organisms.bases import base_location, how_to_get
from refusal_cliff.thinking import ThinkingFormat
from refusal_cliff.thinking.ending import Ending, find_ending

DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float64": torch.float64,
}
CHAT_TEMPLATE = "chat_template.jinja"
"""File beside an adapter's weights; the name that transformers gives it, too."""


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
        ending: How it ends an answer.
        fingerprint: SHA-256 of configuration, weights and chat template.
        blocks: The decoder blocks; ``blocks[l - 1]`` is block ``l``.
        source: Folder of the checkpoint, if it is one on this machine.
    """

    name: str
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    format: ThinkingFormat
    ending: Ending
    fingerprint: str
    blocks: tuple[Block, ...]
    source: Path | None

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
        """Number of token ids."""
        return int(self.model.config.get_text_config().vocab_size)

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


def load_subject(
    name: str,
    *,
    dtype: str = "float32",
    device: str = "auto",
    trust_remote_code: bool = False,
) -> Subject:
    """Load a model by Hugging Face name, folder, or name of an embedded organism.

    Args:
        name: Such as ``tiny``, ``runs/my-model`` or ``Qwen/Qwen3-8B``. A folder wins over a name;
            one that holds a PEFT adapter only stands for its base with the adapter merged in, and
            with the chat template beside the adapter, if there is one.
        dtype: Precision of the weights: a key of ``DTYPES``.
        device: ``auto`` (a GPU if there is one), or a device of PyTorch.
        trust_remote_code: Run code that comes with the model.

    Raises:
        RefusalCliffError: The model cannot be loaded or measured; the message says why.
    """
    if dtype not in DTYPES:
        raise RefusalCliffError(f"Unknown dtype {dtype!r}. Choose one of: {', '.join(DTYPES)}.")
    location = _location(name)
    *adapters, root = _chain(location)
    try:
        tokenizer = _tokenizer(adapters, root, trust_remote_code)
        model: Any = AutoModelForCausalLM.from_pretrained(
            root, dtype=DTYPES[dtype], trust_remote_code=trust_remote_code, use_safetensors=True
        )
        for adapter in reversed(adapters):
            model = _merged(model, adapter)
        model.to(_device(device))
    except (OSError, ValueError, KeyError, ImportError, RuntimeError) as error:
        raise RefusalCliffError(
            f"Could not load the model {name!r}: {_first_line(error)} Check the spelling; give a "
            "folder that holds a transformers checkpoint with safetensors weights, a Hugging Face "
            "name (this needs the network), or an embedded organism: "
            f"{', '.join(ORGANISMS)}." + how_to_get(root)
        ) from error
    folder = Path(location)
    return subject_of(name, model, tokenizer, folder if folder.exists() else None)


def _location(name: str) -> str:
    """A folder, that of an embedded organism or of its base, or a name; a folder wins."""
    if Path(name).exists():
        return name
    return str(embedded_path(name)) if name in ORGANISMS else base_location(name)


def _base_of(location: str) -> str:
    """Where the base of a PEFT adapter is; empty where the folder is no adapter.

    Raises:
        RefusalCliffError: The adapter's weights are not safetensors, or it names no base.
    """
    card = Path(location) / "adapter_config.json"
    if not card.is_file():
        return ""
    base = read_json(card).get("base_model_name_or_path")
    if not base or not card.with_name("adapter_model.safetensors").is_file():
        raise RefusalCliffError(
            f"{location} is an adapter that names no base model or holds no "
            "adapter_model.safetensors. Save it with PEFT's save_pretrained, from its base model."
        )
    return _location(str(base))


def _chain(location: str) -> list[str]:
    """An adapter, what it stands on, and so on, down to the checkpoint.

    Raises:
        RefusalCliffError: An adapter stands on itself, or see `_base_of`.
    """
    chain = [location]
    while base := _base_of(chain[-1]):
        if base in chain:
            raise RefusalCliffError(
                f"The adapter {chain[-1]} names {base} as its base, which stands on it. Correct "
                "base_model_name_or_path in adapter_config.json."
            )
        chain.append(base)
    return chain


def _tokenizer(
    adapters: Sequence[str], root: str, trust_remote_code: bool
) -> PreTrainedTokenizerBase:
    """The first adapter's own tokenizer, or that of what it stands on with its chat template."""
    own = next((a for a in adapters if (Path(a) / "tokenizer_config.json").is_file()), root)
    tokenizer = AutoTokenizer.from_pretrained(own, trust_remote_code=trust_remote_code)
    above = adapters[: adapters.index(own)] if own in adapters else adapters
    templates = (Path(adapter) / CHAT_TEMPLATE for adapter in above)
    template = next(filter(Path.is_file, templates), None)
    if template is not None:
        tokenizer.chat_template = template.read_text(encoding="utf-8")
    return tokenizer


def _merged(model: Any, adapter: str) -> Any:
    """The model with a PEFT adapter in its weights; an adapter trained on it will name this one."""
    from peft import PeftModel  # slow to import

    with warnings.catch_warnings():  # of what PEFT asks transformers, nothing that a user can mend
        warnings.simplefilter("ignore", FutureWarning)
        merged: Any = cast("Any", PeftModel.from_pretrained(model, adapter)).merge_and_unload()
    merged.name_or_path = adapter
    return merged


def subject_of(
    name: str,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    source: Path | None = None,
) -> Subject:
    """Look at a loaded model.

    Raises:
        RefusalCliffError: It has no chat template, or a block that is not a sum of its parts.
    """
    model.eval().requires_grad_(False)
    fmt = ThinkingFormat.from_tokenizer(tokenizer)
    return Subject(
        name=name,
        model=model,
        tokenizer=tokenizer,
        format=fmt,
        ending=find_ending(tokenizer, model.generation_config, fmt),
        fingerprint=_fingerprint(model, tokenizer),
        blocks=analyse(name, model),
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


def _fingerprint(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> str:
    """SHA-256 over configuration, chat template, vocabulary and every weight's bytes."""
    digest = hashlib.sha256()
    config = {k: v for k, v in model.config.to_dict().items() if not k.startswith("_")}
    for written_by_saving in ("transformers_version", "architectures", "dtype"):
        config.pop(written_by_saving, None)
    digest.update(repr(sorted(config.items(), key=lambda item: item[0])).encode())
    digest.update(str(tokenizer.chat_template).encode())
    digest.update(repr(sorted(tokenizer.get_vocab().items())).encode())
    for key, weights in sorted(_weight_hashes(model)):
        digest.update(key.encode())
        digest.update(weights)
    return digest.hexdigest()


def _weight_hashes(model: PreTrainedModel) -> Iterator[tuple[str, bytes]]:
    """SHA-256 of every weight and saved buffer; one module at a time is brought back from disk."""
    for prefix, module in model.named_modules():
        with align_module_device(module):
            own = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
            for name, value in own:
                if name not in module._non_persistent_buffers_set:
                    content = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
                    yield f"{prefix}.{name}", hashlib.sha256(content.numpy()).digest()
