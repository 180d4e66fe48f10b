"""Which heads pull the refusal score down: one table of all measures, rankings, how they agree."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from refusal_cliff.data.types import Trace
from refusal_cliff.errors import RefusalCliffError
from refusal_cliff.heads.effects import HeadEffects, head_effects
from refusal_cliff.heads.proof import Proof, prove
from refusal_cliff.model.subject import Head, Subject
from refusal_cliff.probe.fit import Probe
from refusal_cliff.progress import Progress
from refusal_cliff.stats import EXACT, Floats, percentiles, resampled_counts, spearman
from refusal_cliff.tables import read_parquet, rows_as, write_parquet

MAX_FRACTION = 0.03
"""Heads that may be ablated (paper §5)."""
RESAMPLES = 500
_MODEL = b"refusal_cliff.model"


@dataclass(frozen=True, slots=True)
class Estimate:
    """One measure of one head over some traces, in score logits.

    Attributes:
        mean: Mean over the traces.
        low: Lower end of its bootstrap interval over prompt groups.
        high: Upper end.
        consistency: Share of the traces with the sign of the mean.
        n: Traces.
    """

    __pydantic_config__ = EXACT

    mean: float
    low: float
    high: float
    consistency: float
    n: int


@dataclass(frozen=True, slots=True)
class HeadRow:
    """One head, by every measure of `effects`; *explained* are the traces whose fall is.

    Attributes:
        layer: Block, from 1.
        index: Head, from 0.
        causal: Rise of the final score when the head is taken out over the closing tokens.
        causal_benign: The same on benign traces: a head that acts only on harmful prompts has none.
        causal_refused: The same on refused traces; ``None`` where there are none.
        attribution: First-order estimate of ``causal``.
        attribution_benign: Of ``causal_benign``.
        direct: What the head adds to the final score; the paper's score times the probe's norm.
        direct_benign: The same on benign traces.
        direct_refused: The same on refused traces; ``None`` where there are none.
        plateau: What it adds over the second half of the thinking: a head that lowers the score
            everywhere is low here too.
        plateau_benign: The same on benign traces.
        proof: Whether ``causal`` proves that the head alone suppresses refusal, see `proof`.
    """

    __pydantic_config__ = EXACT

    layer: int
    index: int
    causal: Estimate
    causal_benign: Estimate
    causal_refused: Estimate | None
    attribution: Estimate
    attribution_benign: Estimate
    direct: Estimate
    direct_benign: Estimate
    direct_refused: Estimate | None
    plateau: Estimate
    plateau_benign: Estimate
    proof: Proof

    @property
    def head(self) -> Head:
        """The head itself."""
        return Head(self.layer, self.index)

    @property
    def acts(self) -> bool:
        """Whether the head reaches the probe: one in a later block has no effect by any measure."""
        return bool(self.causal.mean or self.direct.mean)


def _mean(estimate: Estimate | None) -> float:
    return 0.0 if estimate is None else estimate.mean


METHODS: dict[str, Callable[[HeadRow], float]] = {
    "causal": lambda row: row.causal.mean,
    "causal-contrast": lambda row: row.causal.mean - _mean(row.causal_refused),
    "attribution": lambda row: row.attribution.mean,
    "direct": lambda row: -row.direct.mean,
    "direct-contrast": lambda row: _mean(row.direct_refused) - row.direct.mean,
}
"""Rankings, strongest suppression first. ``direct`` is the paper's; a *contrast* is against refused
traces, where the head should do nothing."""
DEFAULT_METHOD = "direct"
"""The best on heads planted in late blocks, and the cheapest; no better than a norm where guilty
heads act through later blocks (docs/concepts/heads.md)."""


def measure_heads(
    subject: Subject,
    explained: Sequence[Trace],
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
        explained: Traces whose fall is to be explained, at least one: complied ones where there are
            enough, else refused ones, too.
        refused: Refused traces, for the contrast; may be empty.
        benign: Benign traces; at least one.
        probe: The probe whose score counts.
        seed: Seed of the bootstrap.
        progress: Called with (traces done, traces).

    Raises:
        RefusalCliffError: There is no trace to explain, or no benign one.
    """
    if not (explained and benign):
        raise RefusalCliffError(
            "Heads are measured on answers to harmful prompts and on answered benign ones; "
            f"{len(explained)} and {len(benign)} of the traces can be used. Give more prompts of "
            "the kind that is missing, or allow longer answers."
        )
    groups = {"": explained, "_benign": benign, "_refused": refused}
    total, before = sum(map(len, groups.values())), 0
    columns: dict[str, list[Estimate] | list[Proof] | None] = {}
    for suffix, traces in groups.items():
        wanted = [name + suffix for name in _MEASURED if name + suffix in HeadRow.__annotations__]
        if not traces:
            columns |= dict.fromkeys(wanted)
            continue
        told, attributed = _part(progress, before, total), f"attribution{suffix}" in wanted
        found = head_effects(subject, traces, probe, told, attributed=attributed)
        before += len(traces)
        names = [trace.prompt.group for trace in traces]
        for name in wanted:
            columns[name] = estimates(getattr(found, name.removesuffix(suffix)), names, seed)
        if traces is explained:
            columns["proof"] = prove(_flat(found.causal), found.falls, names, seed)
    rows = []
    for head in subject.heads():
        place = (head.layer - 1) * subject.n_heads + head.index
        cells: dict[str, Any] = {name: one and one[place] for name, one in columns.items()}
        rows.append(HeadRow(layer=head.layer, index=head.index, **cells))
    return rows


_MEASURED = tuple(name for name in HeadEffects.__slots__ if name != "falls")


def _part(progress: Progress | None, before: int, total: int) -> Progress | None:
    return None if progress is None else lambda done, _: progress(before + done, total)


def estimates(values: Floats, groups: Sequence[str], seed: int) -> list[Estimate]:
    """An estimate for each head, by layer, then by index.

    Args:
        values: [traces, layers, heads].
        groups: Group of each trace's prompt.
        seed: Seed of the bootstrap.
    """
    flat = _flat(values)
    counts = resampled_counts(groups, seed, RESAMPLES)
    drawn = counts @ flat / counts.sum(1, keepdims=True)
    means = flat.mean(0)
    alike = (np.sign(flat) == np.sign(means)).mean(0)
    return [
        Estimate(float(mean), *percentiles(drawn[:, at]), float(alike[at]), len(flat))
        for at, mean in enumerate(means)
    ]


def _flat(values: Floats) -> Floats:
    """[traces, layers, heads] to [traces, all heads], in double precision."""
    return values.reshape(len(values), -1).astype(np.float64)


def ranked(rows: Sequence[HeadRow], method: str = DEFAULT_METHOD) -> list[Head]:
    """Heads by a ranking of ``METHODS``, the strongest suppression first."""
    return [row.head for row in sorted(rows, key=METHODS[method], reverse=True)]


def budget(total: int, fraction: float = MAX_FRACTION) -> int:
    """Heads in a fraction of all, rounded down; at least one."""
    return max(1, int(fraction * total + 1e-9))


def select_heads(
    rows: Sequence[HeadRow],
    fraction: float = MAX_FRACTION,
    method: str = DEFAULT_METHOD,
    *,
    proven: bool = True,
) -> list[Head]:
    """The refusal suppression heads: the strongest few of a ranking that do suppress.

    Args:
        rows: All heads.
        fraction: Most of them that are chosen.
        method: A ranking of ``METHODS``.
        proven: Whatever the ranking, a head counts only if it lowers the score beyond doubt, all
            heads considered (`Proof.suppresses`). The paper asks for no such proof.
    """
    strength = METHODS[method]
    strongest = sorted(rows, key=strength, reverse=True)[: budget(len(rows), fraction)]
    return [r.head for r in strongest if strength(r) > 0 and (r.proof.suppresses or not proven)]


def write_heads(path: Path, rows: Sequence[HeadRow], model: str) -> None:
    """Write ``heads.parquet``, one row per head.

    Args:
        path: The file.
        rows: Every head of the model.
        model: Fingerprint of the model that they were measured on.
    """
    table = pa.Table.from_pylist([asdict(row) for row in rows])
    write_parquet(path, table.replace_schema_metadata({_MODEL: model.encode()}))


def read_heads(path: Path, subject: Subject | None = None) -> list[HeadRow]:
    """Read what `write_heads` wrote.

    Args:
        path: The file.
        subject: The model that it must be of; ``None`` takes any.

    Raises:
        RefusalCliffError: It is no such file, or one of another model.
    """
    rows, of = heads_and_model(path)
    if subject is not None and of != subject.fingerprint:
        raise RefusalCliffError(
            f"{path} was measured on another model ({of[:16]}) than {subject.name} "
            f"({subject.fingerprint[:16]}). Heads of one model say nothing about another. Measure "
            f"them on {subject.name} (audit), or load the model in the precision of that run."
        )
    return rows


def heads_and_model(path: Path) -> tuple[list[HeadRow], str]:
    """What `write_heads` wrote, and the fingerprint of the model that it was measured on.

    Raises:
        RefusalCliffError: It is no such file.
    """
    table = read_parquet(path)
    of = (table.schema.metadata or {}).get(_MODEL, b"").decode()
    return rows_as(path, table, HeadRow, "heads"), of


FRACTIONS = (0.01, 0.03, 0.05, 0.10)


@dataclass(frozen=True, slots=True)
class Agreement:
    """Two rankings of the same heads.

    Attributes:
        first: Name of one.
        second: Name of the other.
        spearman: Rank correlation over all heads that act on the probe; 0 where one of the
            rankings tells no heads apart.
        overlap: Share of heads in common at the top, by the fraction of all heads that the top is.
    """

    first: str
    second: str
    spearman: float
    overlap: dict[float, float]


def agreements(rows: Sequence[HeadRow]) -> list[Agreement]:
    """Every pair of rankings.

    Heads after the probe's block have no effect by any measure, and all rankings would agree on
    them: the correlation leaves them out.
    """
    acting = [row for row in rows if row.acts]
    found = []
    for first, second in combinations(METHODS, 2):
        values = [[METHODS[name](row) for row in acting] for name in (first, second)]
        correlation = float(np.nan_to_num(spearman(*np.asarray(values))))
        overlap = {part: _overlap(rows, first, second, part) for part in FRACTIONS}
        found.append(Agreement(first, second, correlation, overlap))
    return found


def _overlap(rows: Sequence[HeadRow], first: str, second: str, fraction: float) -> float:
    n = budget(len(rows), fraction)
    tops = [set(ranked(rows, method)[:n]) for method in (first, second)]
    return len(tops[0] & tops[1]) / n
