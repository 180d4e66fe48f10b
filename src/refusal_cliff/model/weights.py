"""The weights of a checkpoint: whole on the disk, all of them used, none missing, all finite.

Quantised ones are read as what they stand for, or refused; never taken for other weights.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import align_module_device
from transformers import PreTrainedModel

from refusal_cliff.data.types import shortened
from refusal_cliff.errors import RefusalCliffError
from refusal_cliff.model.blocks import decoder_of

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
_POINTER = b"version https://git-lfs.github.com/spec"
_CONFIG = "config.json"
_OBJECTS = (
    *(_CONFIG, "generation_config.json", "tokenizer_config.json", "tokenizer.json"),
    *("special_tokens_map.json", "added_tokens.json", "vocab.json"),
)
_TEMPLATE = "chat_template.jinja"
_MAY_BE_POINTERS = (*_OBJECTS, INDEX, "tokenizer.model", _TEMPLATE)
_NAMED = 4
_LENGTH_BYTES = 8
_LONGEST_HEADER = 100_000_000
"""Bytes; the limit of the safetensors library itself."""
_FLOATS = frozenset({"F64", "F32", "F16", "BF16"})
_CACHE_SCALE = re.compile(
    r"(?:attn|attention)\.(?:(?:[kvq]_proj\.|qkv_proj\.)?[kvq]_(?:scale|zero_point)|kv_scale"
    r"|[kv]_proj\.output_scale)$"
)
"""Scales of a quantised cache of keys and values, which is not used here."""
_OWN_PARTS = re.compile(
    r"\.(?:weight_(?:scale|scale_inv|scale_2|packed|shape|zero_point|g_idx)|input_scale|q?scales"
    r"|qweight|qzeros|g_idx|SCB|absmax|quant_map|nested_absmax|quant_state\S*|blocks)$"
)
"""Names that only tensors of quantised weights have."""
_REMEDY = (
    "Give the checkpoint that was quantised, before it was, or save this one again dequantised."
)


def named(names: Collection[str]) -> str:
    """The first few names, and how many there are."""
    first = ", ".join(sorted(names)[:_NAMED])
    return f"{len(names)} ({first}{', …' if len(names) > _NAMED else ''})"


def check_files(folder: Path) -> None:
    """Refuse a folder of a checkpoint whose files are not what they should be.

    Only the headers of weights are read. A folder without safetensors weights passes: transformers
    says what it lacks.

    Raises:
        RefusalCliffError: A file is a Git LFS pointer, is cut short, or is no safetensors file; the
            index names a shard or a tensor that is not there.
    """
    quantised = "quantization_config" in check_configs(folder)
    found = {}
    if (folder / WEIGHTS).is_file():
        found = {folder / WEIGHTS: tensor_kinds(folder / WEIGHTS)}
    elif (folder / INDEX).is_file():
        found = _shards(folder)
    for file, kinds in () if quantised else found.items():
        require_floats(file, kinds)


def check_configs(folder: Path) -> Mapping[str, Any]:
    """What ``config.json`` holds, where every configuration beside weights is whole.

    Raises:
        RefusalCliffError: One is a Git LFS pointer or damaged. What transformers says of that names
            no file, and for generation it takes its defaults, in which the tokens that end an
            answer may be others.
    """
    for name in _MAY_BE_POINTERS:
        _refuse_pointer(folder / name)
    _text(folder / _TEMPLATE)
    return [_object(folder / name) for name in reversed(_OBJECTS)][-1]


def _object(path: Path) -> dict[str, Any]:
    """The JSON object in a file; an empty one where there is no file."""
    if not path.is_file():
        return {}
    try:
        found = json.loads(_text(path))
    except (ValueError, RecursionError) as error:
        raise _damaged(path, str(error)) from error
    if not isinstance(found, dict):
        raise _damaged(path, "it is not a JSON object")
    return found


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8") if path.is_file() else ""
    except (OSError, ValueError) as error:
        raise _damaged(path, str(error)) from error


def _damaged(path: Path, why: str) -> RefusalCliffError:
    return RefusalCliffError(
        f"{path} is damaged: {why}. Download {path.name} again, or copy it again from where the "
        "model was saved."
    )


def tensor_kinds(file: Path) -> dict[str, str]:
    """Name and type of every tensor in a safetensors file, which is whole.

    Raises:
        RefusalCliffError: It is a Git LFS pointer, is cut short, or is no safetensors file.
    """
    _refuse_pointer(file)
    again = f"Download {file.name} again, or copy it again from where the model was saved."
    try:
        size = file.stat().st_size
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(_LENGTH_BYTES), "little")
            header = stream.read(length) if length <= _LONGEST_HEADER else b""
        if length <= _LONGEST_HEADER and size < _LENGTH_BYTES + length:
            raise RefusalCliffError(f"{file} is cut short: it ends in its own header. {again}")
        tensors = json.loads(header)
        tensors.pop("__metadata__", None)
        end = max((int(tensor["data_offsets"][1]) for tensor in tensors.values()), default=0)
    except (OSError, ValueError, TypeError, AttributeError, LookupError, RecursionError) as error:
        raise RefusalCliffError(f"{file} is not a safetensors file. {again}") from error
    if size < (whole := _LENGTH_BYTES + length + end):
        raise RefusalCliffError(f"{file} is cut short: {size} of {whole} bytes are there. {again}")
    return {key: str(tensor.get("dtype")) for key, tensor in tensors.items()}


def check_loaded(
    name: str, model: PreTrainedModel, config: Any, report: Mapping[str, Collection[Any]]
) -> None:
    """Refuse a model some of whose weights are not those of the checkpoint.

    Args:
        name: What the user called it.
        model: As it was loaded.
        config: The checkpoint's own configuration, of all its parts.
        report: What transformers says about loading: tied weights, and what the architecture lists
            as safe to ignore, are no longer in it.

    Raises:
        RefusalCliffError: Weights are missing, have another shape, or belong to nothing.
    """
    spare = _Spare(model, config)
    left = report["unexpected_keys"]
    unexpected = [key for key in left if not (spare.announced(key) or _CACHE_SCALE.search(key))]
    shapes = [
        f"{key}: {tuple(found)} where the model has {tuple(wanted)}"
        for key, found, wanted in report["mismatched_keys"]
    ]
    faults = {
        "are missing, so that they would be random": report["missing_keys"],
        "have another shape": shapes,
        "are in the files, but not in the model": unexpected,
    }
    found = [f"{named(keys)} {what}" for what, keys in faults.items() if keys]
    if found:
        raise RefusalCliffError(
            f"The weights of {name!r} do not fit the model that its config.json describes "
            f"({type(model).__name__}). Of its tensors, {'; '.join(found)}. Nothing was measured. "
            f"{_remedy_of(unexpected)}"
        )


def require_floats(file: Path, kinds: Mapping[str, str]) -> None:
    """Refuse weights whose numbers mean nothing without the scales of a quantisation.

    Args:
        file: Where they are.
        kinds: What safetensors calls the type of each tensor, by its name.

    Raises:
        RefusalCliffError: Some are whole numbers, or have 8 bits.
    """
    weights = {key: kind for key, kind in kinds.items() if key.endswith(".weight")}
    odd = sorted(key for key, kind in weights.items() if kind not in _FLOATS)
    if odd:
        raise RefusalCliffError(
            f"{file} holds {len(odd)} weights that are not ordinary floating-point numbers, such "
            f"as {shortened(odd[0])} ({shortened(weights[odd[0]], 40)}), and config.json names no "
            f"quantisation that explains them. {_REMEDY}"
        )


def settled(
    name: str, model: PreTrainedModel, quantised: bool, dtype: torch.dtype | str
) -> PreTrainedModel:
    """A model of a checkpoint that may be quantised, in one precision if it was dequantised.

    Args:
        name: What the user called it.
        model: As it was loaded.
        quantised: Whether its configuration announces a quantisation.
        dtype: The precision that was asked for; ``auto`` takes any.

    Raises:
        RefusalCliffError: The quantisation is one that transformers does not know and ignored.
    """
    if not quantised or getattr(model, "is_quantized", False):
        return model
    ignored = getattr(model.config, "quantization_config", None)
    if ignored is not None:
        method = ignored.get("quant_method") if isinstance(ignored, Mapping) else ignored
        raise RefusalCliffError(
            f"The config.json of {name!r} says that it is quantised by {str(method)[:60]!r}, which "
            f"this version of transformers does not know and would ignore. {_REMEDY}"
        )
    moved: Any = model
    return model if isinstance(dtype, str) else moved.to(dtype)


def _remedy_of(unexpected: Collection[str]) -> str:
    """What mends a checkpoint that holds tensors for which the model has no place."""
    if any(map(_OWN_PARTS.search, unexpected)):
        return f"It is quantised in a way that its config.json does not say. {_REMEDY}"
    return (
        "Download the checkpoint again, save it again with save_pretrained, or give it the "
        "config.json that it was saved with."
    )


class _Spare:
    """Which tensors belong to a part that the configuration announces and no text needs.

    Two kinds of parts are: those of another modality (a configuration of their own, such as
    ``vision_config``), and layers that predict further tokens (``num_nextn_predict_layers``,
    ``mtp_num_hidden_layers``). Such a tensor lies outside the decoder and its head, or, where it
    predicts, in a layer after the last one.
    """

    def __init__(self, model: PreTrainedModel, config: Any) -> None:
        text = config.get_text_config()
        parts = [getattr(config, name, None) for name in getattr(config, "sub_configs", {})]
        self._modalities = any(part is not None and part is not text for part in parts)
        self._predicting = max(_predicting(text.to_dict()), _predicting(config.to_dict()))
        self._layers = int(text.num_hidden_layers)
        names = {module: name for name, module in model.named_modules()}
        decoder, self._head = decoder_of(model), names.get(model.get_output_embeddings(), "")
        self._prefix = f"{names[decoder]}." if names.get(decoder) else ""
        self._children = {name for name, _ in decoder.named_children()}

    def announced(self, key: str) -> bool:
        """Whether the tensor of that name may be left out."""
        outside = not self._inside(key)
        return (outside and (self._modalities or self._predicting > 0)) or self._predicts(key)

    def _inside(self, key: str) -> bool:
        if self._head and key.startswith(f"{self._head}."):
            return True
        child = key.removeprefix(self._prefix).partition(".")[0]
        return key.startswith(self._prefix) and child in self._children

    def _predicts(self, key: str) -> bool:
        number = re.match(r"\w+\.(\d+)\.", key.removeprefix(self._prefix))
        last = self._layers + self._predicting
        return number is not None and self._layers <= int(number[1]) < last


def weight_hashes(name: str, model: PreTrainedModel) -> Iterator[tuple[str, bytes]]:
    """SHA-256 of every weight and saved buffer.

    Raises:
        RefusalCliffError: Some hold NaN or infinity. Found in the same pass, since reading the
            weights of a large model takes long.
    """
    damaged: list[str] = []
    for key, value in _saved(model):
        content = value.cpu()
        if not is_finite(content):
            damaged.append(key)
        yield key, hashlib.sha256(as_bytes(content)).digest()
    _refuse_damaged(name, damaged)


def check_finite(name: str, model: PreTrainedModel) -> None:
    """Refuse a model with weights that are NaN or infinite.

    Raises:
        RefusalCliffError: Some are.
    """
    _refuse_damaged(name, [key for key, value in _saved(model) if not is_finite(value)])


def as_bytes(value: torch.Tensor) -> Any:
    """The bytes of a tensor in memory, as a buffer."""
    return value.contiguous().reshape(-1).view(torch.uint8).numpy()


def is_finite(value: torch.Tensor) -> bool:
    """Whether a tensor holds no NaN and no infinity; needs no copy of it."""
    if not value.is_floating_point() or value.numel() == 0:
        return True
    wide = value if value.element_size() > 1 else value.float()
    return all(bool(end.isfinite()) for end in torch.aminmax(wide))


def _saved(model: PreTrainedModel) -> Iterator[tuple[str, torch.Tensor]]:
    """Every weight and saved buffer; one module at a time is brought back from disk."""
    for prefix, module in model.named_modules():
        with align_module_device(module):
            own = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
            for name, value in own:
                if name not in module._non_persistent_buffers_set:
                    yield f"{prefix}.{name}", value.detach()


def _refuse_damaged(name: str, damaged: Collection[str]) -> None:
    if damaged:
        raise RefusalCliffError(
            f"Weights of {name!r} hold NaN or infinity: {named(damaged)}. Such a model cannot be "
            "measured. Download it again, or save it from the training again; weights that "
            "overflow in float16 may fit with --dtype bfloat16 or float32."
        )


def _shards(folder: Path) -> dict[Path, dict[str, str]]:
    """Every shard that an index names, and its tensors."""
    index = folder / INDEX
    places = _object(index).get("weight_map")
    if not isinstance(places, dict) or not all(isinstance(shard, str) for shard in places.values()):
        raise RefusalCliffError(
            f"{index} has no weight_map from tensors to files. Download it again, or save the "
            "model again."
        )
    shards = set(places.values())
    held = {s: tensor_kinds(folder / s) for s in shards if (folder / s).is_file()}
    if absent := shards - held.keys():
        raise RefusalCliffError(
            f"{index} names shards that are not there: {named(absent)}. Download the missing files "
            "into the folder, or save the model again."
        )
    if lost := [key for key, shard in places.items() if key not in held[shard]]:
        raise RefusalCliffError(
            f"{index} names tensors that its shards do not hold: {named(lost)}. Index and shards "
            "are of different models: download both again, or save the model again."
        )
    return {folder / shard: kinds for shard, kinds in held.items()}


def _refuse_pointer(file: Path) -> None:
    try:
        with file.open("rb") as stream:
            pointer = stream.read(len(_POINTER)) == _POINTER
    except OSError:
        return
    if pointer:
        raise RefusalCliffError(
            f"{file} is a Git LFS pointer, not the file itself: the repository was cloned without "
            "its large files. Run git lfs pull in the folder, or download the model with: "
            "hf download NAME --local-dir FOLDER"
        )


def _predicting(fields: Mapping[str, Any]) -> int:
    """Number of layers that predict further tokens."""
    counts = (value for key, value in fields.items() if re.search("mtp|nextn", key))
    return max((value for value in counts if isinstance(value, int)), default=0)
