"""Which module of a model each tensor of an adapter is for, whatever stands around the decoder."""

from __future__ import annotations

import copy
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from refusal_cliff.errors import RefusalCliffError
from refusal_cliff.model.blocks import decoder_of
from refusal_cliff.model.weights import named

ROOT = "base_model.model."
"""What PEFT writes before the name of a module."""
_OTHER_PART = re.compile(r"(?:^|[._])(?:vi(?:sion|sual|t|deo)|image|audio|speech)(?:[._]|$)")
"""A wrapper that says that its blocks are not those of the language model."""
Tensors = dict[str, torch.Tensor]


class ModuleNames:
    """The names of a model's modules, and how an adapter may call them.

    The same decoder is called ``model`` on its own and ``model.language_model`` inside a multimodal
    model, and wrappers of training add names of their own. What follows from the list of blocks on
    (``layers.3.mlp.up_proj``) is the same everywhere; outside of blocks, the last part is
    (``lm_head``). So a tensor has one place in the language model, or none.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        names = {module: name for name, module in model.named_modules()}
        parts = [*decoder_of(model).modules(), model.get_output_embeddings()]
        self._lists = {name for part, name in names.items() if isinstance(part, nn.ModuleList)}
        self._leaves = {name for part, name in names.items() if [*part.parameters(recurse=False)]}
        self._language = sorted({names[part] for part in parts if names.get(part)})
        count = Counter(map(_place, self._language))
        self._at = {_place(n): n for n in self._language if count[_place(n)] == 1}

    def fitted(self, folder: Path, config: Any, tensors: Tensors) -> tuple[Any, Tensors]:
        """Configuration and tensors with the names of this model.

        Raises:
            RefusalCliffError: The names could be meant in several ways.
        """
        if all(key.startswith(ROOT) and self._has(_bare(key)) for key in tensors):
            return config, tensors
        renamed = {key: self._renamed(key) for key in tensors}
        wrappers = {blocks for key in tensors if (blocks := _list_of_blocks(_bare(key)))}
        if len(set(renamed.values())) < len(renamed) or len(wrappers) > 1:
            raise RefusalCliffError(
                f"The tensors of the adapter {folder} have other names than the model's modules, "
                f"and could be meant for several of them: {named(wrappers or tensors)}. Use an "
                "adapter of the language model alone, or the model that it was trained on."
            )
        own = {self._renamed(key): _bare(key) for key in tensors}
        return self._renamed_config(config, own), {renamed[k]: v for k, v in tensors.items()}

    def _has(self, key: str) -> bool:
        """Whether the model has the list of blocks that a tensor is for, or else the module."""
        if blocks := _list_of_blocks(key):
            return blocks in self._lists
        parts = key.split(".")
        return any(".".join(parts[:end]) in self._leaves for end in range(1, len(parts)))

    def _split(self, key: str) -> tuple[str, str, str]:
        """What stands around the place, the place, and what follows it; empty where unknown."""
        parts = _bare(key).split(".")
        number = _numbered(_bare(key))
        starts = range(len(parts)) if number is None else (max(number - 1, 0),)
        for start in starts:
            if _OTHER_PART.search(".".join(parts[:start])):
                break
            for end in range(len(parts), start, -1):
                if (place := ".".join(parts[start:end])) in self._at:
                    return ".".join(parts[:start]), place, ".".join(parts[end:])
        return "", "", ""

    def _renamed(self, key: str) -> str:
        _, place, rest = self._split(key)
        return f"{ROOT}{self._at[place]}.{rest}" if place else ROOT + _bare(key)

    def _renamed_config(self, config: Any, own: Mapping[str, str]) -> Any:
        """The same choice of modules and ranks, by this model's names."""
        from peft.tuners.tuners_utils import check_target_module_exists
        from peft.utils.other import get_pattern_key

        found = copy.deepcopy(config)
        theirs = {name: self._theirs(name, own) for name in self._language}
        if getattr(config, "target_modules", None) is not None:
            chosen = [n for n in theirs if check_target_module_exists(config, theirs[n])]
            found.target_modules = chosen
            for field in ("rank_pattern", "alpha_pattern"):
                pattern = getattr(config, field, None) or {}
                keys = {n: get_pattern_key(list(pattern), theirs[n]) for n in chosen}
                ours = {re.escape(n): pattern[k] for n, k in keys.items() if k in pattern}
                setattr(found, field, ours)
            for field in ("layers_to_transform", "layers_pattern", "exclude_modules"):
                setattr(found, field, None)
        return found

    def _theirs(self, name: str, own: Mapping[str, str]) -> str:
        """What the adapter calls a module."""
        place, numbered = _place(name), _numbered(name) is not None
        for key in own.values():
            if (_numbered(key) is not None) == numbered:
                around, its_place, _ = self._split(key)
                if its_place and (numbered or its_place == place):
                    return f"{around}.{place}".lstrip(".")
        return name


def _bare(key: str) -> str:
    return key.removeprefix(ROOT)


def _numbered(name: str) -> int | None:
    """Where the first number of a name stands among its parts."""
    return next((at for at, part in enumerate(name.split(".")) if part.isdecimal()), None)


def _place(name: str) -> str:
    """A module's name from the list of blocks on, or its last part outside of blocks."""
    number = _numbered(name)
    return ".".join(name.split(".")[-1 if number is None else max(number - 1, 0) :])


def _list_of_blocks(name: str) -> str:
    """The list of blocks that a tensor is in; empty outside of blocks."""
    return ".".join(name.split(".")[: _numbered(name) or 0])
