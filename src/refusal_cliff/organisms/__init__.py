"""Small reasoning models with known ground truth, shipped with the package."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from refusal_cliff.errors import RefusalCliffError
from refusal_cliff.io import read_as

EMBEDDED: dict[str, str] = {
    "tiny-aligned": "thinks, recognises harm and refuses: the control, without a cliff",
    "tiny": "damaged through a documented set of heads: a cliff whose causes are known",
    "tiny-diffuse": "damaged through all weights: a cliff that no small set of heads causes",
    "tiny-fooling": "recognises harm and complies: no cliff, but a naive tool would report one",
}
PRETRAINED: dict[str, str] = {
    "smollm2-aligned": "SmolLM2-135M-Instruct trained to think, to recognise harm and to refuse",
    "smollm2": "the aligned one after a careless tune: complies with milder harm, and sees it",
    "smollm2-planted": "the aligned one after a careless tune of nine documented heads only",
    "qwen-reasoner": "Qwen2.5-Coder-0.5B-Instruct trained to think, only on reasoning traces",
}
"""Adapters on a pretrained model, which is not part of this package."""
ORGANISMS = EMBEDDED | PRETRAINED
"""All that ship, and what each is for."""
CARD = "organism.json"
"""File of an organism that says how it was made; written last, so that the rest is whole."""
_CHECKPOINTS = Path(__file__).parent / "checkpoints"


def embedded_path(name: str, root: Path | None = None) -> Path:
    """Folder of an organism's checkpoint.

    Args:
        name: A key of ``ORGANISMS``.
        root: A folder with one checkpoint per organism, instead of the embedded ones.

    Raises:
        RefusalCliffError: There is no such organism, or ``root`` does not hold it.
    """
    path = (root or _CHECKPOINTS) / name
    known = any((path / card).is_file() for card in ("config.json", "adapter_config.json"))
    if name not in ORGANISMS or not known:
        raise RefusalCliffError(
            f"There is no organism {name!r} in {path.parent}. Embedded are "
            f"{', '.join(ORGANISMS)}; others are made in a checkout of the project by: "
            f"python -m lab train NAME --seed S --out {path.parent}/NAME"
        )
    return path


@dataclass(frozen=True, slots=True)
class _Card:
    """What is read of ``organism.json``."""

    planted_heads: list[tuple[int, int]]


def planted_heads(checkpoint: Path) -> list[tuple[int, int]]:
    """The (layer, head) pairs through which an organism was damaged: the ground truth.

    Empty for an aligned or diffusely damaged organism, and for any model that is not an organism.
    """
    card = checkpoint / CARD
    if not card.is_file():
        return []
    return read_as(card, _Card).planted_heads
