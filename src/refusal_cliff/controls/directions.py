"""Is it refusal, or harm, or the next token? Directions beside the probe's, and the score without.

Harmfulness and refusal are different directions in instruction-tuned models (Zhao et al., arXiv
2507.11878); a probe of refused against benign traces could read either, or only the unembedding of
the first word of an answer (a reviewer's question on the paper).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from refusal_cliff.controls.readings import A_CLIFF, LEVELS, Floats, Line
from refusal_cliff.controls.table import Cell, ControlTable, rounded
from refusal_cliff.probe.direction import calibrate_held_out, standardised
from refusal_cliff.probe.logistic import fit_logistic
from refusal_cliff.stats import percentiles

Counts: TypeAlias = NDArray[np.floating[Any]]

DRAWS = 100
"""Bootstrap draws of a direction, each a fit."""
COLUMNS = ("cosine with refusal", "AUROC", "AUROC, refused against complied", *LEVELS)
REFUSAL = "refusal"
HARM, HARM_ANYWHERE = "harmfulness, prompt end", "harmfulness, any token"
MEANS, TOKENS = "difference of means", "first answer tokens"
WITHOUT, ANEW = "refusal without ", "new probe without "


def cosine(first: Floats, second: Floats) -> Floats:
    """Cosine of vectors [..., d] with vectors [..., d]; 0 for a vector of length 0."""
    lengths = np.linalg.norm(first, axis=-1) * np.linalg.norm(second, axis=-1)
    products = (first * second).sum(-1)
    return np.divide(products, lengths, out=np.zeros_like(products), where=lengths > 0)


def without(weight: Floats, direction: Floats) -> Floats:
    """The weight that reads states from which a direction was projected out.

    ``w · (h − (h·û) û) = (w − (w·û) û) · h``: it does not matter from which of the two it is taken.
    """
    unit = direction / np.linalg.norm(direction)
    return weight - (weight @ unit) * unit


def projected_out(states: Floats, direction: Floats) -> Floats:
    """States [n, d] without their part along a direction [d]."""
    unit = direction / np.linalg.norm(direction)
    return states - np.outer(states @ unit, unit)


def recalibrated(weight: Floats, states: Floats, labels: NDArray[np.int64]) -> Line:
    """A direction as a score: slope and threshold fitted on fitting traces (Platt scaling).

    Args:
        weight: [d].
        states: [n, d] of fitting traces.
        labels: [n], 0 or 1.
    """
    slope, intercept = calibrate_held_out(states.astype(np.float64) @ weight, labels)
    return Line(slope * weight, intercept)


def mean_differences(rows: Floats, labels: NDArray[np.int64], counts: Counts) -> Floats:
    """Mean of rows with label 1 minus mean of rows with label 0, [draws, d].

    Args:
        rows: [n, d]: states, or the unembedding of each trace's first response token.
        labels: [n], 0 or 1.
        counts: [draws, n]; a draw without a class gives NaN.
    """
    wide = rows.astype(np.float64)
    weights = [counts * (labels == value) for value in (1, 0)]
    with np.errstate(invalid="ignore"):
        means = [weight @ wide / weight.sum(1, keepdims=True) for weight in weights]
    return means[0] - means[1]


def logistic_directions(
    states: Floats, labels: NDArray[np.int64], counts: Counts, strength: float
) -> Floats:
    """Directions of logistic regressions, one a draw, classes balanced in each, [draws, d].

    Args:
        states: [n, d].
        labels: [n], 0 or 1.
        counts: [draws, n]; a draw without a class gives NaN.
        strength: Inverse L2 strength, as for the probe.
    """
    standard = standardised(states)
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


def cosine_cell(first: Floats, second: Floats, n: int) -> Cell:
    """Cosine of two directions with its bootstrap interval.

    Args:
        first: [1 + draws, d] as `counts_with_all` has them, the traces as they are first.
        second: The other direction, of the same draws.
        n: Traces.
    """
    found = cosine(first, second)
    return Cell(float(found[0]), percentiles(found[1:]), n)


def directions_table(
    rows: Mapping[str, Sequence[Cell]], lacks: Mapping[str, str | None], layer: int, how: str
) -> ControlTable:
    """The control as a table.

    Args:
        rows: By name of the reading, cells for ``COLUMNS``; readings that begin with ``WITHOUT``
            had a direction projected out.
        lacks: By name of the reading, what `lacking` says.
        layer: The block after which all is read.
        how: How the unembedding direction was brought to the read point.
    """
    return ControlTable(
        question="Does the probe read refusal, or harm, or the next token?",
        source="harmfulness and refusal apart: arXiv 2507.11878; next token: reviews of the paper",
        columns=COLUMNS,
        rows=rows,
        finding=_finding(rows, lacks),
        notes=(
            f"All after block {layer}. Harmfulness: harmful against benign prompts, whatever was "
            "answered, at the last token of the prompt span, or at that, tokens of the thinking "
            f"and the last closing token together. First answer tokens: {how}. All other readings "
            "are of refused against benign traces at the last closing token. AUROC: each at its "
            "own task, on test prompts; beside it that of refused against complied harmful traces "
            "at the last closing token. “Without” a direction: the probe on states from which it "
            "was projected out (the same as taking it out of the probe), slope and threshold "
            "fitted again on the fitting traces; “new probe”: another probe, fitted on such "
            "states.",
            "Where the probe has the direction of the difference of means (its cosine with it), "
            "taking that out leaves nothing to read, as its AUROC shows. Then no drop is possible.",
            "Intervals: bootstrap over prompt groups; of a cosine, "
            f"{DRAWS} draws with both directions fitted again in each, at their strengths. Noise "
            f"in a direction moves a cosine towards 0, so an interval may be below the value. Row "
            f"refusal: cosine of the probe with its own fit on all fitting traces, without an "
            f"interval.",
        ),
    )


def _finding(rows: Mapping[str, Sequence[Cell]], lacks: Mapping[str, str | None]) -> str:
    """Plateau and final of refusal and harm; whether the cliff stays without each direction."""
    told: list[str] = []
    for name in (REFUSAL, HARM, HARM_ANYWHERE):
        plateau, final = (_value(rows, name, f"{part}, complied") for part in ("plateau", "final"))
        if plateau is None or final is None:
            return "No harmful prompt was complied with, so there is no drop to explain."
        told.append(f"{name} {rounded(plateau)} → {rounded(final)}")
    parts = [f"Plateau → final of complied traces: {'; '.join(told)}."]
    apart = _value(rows, REFUSAL, "AUROC, refused against complied")
    if apart is not None:
        parts.append(
            f"The probe separates refused from complied traces with AUROC {rounded(apart)}."
        )
    if lacks[REFUSAL]:
        return " ".join([*parts, f"It shows no cliff ({lacks[REFUSAL]})."])
    found = ((WITHOUT, "With a direction taken out"), (ANEW, "With a new probe"))
    return " ".join([*parts, *(_kept(lacks, prefix, how) for prefix, how in found)])


def _kept(lacks: Mapping[str, str | None], prefix: str, how: str) -> str:
    """Without which directions the cliff stays, and what it lacks without the others."""
    here = {
        name.removeprefix(prefix): lack for name, lack in lacks.items() if name.startswith(prefix)
    }
    kept = [name for name, lack in here.items() if not lack]
    lost = [f"{name} ({lack})" for name, lack in here.items() if lack]
    if not kept:
        return f"{how}, it is gone: without {'; '.join(lost)}."
    text = f"{how}, {A_CLIFF} stays without {'; '.join(kept)}"
    return text + (f", not without {'; '.join(lost)}." if lost else ".")


def _value(rows: Mapping[str, Sequence[Cell]], name: str, column: str) -> float | None:
    return rows[name][COLUMNS.index(column)].value
