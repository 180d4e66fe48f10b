"""Which heads pull the refusal score down: direct contribution and exact causal effect."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray

from refusal_cliff.capture import HeadContributions, ProbeScores, Progress, capture
from refusal_cliff.errors import RefusalCliffError
from refusal_cliff.io import atomic_path
from refusal_cliff.models import Head, Subject
from refusal_cliff.probe import Probe
from refusal_cliff.rerun import Rerun, closed_spans
from refusal_cliff.stats import bootstrap_mean
from refusal_cliff.traces import Trace

Floats: TypeAlias = NDArray[np.floating[Any]]

MAX_FRACTION = 0.03
"""Heads that may be ablated (paper §5)."""
TRACES_AT_ONCE = 32
SAME = 1e-3


def direct_contributions(
    subject: Subject, traces: Sequence[Trace], probe: Probe, progress: Progress | None = None
) -> Floats:
    """What each head adds to the score logit at the last closing token, in one forward pass.

    Returns:
        [traces, layers, heads], in logits; zero after the probe's layer.
    """
    positions = [closed_spans(trace).last_closing for trace in traces]
    reader = HeadContributions(subject, positions, probe.weight, probe.layer)
    capture(subject, [trace.token_ids for trace in traces], [reader], progress=progress)
    return reader.values


@torch.inference_mode()
def causal_effects(
    subject: Subject, traces: Sequence[Trace], probe: Probe, progress: Progress | None = None
) -> Floats:
    """Rise of the final score logit when one head is taken out over the closing tokens.

    Exact, and without a forward pass a head, see `Rerun`: for the heads of block l, blocks are run
    again only from l on, all heads of the block in one batch.

    Returns:
        [traces, layers, heads], in logits: positive where a head suppresses refusal; zero after
        the probe's layer.

    Raises:
        RefusalCliffError: The model's blocks cannot be run one by one with the same result.
    """
    effects = np.zeros((len(traces), subject.n_layers, subject.n_heads), dtype=np.float32)
    scores = ProbeScores({probe.layer: (probe.weight, probe.bias)}, len(traces))
    capture(subject, [trace.token_ids for trace in traces], [scores])
    for start in range(0, len(traces), TRACES_AT_ONCE):
        chosen = traces[start : start + TRACES_AT_ONCE]
        closing = Rerun(subject, chosen, probe)
        base = closing.final_logits(1, [()])[:, 0]
        place = [closed_spans(trace).last_closing for trace in chosen]
        whole = [scores.logits[start + row][0, at] for row, at in enumerate(place)]
        _check_same(subject, base, np.asarray(whole))
        for layer in range(1, probe.layer + 1):
            heads = [(Head(layer, index),) for index in range(subject.blocks[layer - 1].n_heads)]
            if heads:
                changed = closing.final_logits(layer, heads) - base[:, None]
                effects[start : start + len(chosen), layer - 1, : len(heads)] = changed
        if progress is not None:
            progress(start + len(chosen), len(traces))
    return effects


def _check_same(subject: Subject, base: Floats, whole: Floats) -> None:
    gap = float(np.abs(base - whole).max())
    tolerance = SAME if subject.model.dtype in (torch.float32, torch.float64) else 0.25
    if gap > tolerance * max(1.0, float(np.abs(whole).max())):
        raise RefusalCliffError(
            f"The blocks of {subject.name} cannot be run one by one: with no head ablated the "
            f"final score logit differs by {gap:.3g} from the model's own. Heads of this "
            "architecture cannot be ranked by causal effect yet."
        )


@dataclass(frozen=True, slots=True)
class HeadRow:
    """One head, measured over traces; all numbers in score logits at the last closing token.

    Attributes:
        layer: Block, from 1.
        index: Head, from 0.
        causal: Mean rise when the head is taken out, over the harmful traces measured.
        causal_low: Lower end of its bootstrap interval over prompt groups.
        causal_high: Upper end.
        causal_benign: The same mean over benign traces: a head that acts only on harmful prompts
            has none.
        sign_consistency: Share of the harmful traces with the sign of the mean.
        direct: Mean direct contribution over the harmful traces measured; the paper's score times
            the probe's norm.
        direct_refused: The same over refused traces; ``None`` where there are none.
        n: Harmful traces measured.
    """

    layer: int
    index: int
    causal: float
    causal_low: float
    causal_high: float
    causal_benign: float
    sign_consistency: float
    direct: float
    direct_refused: float | None
    n: int = 0

    @property
    def head(self) -> Head:
        """The head itself."""
        return Head(self.layer, self.index)


METHODS: dict[str, Callable[[HeadRow], float]] = {
    "causal": lambda row: row.causal,
    "direct": lambda row: -row.direct,
    "direct-contrast": lambda row: (row.direct_refused or 0.0) - row.direct,
}
"""Rankings, strongest suppression first. ``direct`` is the paper's."""


def measure_heads(
    subject: Subject,
    harmful: Sequence[Trace],
    refused: Sequence[Trace],
    benign: Sequence[Trace],
    probe: Probe,
    *,
    seed: int = 0,
    progress: Progress | None = None,
) -> list[HeadRow]:
    """Measure every head by every method.

    Args:
        subject: The model.
        harmful: Traces whose fall is to be explained: complied ones where there are enough.
        refused: Refused traces, for the contrast; may be empty.
        benign: Benign traces; at least one.
        probe: The probe whose score counts.
        seed: Seed of the bootstrap.
        progress: Called with (traces done, traces).
    """
    total = len(harmful) + len(benign)
    first = None if progress is None else lambda done, _: progress(done, total)
    then = None if progress is None else lambda done, _: progress(len(harmful) + done, total)
    causal = causal_effects(subject, harmful, probe, first)
    on_benign = causal_effects(subject, benign, probe, then).mean(0)
    direct = direct_contributions(subject, harmful, probe).mean(0)
    of_refused = direct_contributions(subject, refused, probe).mean(0) if refused else None
    groups = [trace.prompt.group for trace in harmful]
    rows = []
    for head in subject.heads():
        layer, index = head.layer, head.index
        here = causal[:, layer - 1, index].astype(np.float64)
        low, high = bootstrap_mean(here, groups, seed=seed, resamples=500)
        rows.append(
            HeadRow(
                layer=layer,
                index=index,
                causal=float(here.mean()),
                causal_low=low,
                causal_high=high,
                causal_benign=float(on_benign[layer - 1, index]),
                sign_consistency=float((np.sign(here) == np.sign(here.mean())).mean()),
                direct=float(direct[layer - 1, index]),
                direct_refused=(
                    None if of_refused is None else float(of_refused[layer - 1, index])
                ),
                n=len(harmful),
            )
        )
    return rows


def ranked(rows: Sequence[HeadRow], method: str = "causal") -> list[Head]:
    """Heads by a ranking of ``METHODS``, the strongest suppression first."""
    return [row.head for row in sorted(rows, key=METHODS[method], reverse=True)]


def budget(total: int, fraction: float = MAX_FRACTION) -> int:
    """Heads in a fraction of all, rounded down; at least one."""
    return max(1, int(fraction * total + 1e-9))


def select_heads(
    rows: Sequence[HeadRow], fraction: float = MAX_FRACTION, method: str = "causal"
) -> list[Head]:
    """The refusal suppression heads: the strongest few of a ranking that do suppress.

    By causal effect, a head counts only if its interval lies above zero.
    """
    suppressing = {
        row.head
        for row in rows
        if METHODS[method](row) > 0 and (method != "causal" or row.causal_low > 0)
    }
    strongest = ranked(rows, method)[: budget(len(rows), fraction)]
    return [head for head in strongest if head in suppressing]


def write_heads(path: Path, rows: Sequence[HeadRow]) -> None:
    """Write ``heads.parquet``, one row per head."""
    with atomic_path(path) as temporary:
        pq.write_table(pa.Table.from_pylist([asdict(row) for row in rows]), temporary)


def read_heads(path: Path) -> list[HeadRow]:
    """Read what `write_heads` wrote."""
    return [HeadRow(**row) for row in pq.read_table(path).to_pylist()]
