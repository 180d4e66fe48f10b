"""Many planted organisms, each with other guilty heads: the ground truth for ranking methods."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from refusal_cliff.organisms import embedded_path
from refusal_cliff.organisms.recipe import Planting, RecipeConfig, Schedule, train

Progress = Callable[[str, int, int], None]
DAMAGE = Schedule(120, 32, 3e-3)
"""Less than a third of the shipped damage: enough for a cliff."""
PLANTINGS = (
    Planting((7,), 3),
    Planting((7,), 2),
    Planting((7,), 4),
    Planting((6,), 3),
    Planting((6,), 4),
    Planting((5,), 3),
    Planting((8,), 3),
    Planting((6, 7), 2),
    Planting((5, 7), 2),
    Planting((5, 6, 7), 1),
    Planting((7, 8), 2),
    Planting((6,), 2),
)
FIRST_SEED = 100


@dataclass(frozen=True, slots=True)
class Planted:
    """One organism to make: its folder, its seed, and where its heads are planted."""

    folder: Path
    seed: int
    planting: Planting


def orchard(out: Path, n: int = len(PLANTINGS)) -> list[Planted]:
    """The first ``n`` organisms; after the last planting they begin again with other seeds."""
    return [
        Planted(out / f"organism-{i:02d}", FIRST_SEED + i, PLANTINGS[i % len(PLANTINGS)])
        for i in range(n)
    ]


def grow(planted: Planted, progress: Progress | None = None) -> Path:
    """Train one organism's damage from the shipped ``tiny-aligned``, unless that is done."""
    if not (planted.folder / "organism.json").is_file():  # written last
        config = RecipeConfig(planted=DAMAGE, planting=planted.planting)
        aligned = embedded_path("tiny-aligned")
        train("tiny", planted.seed, planted.folder, progress, config, aligned)
    return planted.folder
