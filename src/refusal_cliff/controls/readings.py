"""Other ways to read a state than the tool's probe: elsewhere, by other labels, traced alike."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, Literal, TypeAlias, TypeVar, get_args

import numpy as np
import torch
from numpy.typing import NDArray

from refusal_cliff.cliff.curves import TraceCliff
from refusal_cliff.cliff.verdict import (
    benign_rows,
    complied_rows,
    model_cliff,
    refused_rows,
    yardstick,
)
from refusal_cliff.controls.table import Cell, level_cell, share_cell
from refusal_cliff.data.types import Trace, closed_spans
from refusal_cliff.model.capture import Reader, capture
from refusal_cliff.model.final_norm import at_read_point
from refusal_cliff.model.rows import Batch
from refusal_cliff.model.subject import Subject
from refusal_cliff.probe.direction import Direction, cross_validate, fit_logistic, standardised
from refusal_cliff.probe.fit import fold_groups
from refusal_cliff.probe.quality import auroc, weighted_auroc
from refusal_cliff.progress import Progress
from refusal_cliff.stats import Floats, Share, percentiles, resampled_counts
from refusal_cliff.thinking import Spans

Read: TypeAlias = Callable[[Floats], Floats]
"""States [n, d] to score logits [n]."""
T = TypeVar("T")

Place: TypeAlias = Literal[
    "last closing token",
    "thinking tokens",
    "mean of the thinking",
    "first thinking token",
    "prompt end",
    "any token",
]
Rule: TypeAlias = Literal["refused-vs-benign", "refused-vs-complied", "harmful-vs-benign"]

CLOSING: Place = "last closing token"
THINKING: Place = "thinking tokens"
PLACES: tuple[Place, ...] = get_args(Place)[:-1]
"""Where the probes of the table are trained; ``any token`` serves the control of directions."""
THINKING_TOKENS = 8
"""Tokens of one trace's thinking that a probe of thinking tokens is fitted on, evenly spaced."""
_UNUSED = -1

LEVELS = (
    "plateau, complied",
    "final, complied",
    "cliff",
    "final, refused",
    "plateau, benign",
    "final, benign",
    "complied with a cliff",
)
"""What `levels` gives of any reading: what the verdict on a cliff looks at."""
A_CLIFF = "a cliff by the rule of the verdict"


@dataclass(frozen=True, slots=True)
class Line:
    """A linear reading: ``weight · h + bias``."""

    weight: Floats
    bias: float

    def __call__(self, states: Floats) -> Floats:
        """Logits [n] of states [n, d]."""
        return states @ self.weight + self.bias


class Reduced(Reader, Generic[T]):
    """What a function makes of each trace's states after one block; the states are dropped.

    Attributes:
        values: For each trace, what the function gave.
    """

    def __init__(self, layer: int, reduce: Callable[[int, Floats], T]) -> None:
        """``reduce`` is given the number of a trace and its states, [tokens, d]."""
        self.residual_layers = frozenset({layer})
        self.values: dict[int, T] = {}
        self._reduce = reduce

    def read_residual(self, layer: int, states: torch.Tensor, batch: Batch) -> None:
        """Reduce one trace after the other."""
        found = states.float().cpu().numpy()
        for place, row, length in batch.items():
            self.values[row] = self._reduce(row, found[place, :length])


def reduced(
    subject: Subject,
    traces: Sequence[Trace],
    layer: int,
    read_point: str,
    reduce: Callable[[int, Floats], T],
    progress: Progress | None = None,
) -> list[T]:
    """What a function makes of the number and the states of each trace, read as probes read them.

    Args:
        subject: The model.
        traces: The traces.
        layer: The block after which is read.
        read_point: Where probes read.
        reduce: As for `Reduced`.
        progress: Called with (traces done, traces).
    """
    reader = Reduced(layer, reduce)
    tap = at_read_point(reader, subject, read_point)
    capture(subject, [trace.token_ids for trace in traces], [tap], progress=progress)
    return [reader.values[row] for row in range(len(traces))]


def states_by_place(
    subject: Subject,
    traces: Sequence[Trace],
    layer: int,
    read_point: str,
    progress: Progress | None = None,
) -> dict[str, dict[Place, Floats]]:
    """By prompt id, `states_of_places` of traces that think."""

    def reduce(row: int, states: Floats) -> dict[Place, Floats]:
        return states_of_places(states, closed_spans(traces[row]))

    found = reduced(subject, traces, layer, read_point, reduce, progress)
    return dict(zip((trace.prompt.id for trace in traces), found, strict=True))


def thinks(trace: Trace) -> bool:
    """Whether a closed trace has thinking, an answer, and a prompt before them."""
    spans = trace.spans
    return spans is not None and spans.thinking > spans.prompt > 0 and spans.total > spans.closing


@dataclass(frozen=True, slots=True)
class Rows:
    """States to fit or test a probe on.

    Attributes:
        states: [n, d].
        labels: [n], 0 or 1.
        groups: Of the prompts; several rows of one trace share theirs.
    """

    states: Floats
    labels: NDArray[np.int64]
    groups: list[str]

    def has(self, n: int) -> bool:
        """Whether each class has rows of ``n`` different groups."""
        names = np.array(self.groups)
        return all(len(set(names[self.labels == value])) >= n for value in (0, 1))


def fit_line(rows: Rows, seed: int) -> Line:
    """A probe made as the tool's own are (`fit_probes`), on all rows; the seed is of its folds."""
    line, _ = fit_direction(rows, seed)
    return line


def fit_direction(rows: Rows, seed: int) -> tuple[Line, Direction]:
    """`fit_line`, and what its cross-validation chose."""
    standard = standardised(rows.states)
    folds = fold_groups(rows.labels, rows.groups, seed)
    found = cross_validate(standard.coordinates, rows.labels, folds, "logistic")
    return Line(*standard.folded(found, rows.labels)), found


def auroc_cell(read: Read, rows: Rows, seed: int = 0) -> Cell:
    """AUROC of a reading, its bootstrap interval over groups; empty where a class is missing."""
    if set(rows.labels.tolist()) != {0, 1}:
        return Cell(None, None, 0)
    logits = read(rows.states)
    draws = weighted_auroc(rows.labels, logits, resampled_counts(rows.groups, seed))
    return Cell(float(auroc(rows.labels, logits)), percentiles(draws), len(logits))


def levels(rows: Sequence[TraceCliff], seed: int = 0) -> tuple[Cell, ...]:
    """Means of ``LEVELS``, with bootstrap intervals over prompt groups.

    Args:
        rows: Plateau and final score of test traces under one reading.
        seed: Seed of the bootstrap.
    """
    complied, benign = complied_rows(rows), benign_rows(rows)
    rule = yardstick(rows)
    fell = [rule.kind(row) == "cliff" for row in complied]
    return (
        level_cell(complied, "plateau", seed),
        level_cell(complied, "final", seed),
        level_cell(complied, "cliff", seed),
        level_cell(refused_rows(rows), "final", seed),
        level_cell(benign, "plateau", seed),
        level_cell(benign, "final", seed),
        share_cell(Share.of(fell, [row.group for row in complied])),
    )


def lacking(rows: Sequence[TraceCliff], seed: int = 0) -> str | None:
    """What keeps a reading from showing a cliff, by the rule of the verdict on a model.

    Args:
        rows: Plateau and final score of test traces under the reading.
        seed: Seed of the verdict's bootstraps.

    Returns:
        Such as ``no cliff: 3% of 68 fall``; empty for a cliff, ``None`` where nothing was complied
        with.
    """
    if not complied_rows(rows):
        return None
    found = model_cliff(rows, seed)
    if found.verdict == "cliff":
        return ""
    return f"{found.verdict}: {found.share_with_cliff:.0%} of {found.n} fall"


def positions_of(spans: Spans) -> dict[Place, list[int]]:
    """Tokens of a trace at which a probe of each place reads; those of a mean are averaged.

    Args:
        spans: Of a trace with thinking.
    """
    thinking = range(spans.prompt, spans.thinking)
    spread = np.linspace(thinking[0], thinking[-1], min(THINKING_TOKENS, len(thinking)))
    spaced = spread.round().astype(int).tolist()
    return {
        "last closing token": [spans.last_closing],
        "thinking tokens": spaced,
        "mean of the thinking": list(thinking),
        "first thinking token": [thinking[0]],
        "prompt end": [spans.prompt - 1],
        "any token": [spans.prompt - 1, *spaced, spans.last_closing],
    }


def states_of_places(states: Floats, spans: Spans) -> dict[Place, Floats]:
    """What probes of each place read of one trace, each [k, d].

    Args:
        states: [tokens, d].
        spans: Of the trace.
    """
    found: dict[Place, Floats] = {place: states[at] for place, at in positions_of(spans).items()}
    found["mean of the thinking"] = found["mean of the thinking"].mean(0, keepdims=True)
    return found


def label_of(trace: Trace, rule: Rule) -> int:
    """1, 0, or -1 for a judged trace that the rule does not use."""
    harmful = trace.prompt.label == "harmful"
    if rule == "harmful-vs-benign":
        return int(harmful)
    if trace.verdict == "refused":
        return 1 if harmful else _UNUSED
    return _UNUSED if harmful and rule == "refused-vs-benign" else 0


def rows_of(
    traces: Sequence[Trace], states: Mapping[str, Mapping[Place, Floats]], place: Place, rule: Rule
) -> Rows:
    """The rows of one place under one label rule.

    Args:
        traces: Judged traces.
        states: By prompt id, what `states_of_places` gave.
        place: Where.
        rule: Which traces are 1 and 0.
    """
    used = [trace for trace in traces if label_of(trace, rule) != _UNUSED]
    parts = [states[trace.prompt.id][place] for trace in used]
    sizes = [len(part) for part in parts]
    return Rows(
        np.concatenate(parts) if parts else np.zeros((0, 1)),
        np.repeat(np.array([label_of(t, rule) for t in used], dtype=np.int64), sizes),
        [t.prompt.group for t, size in zip(used, sizes, strict=True) for _ in range(size)],
    )


def logistic_directions(rows: Rows, counts: Floats, strength: float) -> Floats:
    """Directions of logistic regressions, one a draw, classes balanced in each, [draws, d].

    Args:
        rows: [n] rows.
        counts: How often each counts in each draw, [draws, n]; a draw without a class gives NaN.
        strength: Inverse L2 strength, as for the probe.
    """
    standard, labels = standardised(rows.states), rows.labels
    sums = [(counts * (labels == value)).sum(1) for value in (0, 1)]
    of_class = np.where(labels == 1, sums[1][:, None], sums[0][:, None])
    weights = counts * counts.sum(1, keepdims=True) / (2 * np.maximum(of_class, 1))
    vectors = fit_logistic(
        standard.coordinates,
        np.tile(labels[:, None].astype(np.float64), len(counts)),
        weights.T,
        np.full(len(counts), strength),
    )
    vectors[:, (sums[0] == 0) | (sums[1] == 0)] = np.nan
    return vectors.T @ standard.axes
