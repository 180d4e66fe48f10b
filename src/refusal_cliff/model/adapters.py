"""PEFT adapters: what they stand on, which module each of their tensors is for, and merging them.

An adapter is merged into the weights, so that heads are those of the model that a user would run.
Nothing about that is taken on trust: every tensor is used or the adapter is refused, and the merged
model must say what PEFT says without merging.
"""

from __future__ import annotations

import hashlib
import os
import warnings
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from safetensors.torch import load_file
from torch import nn
from transformers import PreTrainedModel
from transformers.utils.peft_utils import find_adapter_config_file

from refusal_cliff.errors import RefusalCliffError
from refusal_cliff.io import on_disk, read_json
from refusal_cliff.model.adapter_names import ROOT, ModuleNames, Tensors
from refusal_cliff.model.architecture import few_tokens
from refusal_cliff.model.blocks import input_device
from refusal_cliff.model.weights import as_bytes, is_finite, named, require_floats, tensor_kinds

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
HOW_TO_LOAD = """```python
from peft import PeftModel
from transformers import AutoModelForCausalLM

model = AutoModelForCausalLM.from_pretrained(base_model)
model = PeftModel.from_pretrained(model, folder)  # model.disable_adapter() undoes it
```

Where `base_model_name_or_path` in `adapter_config.json` is the way to a folder, it starts at the
folder of the adapter. PEFT's `AutoPeftModel` looks for it from the folder in which it runs: name
the base as above, or run in the folder of the adapter."""
"""For a model card: what works wherever it runs, and why `AutoPeftModel` may not."""
_FILES = [ADAPTER_CONFIG, ADAPTER_WEIGHTS, "*token*", "*.jinja", "*.model", "vocab*", "merges*"]
_WHOLE_WEIGHT = (".weight", ".base_layer.weight")
_NAME = ".default"
_ROUNDING = {torch.float64: 1e-5, torch.float32: 1e-3, torch.float16: 5e-2, torch.bfloat16: 1e-1}
"""What rounding may cost in all blocks together, relative to the logits."""
_LAST_TOKENS = 4


def chain(location: str, locate: Callable[[str], str]) -> list[str]:
    """An adapter, what it stands on, and so on, down to the checkpoint.

    Args:
        location: A folder, or a Hugging Face name.
        locate: From the name of a base to its folder, or to a Hugging Face name.

    Raises:
        RefusalCliffError: An adapter stands on itself, its weights are not safetensors, or it names
            no base.
    """
    found = [location]
    while base := _base_of(Path(found[-1]), locate):
        if base in found:
            raise RefusalCliffError(
                f"The adapter {found[-1]} names {base} as its base, but that is itself based on "
                f"this adapter. Correct base_model_name_or_path in {ADAPTER_CONFIG}."
            )
        found.append(base)
    return found


def downloaded(name: str) -> str:
    """The folder of an adapter on the Hugging Face hub, with its files; other names as they are.

    transformers would load it beside its base without a word, so that heads would be those of
    neither.
    """
    try:
        if find_adapter_config_file(name) is None:
            return name
        return snapshot_download(name, allow_patterns=_FILES)
    except (OSError, ValueError):  # no such name, or no network: loading the model says so
        return name


def base_name(source: Path | None, name: str, folder: Path) -> str:
    """How an adapter in ``folder`` should name its base: portable, and without private paths.

    Args:
        source: The folder of the base, if it is on this machine.
        name: What the user called it.
        folder: Where the adapter will be.

    Returns:
        The name, unless it is that of a folder; then the way to it from the adapter's own folder.
    """
    if source is None or not on_disk(name):
        return name
    return Path(os.path.relpath(source.resolve(), folder.resolve())).as_posix()


def merged(model: PreTrainedModel, folder: Path) -> tuple[PreTrainedModel, bytes]:
    """Put a PEFT adapter into the weights of a model; an adapter trained on it will name this one.

    Args:
        model: What the adapter stands on. Changed in place.
        folder: The adapter.

    Raises:
        RefusalCliffError: The adapter cannot be merged, is damaged, does not fit, or does something
            else when merged than PEFT does with it unmerged.
    """
    config, tensors = _config(folder), _tensors(folder)
    if any(weight.device.type == "meta" for weight in model.parameters()):
        raise RefusalCliffError(
            f"The adapter {folder} cannot be merged: not all weights of its model fit on the GPUs. "
            "Use larger or more of them, a smaller --dtype, or --device cpu without --device-map."
        )
    with warnings.catch_warnings():  # of what PEFT asks transformers, nothing that a user can mend
        warnings.simplefilter("ignore")
        config, tensors = ModuleNames(model).fitted(folder, config, tensors)
        _resize(folder, model, tensors)
        plain = _logits(model)
        adapted = _adapted(folder, model, config, tensors)
        _untie(adapted)
        try:
            expected = _logits(adapted)
            found = adapted.merge_and_unload()
        except Exception as error:  # whatever a kind of adapter says that cannot be run or merged
            raise RefusalCliffError(_unmergeable(folder, config, reason(error))) from error
    _say_what_is_tied(found)
    _check_equal(folder, model, _logits(found), expected)
    found.name_or_path = str(folder)
    changed = not torch.equal(plain, expected)
    return found, b"" if changed else _digest(tensors)


def reason(error: BaseException) -> str:
    """What a library says, in one line; the second where the first only introduces it."""
    lines = [line.strip() for line in str(error).strip().splitlines() if line.strip()]
    said = " ".join(lines[:2]) if lines and lines[0].endswith(":") else (lines or [""])[0]
    return (said or type(error).__name__).rstrip(".") + "."


def _base_of(folder: Path, locate: Callable[[str], str]) -> str:
    """Where the base of a PEFT adapter is; empty where the folder is no adapter."""
    if not on_disk(folder) or not (folder / ADAPTER_CONFIG).is_file():
        return ""
    card = read_json(folder / ADAPTER_CONFIG)
    base = card.get("base_model_name_or_path") if isinstance(card, dict) else None
    if not base or not (folder / ADAPTER_WEIGHTS).is_file():
        raise RefusalCliffError(
            f"{folder} is an adapter that names no base model or holds no {ADAPTER_WEIGHTS}. "
            "Save it with PEFT's save_pretrained, from its base model."
        )
    beside = folder / str(base)
    return str(beside.resolve()) if on_disk(beside) else locate(str(base))


def _config(folder: Path) -> Any:
    """The adapter's configuration, of a kind that can be merged."""
    from peft import PeftConfig  # slow to import

    if not (folder / ADAPTER_CONFIG).is_file():  # PEFT would look for it on the network
        raise RefusalCliffError(
            f"There is no {ADAPTER_CONFIG} in {folder}. Give an adapter's folder."
        )
    try:
        config: Any = PeftConfig.from_pretrained(str(folder))
    except Exception as error:  # whatever PEFT does with values that it did not write
        raise RefusalCliffError(
            f"Could not read {folder / ADAPTER_CONFIG}: {reason(error)} Save the adapter again "
            "with PEFT's save_pretrained, or update peft if a newer one wrote it."
        ) from error
    if config.is_prompt_learning or config.is_adaption_prompt:
        why = "It adds virtual tokens to the prompt, which are no weights of any layer."
        raise RefusalCliffError(_unmergeable(folder, config, why))
    if getattr(config, "layer_replication", None):
        why = "It repeats layers of its base (layer_replication), so that the model is another."
        raise RefusalCliffError(_unmergeable(folder, config, why))
    config.inference_mode = True
    return config


def _unmergeable(folder: Path, config: Any, why: str) -> str:
    kind = str(getattr(config.peft_type, "value", config.peft_type))
    return (
        f"The adapter {folder} ({kind}) cannot be merged into the model's weights: {why} Heads are "
        "measured in a model whose weights are all its own. Use an adapter that changes weights, "
        "such as LoRA."
    )


def _tensors(folder: Path) -> Tensors:
    file = folder / ADAPTER_WEIGHTS
    kinds = tensor_kinds(file)
    require_floats(file, {f"{key}.weight": kind for key, kind in kinds.items()})
    try:
        tensors = load_file(file)
    except Exception as error:  # whatever safetensors and torch do with a header that is damaged
        raise RefusalCliffError(
            f"Could not read {file}: {reason(error)} Save the adapter again, or copy it again."
        ) from error
    if damaged := [key for key, value in tensors.items() if not is_finite(value)]:
        raise RefusalCliffError(
            f"{file} holds NaN or infinity in {named(damaged)} of its tensors. The training "
            "diverged or the file is damaged: use an earlier checkpoint of it."
        )
    return {key: value for key, value in tensors.items() if not _is_copy(key, tensors)}


def _is_copy(key: str, tensors: Tensors) -> bool:
    """Whether a tensor only repeats another, or the base.

    PEFT writes embeddings that were trained whole and given new rows three times: as what they
    are, under the name of its wrapper, and as they were before the training.
    """
    for wrapper in (".modules_to_save", ".original_module"):
        own = tensors.get(key.replace(f"{wrapper}.", ".")) if f"{wrapper}." in key else None
        if own is not None:
            return wrapper == ".original_module" or torch.equal(own, tensors[key])
    return False


def _resize(folder: Path, model: PreTrainedModel, tensors: Tensors) -> None:
    """Give the embeddings as many rows as the adapter has, whose tokenizer was extended."""
    modules = {module: name for name, module in model.named_modules()}
    head: Any = model.get_output_embeddings()
    inner, outer = modules[model.get_input_embeddings()], modules.get(head)
    wholes = [_whole(tensors, name) for name in filter(None, (inner, outer))]
    rows = {int(whole.shape[0]) for whole in wholes if whole is not None}
    rows |= {v.shape[1] for k, v in tensors.items() if k == f"{ROOT}{inner}.lora_embedding_A"}
    rows |= {v.shape[0] for k, v in tensors.items() if k == f"{ROOT}{outer}.lora_B.weight"}
    weight: Any = model.get_input_embeddings().weight
    if rows <= {weight.shape[0]}:
        return
    tied = head is not None and head.weight is weight
    needed = wholes[:1] if tied else wholes
    if len(rows) > 1 or any(whole is None for whole in needed):
        raise RefusalCliffError(
            f"The adapter {folder} was trained on embeddings of {' or '.join(map(str, rows))} "
            f"tokens and its base has {weight.shape[0]}, but it does not hold the rows of the "
            "added tokens. Save it with save_pretrained(…, save_embedding_layers=True) on the "
            "machine where it was trained."
        )
    model.resize_token_embeddings(rows.pop(), mean_resizing=False)


def _whole(tensors: Mapping[str, torch.Tensor], name: str) -> torch.Tensor | None:
    """The full weight of a module, where an adapter holds it."""
    return next((tensors[k] for end in _WHOLE_WEIGHT if (k := ROOT + name + end) in tensors), None)


def _adapted(folder: Path, model: PreTrainedModel, config: Any, tensors: Tensors) -> Any:
    """The model with the adapter beside its weights, every tensor in its place."""
    from peft import PeftModel, set_peft_model_state_dict
    from peft.mapping import PEFT_TYPE_TO_PREFIX_MAPPING

    try:
        adapted = PeftModel(model, config)
        loaded: Any = set_peft_model_state_dict(adapted, tensors)
    except KeyError as error:  # a module that was to be saved whole
        raise _unfit(folder, [], [str(error.args[0])] if error.args else []) from error
    except Exception as error:  # whatever PEFT does with values that it did not write
        raise RefusalCliffError(
            f"Could not put the adapter {folder} on its base: {reason(error)} Use the base that it "
            "was trained on (base_model_name_or_path), or save the adapter again."
        ) from error
    prefix = PEFT_TYPE_TO_PREFIX_MAPPING.get(config.peft_type, "")
    missing = [k for k in loaded.missing_keys if prefix in k and ".default" in k]
    unused, missing = (
        [k.replace(".default", "") for k in keys] for keys in (loaded.unexpected_keys, missing)
    )
    if unused or missing:
        raise _unfit(folder, unused, missing)
    return adapted.eval()


def _unfit(folder: Path, unused: Collection[str], missing: Collection[str]) -> RefusalCliffError:
    faults = {"belong to no module of the base": unused, "are asked for, but not there": missing}
    found = "; ".join(f"{named(keys)} {what}" for what, keys in faults.items() if keys)
    return RefusalCliffError(
        f"The adapter {folder} does not fit its base: of its tensors, {found}. Part of it would "
        "have been ignored silently. Use the base that it was trained on "
        "(base_model_name_or_path), or save the adapter again with PEFT's save_pretrained."
    )


def _untie(adapted: Any) -> None:
    """Give each layer that the adapter changes a weight of its own, where it shares one.

    PEFT adds to the output of such a layer alone; merged into a shared weight, the change would
    also reach the other layer (LoRA on the tied ``lm_head`` would change the embeddings).
    """
    from peft.tuners.tuners_utils import BaseTunerLayer

    layers = list(adapted.modules())
    users = Counter(id(p) for layer in layers for p in layer.parameters(recurse=False))
    changed = [layer.get_base_layer() for layer in layers if isinstance(layer, BaseTunerLayer)]
    for layer in {id(layer): layer for layer in changed}.values():
        for key, value in list(layer.named_parameters(recurse=False)):
            if users[id(value)] > 1:
                setattr(layer, key, nn.Parameter(value.detach().clone(), value.requires_grad))


def _say_what_is_tied(model: Any) -> None:
    """Untied embeddings are saved, and loaded again, as such."""
    inner, outer = model.get_input_embeddings(), model.get_output_embeddings()
    if outer is None or outer.weight is inner.weight:
        return
    for config in {id(c): c for c in (model.config, model.config.get_text_config())}.values():
        if getattr(config, "tie_word_embeddings", False):
            config.tie_word_embeddings = False
            model.all_tied_weights_keys = model.get_expanded_tied_weights_keys(all_submodels=True)


@torch.inference_mode()
def _logits(model: Any) -> torch.Tensor:
    """Logits of a few tokens, the last of the vocabulary among them, where added tokens are."""
    rows = int(model.get_input_embeddings().weight.shape[0])
    ids = torch.cat([few_tokens(rows)[0], torch.arange(max(rows - _LAST_TOKENS, 0), rows)])[None]
    device = input_device(model)
    mask = torch.ones_like(ids)
    inputs = {"input_ids": ids.to(device), "attention_mask": mask.to(device)}
    return model(**inputs, use_cache=False).logits[0].double().cpu()


def _check_equal(
    folder: Path, model: PreTrainedModel, found: torch.Tensor, expected: torch.Tensor
) -> None:
    """Merged, the adapter must do what PEFT does with it unmerged, but for what rounding costs.

    The median over tokens is taken, since rounding can send one token to another expert.
    """
    error = float(((found - expected).norm(dim=-1) / expected.norm(dim=-1)).median())
    if not error <= _ROUNDING.get(model.dtype, _ROUNDING[torch.bfloat16]):
        raise RefusalCliffError(
            f"The adapter {folder} does something else when it is merged than when PEFT runs it: "
            f"the logits differ by {error:.1%}. It cannot be measured as weights. Use an adapter "
            "of ordinary LoRA, or --dtype float32 if the rounding of this precision is to blame."
        )


def _digest(tensors: Mapping[str, torch.Tensor]) -> bytes:
    digest = hashlib.sha256()
    for key, value in sorted(tensors.items()):
        digest.update(key.encode())
        digest.update(as_bytes(value))
    return digest.digest()
