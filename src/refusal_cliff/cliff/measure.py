"""The cliff of a model at the layer of its probes, and how it grows with depth (paper §3)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from refusal_cliff.cliff.curves import DEFAULT_POOL, TraceCliff, cliffs_of
from refusal_cliff.cliff.scores import TraceScores
from refusal_cliff.cliff.verdict import ModelCliff, model_cliff
from refusal_cliff.errors import RefusalCliffError
from refusal_cliff.probe.fit import ProbeSet


@dataclass(frozen=True, slots=True)
class MeasuredCliff:
    """What the scores of some traces show.

    Attributes:
        found: Plateau, final, cliff and verdict at the probes' layer.
        rows: The cliff of each trace there.
        layer: That layer.
        by_layer: Mean cliff at each probed layer, by rising layer.
    """

    found: ModelCliff
    rows: tuple[TraceCliff, ...]
    layer: int
    by_layer: tuple[float, ...]


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
    depth = [model_cliff(cliffs_of(scores, row, pool), seed) for row in range(len(probes.probes))]
    return MeasuredCliff(
        model_cliff(rows, seed), tuple(rows), probes.layer, tuple(one.cliff for one in depth)
    )
