"""From a name to a model and its tokenizer: no code of the folder runs, no weight is made up."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from refusal_cliff.errors import RefusalCliffError
from refusal_cliff.io import on_disk
from refusal_cliff.model.adapters import chain, downloaded, merged, reason
from refusal_cliff.model.weights import check_configs, check_files, check_loaded, settled
from refusal_cliff.organisms import ORGANISMS, embedded_path
from refusal_cliff.organisms.bases import base_location, how_to_get
from refusal_cliff.settings import PLAIN, Chat
from refusal_cliff.user_text import no_device

CHAT_TEMPLATE = "chat_template.jinja"
"""File beside an adapter's weights; the name that transformers gives it, too."""


@dataclass(frozen=True)
class Checkpoint:
    """What was loaded.

    Attributes:
        model: The causal language model, adapters merged in.
        tokenizer: Its tokenizer.
        folder: Where it is, if it is on this machine.
        mark: What tells it from its base if its adapters change nothing; mostly empty.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    folder: Path | None
    mark: bytes


def read_checkpoint(
    name: str,
    *,
    dtype: torch.dtype | str,
    device: str,
    device_map: str | None = None,
    trust_remote_code: bool = False,
    chat: Chat = PLAIN,
) -> Checkpoint:
    """Load a model with its tokenizer.

    Args:
        name: As for `load_subject`.
        dtype: Precision of the weights; ``auto`` takes that of the checkpoint.
        device: Where the model is put when it is whole.
        device_map: Let accelerate place the layers instead, see transformers.
        trust_remote_code: As for `load_subject`.
        chat: Written into the chat template.

    Raises:
        RefusalCliffError: The model cannot be loaded, or some of its weights are missing, damaged
            or of another model; the message says which.
    """
    _refuse_missing_docstrings()
    device = _device(device)
    location = _location(name)
    *adapters, root = chain(location, _location)
    for adapter in adapters:
        check_configs(Path(adapter))
    if on_disk(root):
        _require_config(name, Path(root))
        check_files(Path(root))
    try:
        tokenizer = _tokenizer(adapters, root, trust_remote_code)
        if tokenizer.chat_template:
            tokenizer.chat_template = chat.written_into(tokenizer.get_chat_template())
        model = _whole_model(name, root, dtype, device_map, trust_remote_code)
    except RefusalCliffError:
        raise
    except Exception as error:  # whatever libraries do with the files of a folder
        raise RefusalCliffError(_not_loaded(name, adapters, root, error)) from error
    mark = b""
    for adapter in reversed(adapters):
        model, own = merged(model, Path(adapter))
        mark = own and mark + own
    if device_map is None:
        _move(name, model, device)
    folder = Path(location) if on_disk(location) else None
    return Checkpoint(model, tokenizer, folder, mark)


def _refuse_missing_docstrings() -> None:
    if __doc__ is None:
        raise RefusalCliffError(
            "Python runs without docstrings (PYTHONOPTIMIZE=2, or python -OO), from which "
            "transformers builds its models, so none can be loaded. Unset PYTHONOPTIMIZE, or set "
            "it to 1."
        )


def _require_config(name: str, folder: Path) -> None:
    if not (folder / "config.json").is_file():
        raise RefusalCliffError(
            f"Could not load the model {name!r}: there is no config.json in the folder {folder}, "
            "so it holds no transformers checkpoint with safetensors weights, and no "
            "adapter_config.json, so it holds no PEFT adapter. Give the folder that "
            "save_pretrained wrote, or download the missing file."
        )


def _device(device: str) -> str:
    """The device meant, after a look whether it is there: models take minutes to read."""
    chosen = device
    if device == "auto":
        chosen = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        if torch.empty(1, device=chosen).is_meta:
            raise ValueError("nothing can be computed there")
    except Exception as error:  # of a kind for each backend
        raise RefusalCliffError(no_device(device, reason(error))) from error
    return chosen


def _move(name: str, model: PreTrainedModel, device: str) -> None:
    try:
        cast("Any", model).to(device)
    except (RuntimeError, ValueError) as error:  # a quantised model stays where it is
        raise RefusalCliffError(
            f"The model {name!r} cannot be put on {device}: {reason(error)} If its memory is too "
            "small, load it in a smaller precision (--dtype bfloat16) or choose another device."
        ) from error


def _location(name: str) -> str:
    """A folder, that of an embedded organism or of its base, or a name; a folder wins."""
    if on_disk(name):
        return name
    found = str(embedded_path(name)) if name in ORGANISMS else base_location(name)
    return found if on_disk(found) else downloaded(found)


def _whole_model(
    name: str,
    root: str,
    dtype: torch.dtype | str,
    device_map: str | None,
    trust_remote_code: bool,
) -> PreTrainedModel:
    """The model, if every weight of it is in the checkpoint."""
    config = AutoConfig.from_pretrained(root, trust_remote_code=trust_remote_code)
    quantised = getattr(config, "quantization_config", None) is not None
    loaded: Any = _class_for(config).from_pretrained(
        root,
        dtype=dtype,
        device_map=device_map,
        trust_remote_code=trust_remote_code,
        use_safetensors=True,
        ignore_mismatched_sizes=True,  # to name them; they are refused below
        output_loading_info=True,
    )
    model, report = loaded
    check_loaded(name, model, config, report)
    return settled(name, model, quantised, dtype)


def _class_for(config: Any) -> Any:
    """The causal language model; else the multimodal one, whose text part is then measured."""
    kind = type(config)
    only_with_images = kind in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING
    if only_with_images and kind not in MODEL_FOR_CAUSAL_LM_MAPPING:
        return AutoModelForImageTextToText
    return AutoModelForCausalLM


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


def _not_loaded(name: str, adapters: Sequence[str], root: str, error: Exception) -> str:
    said = f"Could not load the model {name!r}: {reason(error)} "
    if isinstance(error, ImportError):
        return f"{said}Install what it asks for."
    if on_disk(root):
        return (
            f"{said}The folder {root} must hold a whole transformers checkpoint of a decoder, with "
            "its tokenizer and safetensors weights. Download it again, or save it again with "
            "save_pretrained; a newer architecture may need a newer transformers."
        )
    if adapters:
        return (
            f"{said}The adapter {adapters[-1]} stands on {root!r} (base_model_name_or_path in its "
            "adapter_config.json), which is no folder there and could not be had from the hub. "
            "Write the name of its base there, or the way to it from the adapter's folder."
            + how_to_get(root)
        )
    return (
        f"{said}Check the spelling; give a folder that holds a transformers checkpoint with "
        "safetensors weights, a Hugging Face name (this needs the network; for a gated model, ask "
        "for access on its page and log in with: hf auth login), or an embedded organism: "
        f"{', '.join(ORGANISMS)}." + how_to_get(root)
    )
