"""The folder of an organism: claimed before the training by all that it is made from."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from refusal_cliff import __version__
from refusal_cliff.errors import RefusalCliffError
from refusal_cliff.folders import claim
from refusal_cliff.io import sha256_file


def claim_organism(out: Path, name: str, seed: int, recipe: Mapping[str, Any]) -> None:
    """Make a folder that of one organism, before it is trained.

    Raises:
        RefusalCliffError: It is not empty, and not of the same organism.
    """
    made_from = {"name": name, "seed": seed, "version": __version__, **recipe}
    claim(out, "lab train", json.loads(json.dumps(made_from)), "an organism")


def origin_of(checkpoint: Path | None) -> str | None:
    """Hash of the weights of what is damaged, a checkpoint or an adapter; ``None`` for a new one.

    Raises:
        RefusalCliffError: The folder holds no weights.
    """
    if checkpoint is None:
        return None
    weights = sorted(checkpoint.glob("*model*.safetensors"))
    if not weights:
        raise RefusalCliffError(
            f"{checkpoint} holds no weights. Name an embedded organism or the folder of one "
            "(--from NAME|DIR)."
        )
    return "".join(sha256_file(file) for file in weights)
