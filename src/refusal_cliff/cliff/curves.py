"""Score curves to plateau, final and cliff of each trace (paper §3); no verdict is made here."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
from scipy.special import expit

from refusal_cliff.cliff.scores import TraceScores
from refusal_cliff.settings import DEFAULT_POOL
from refusal_cliff.stats import EXACT, Floats, bootstrap_mean
from refusal_cliff.tables import read_parquet, rows_as, write_parquet
from refusal_cliff.thinking.spans import late_start

LAST_THINKING = 5
"""Thinking tokens before the closing span that still count as its neighbourhood."""
WAY_DOWN = 0.1
HALF_WAY = 0.5


def _median(values: Floats) -> float:
    """The median; of a few dozen numbers, ten times as fast as NumPy's own, which checks more."""
    ordered, half = np.sort(values), len(values) // 2
    return float(ordered[half] if len(values) % 2 else (ordered[half - 1] + ordered[half]) / 2)


POOLS: dict[str, Callable[[Floats], float]] = {
    "late-median": lambda s: _median(s[late_start(len(s)) :]),
    "max": lambda s: float(s.max()),
    "q90": lambda s: float(np.quantile(s, 0.9)),
    "mean": lambda s: float(s.mean()),
}
"""How the thinking's scores become one plateau, by the names in `settings.POOLS`; ``max`` is the
paper's."""


@dataclass(frozen=True, slots=True)
class TraceCliff:
    """The cliff of one trace at one layer; scores in 0 … 1, logits beside them.

    Attributes:
        trace_id, group, label, verdict: As in `TraceScores`.
        plateau: Pool of the score over the thinking.
        final: Score at the last closing token.
        cliff: ``plateau − final``, the paper's misalignment score.
        plateau_logit: Same pool of the logits.
        final_logit: Logit at the last closing token.
        drop_position: Last token, relative to the last closing token, at which the score was within
            a tenth of the way down from the plateau.
        drop_inside: The part of ``cliff`` that falls inside the closing span and the last 5
            thinking tokens; between 0 and ``cliff``.
        late: Whether the last token above half of the way down is in the closing span or among the
            last 5 thinking tokens. In logits, so that no scale or threshold of the probe matters.
        over: What the plateau is of: the ``thinking``, or, for a model without any, the
            ``template``: what it writes between the user's text and the answer.
    """

    __pydantic_config__ = EXACT

    trace_id: str
    group: str
    label: str
    verdict: str
    plateau: float
    final: float
    cliff: float
    plateau_logit: float
    final_logit: float
    drop_position: int
    drop_inside: float
    late: bool
    over: Literal["thinking", "template"] = "thinking"


def cliff_of(trace: TraceScores, row: int, pool: str = DEFAULT_POOL) -> TraceCliff:
    """Measure one trace at one layer.

    Args:
        trace: Its scores. Where the thinking is empty, the plateau is that of the closing tokens
            before the last, of which there must be one.
        row: Row of the layer in ``trace.logits``.
        pool: A key of ``POOLS``.
    """
    spans = trace.spans
    logits = trace.logits[row].astype(np.float64)
    scores = expit(logits)
    thinks = spans.thinking > spans.prompt
    start, end = (spans.prompt, spans.thinking) if thinks else (spans.thinking, spans.last_closing)
    plateau, plateau_logit = POOLS[pool](scores[start:end]), POOLS[pool](logits[start:end])
    final = float(scores[spans.last_closing])
    cliff = plateau - final
    before = max(start, spans.thinking - LAST_THINKING - 1)
    inside = float(np.clip(scores[before] - final, 0.0, max(cliff, 0.0)))
    held = np.flatnonzero(scores[start : spans.closing] >= plateau - WAY_DOWN * max(cliff, 0.0))
    drop_position = int(start + held[-1]) - spans.last_closing if len(held) else 0
    return TraceCliff(
        trace_id=trace.trace_id,
        group=trace.group,
        label=trace.label,
        verdict=trace.verdict,
        plateau=plateau,
        final=final,
        cliff=cliff,
        plateau_logit=plateau_logit,
        final_logit=float(logits[spans.last_closing]),
        drop_position=drop_position,
        drop_inside=inside,
        late=_falls_late(logits[start : spans.closing], plateau_logit, before - start),
        over="thinking" if thinks else "template",
    )


def _falls_late(logits: Floats, plateau: float, neighbourhood: int) -> bool:
    """Whether the last token above half of the way down is one of the neighbourhood of the end."""
    half = plateau + HALF_WAY * (float(logits[-1]) - plateau)
    above = np.flatnonzero(logits >= half)
    return len(above) == 0 or int(above[-1]) >= neighbourhood


def cliffs_of(
    traces: Sequence[TraceScores], row: int, pool: str = DEFAULT_POOL
) -> list[TraceCliff]:
    """`cliff_of` for every trace that has thinking; an empty thought has no plateau.

    Where no trace has any, the model does not think, and the plateau is that of the template.
    """
    thoughtful = [t for t in traces if t.spans.thinking > t.spans.prompt]
    measured = thoughtful or [t for t in traces if t.spans.last_closing > t.spans.thinking]
    return [cliff_of(t, row, pool) for t in measured]


@dataclass(frozen=True, slots=True)
class Level:
    """Mean plateau and final score of a group of ``n`` traces."""

    plateau: float
    final: float
    n: int


def level(rows: Sequence[TraceCliff]) -> Level | None:
    """Mean plateau and final score; ``None`` for no rows."""
    if not rows:
        return None
    return Level(
        float(np.mean([row.plateau for row in rows])),
        float(np.mean([row.final for row in rows])),
        len(rows),
    )


def localisation(rows: Sequence[TraceCliff]) -> float | None:
    """Share of the drop, summed over traces that drop, that falls at the end of thinking."""
    falling = [row for row in rows if row.cliff > 0]
    if not falling:
        return None
    return sum(row.drop_inside for row in falling) / sum(row.cliff for row in falling)


@dataclass(frozen=True, slots=True)
class MeanCurve:
    """Mean score by offset from the last closing token; never resampled, ``n`` at each point."""

    offsets: tuple[int, ...]
    mean: tuple[float | None, ...]
    low: tuple[float | None, ...]
    high: tuple[float | None, ...]
    n: tuple[int, ...]


def mean_curve(
    traces: Sequence[TraceScores], row: int, first_offset: int, *, min_n: int = 3
) -> MeanCurve:
    """Average the thinking and closing scores, aligned at the last closing token.

    Args:
        traces: Scores; a trace counts only where its thinking has begun.
        row: Row of the layer.
        first_offset: First offset, negative.
        min_n: Traces below which a point has no value.
    """
    points: list[tuple[float | None, float | None, float | None, int]] = []
    offsets = tuple(range(first_offset, 1))
    for offset in offsets:
        there = [t for t in traces if t.spans.last_closing + offset >= t.spans.prompt]
        if len(there) < max(1, min_n):
            points.append((None, None, None, len(there)))
            continue
        values = expit([float(t.logits[row, t.spans.last_closing + offset]) for t in there])
        low, high = bootstrap_mean(values, [t.group for t in there], resamples=500)
        points.append((float(np.mean(values)), low, high, len(there)))
    mean, low_ends, high_ends, counts = zip(*points, strict=True)
    return MeanCurve(offsets, mean, low_ends, high_ends, counts)


def write_cliffs(path: Path, rows: Sequence[TraceCliff]) -> None:
    """Write ``cliff.parquet``, one row per trace."""
    columns = {name: [getattr(row, name) for row in rows] for name in TraceCliff.__slots__}
    write_parquet(path, pa.table(columns))


def read_cliffs(path: Path) -> list[TraceCliff]:
    """Read what `write_cliffs` wrote.

    Raises:
        RefusalCliffError: The file is missing, damaged, or of another version.
    """
    return rows_as(path, read_parquet(path), TraceCliff, "cliffs")
