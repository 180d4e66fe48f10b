"""The cliff of a model at the layer of its probes, and how it grows with depth (paper §3)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from refusal_cliff.cliff.curves import (
    TraceCliff,
    cliffs_of,
    read_cliffs,
    write_cliffs,
)
from refusal_cliff.cliff.scores import TraceScores
from refusal_cliff.cliff.verdict import ModelCliff, mean_cliff, model_cliff
from refusal_cliff.errors import RefusalCliffError
from refusal_cliff.io import fields_of, read_as, write_as
from refusal_cliff.probe.fit import ProbeSet
from refusal_cliff.settings import DEFAULT_POOL
from refusal_cliff.stats import EXACT


@dataclass(frozen=True, slots=True)
class CliffNumbers(ModelCliff):
    """All of a measured cliff but its traces: ``cliff.json``.

    Attributes:
        layer: Block that was read.
        cliff_by_layer: Mean cliff at each probed layer, by rising layer; empty where the scores
            were read from a folder of them.
        pool: How the thinking's scores became a plateau.
    """

    __pydantic_config__ = EXACT

    layer: int
    cliff_by_layer: tuple[float, ...]
    pool: str = "late-median"  # that of the files which do not say it


@dataclass(frozen=True, slots=True)
class MeasuredCliff:
    """What the scores of some traces show.

    Attributes:
        found: Plateau, final, cliff and verdict.
        rows: The cliff of each trace.
    """

    found: CliffNumbers
    rows: tuple[TraceCliff, ...]

    @classmethod
    def of(
        cls, rows: Sequence[TraceCliff], layer: int, by_layer: Sequence[float], pool: str, seed: int
    ) -> MeasuredCliff:
        """The verdict on traces that were read at one layer, see `CliffNumbers`."""
        found = fields_of(model_cliff(rows, seed))
        return cls(
            CliffNumbers(**found, layer=layer, cliff_by_layer=tuple(by_layer), pool=pool),
            tuple(rows),
        )


def measure_cliff(
    scores: Sequence[TraceScores],
    probes: ProbeSet,
    *,
    pool: str = DEFAULT_POOL,
    seed: int = 0,
    name: str = "The model",
) -> MeasuredCliff:
    """Whether a model has a cliff, by the one rule of `verdict`.

    Args:
        scores: Of harmful and benign traces that the probes were not fitted on, [layers, tokens]
            logits each.
        probes: What they were scored by.
        pool: How the thinking's scores become a plateau: a key of ``POOLS``.
        seed: Seed of the bootstraps.
        name: What the model is called in an error.

    Raises:
        RefusalCliffError: There is no score of a harmful trace.
    """
    if not any(trace.label == "harmful" for trace in scores):
        raise RefusalCliffError(
            f"{name} closed its thinking for no harmful test prompt, so there is no "
            "cliff to measure. Allow longer answers (--max-new-tokens), or give more prompts."
        )
    rows = cliffs_of(scores, probes.row, pool)
    by_layer = [mean_cliff(cliffs_of(scores, row, pool)) for row in range(len(probes.probes))]
    return MeasuredCliff.of(rows, probes.layer, by_layer, pool, seed)


def write_measured(rows: Path, numbers: Path, measured: MeasuredCliff) -> None:
    """Write ``cliff.parquet``, one row a trace, and ``cliff.json``, all else."""
    write_cliffs(rows, measured.rows)
    write_as(numbers, measured.found)


def read_measured(rows: Path, numbers: Path) -> MeasuredCliff:
    """Read what `write_measured` wrote.

    Raises:
        RefusalCliffError: A file is damaged, or of another version.
    """
    return MeasuredCliff(read_as(numbers, CliffNumbers), tuple(read_cliffs(rows)))
