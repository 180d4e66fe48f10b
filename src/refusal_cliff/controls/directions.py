"""Is it refusal, or harm, or the next token? Directions beside the probe's, and the score without.

Harmfulness and refusal are different directions in instruction-tuned models (Zhao et al., arXiv
2507.11878); a probe of refused against benign traces could read either, or only the unembedding of
the first word of an answer (a reviewer's question on the paper).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from refusal_cliff.controls.positions import ANSWERED, HARMFUL, REFUSED, Bench, bench_of
from refusal_cliff.controls.readings import (
    A_CLIFF,
    CLOSING,
    LEVELS,
    Floats,
    Line,
    Place,
    Rows,
    Rule,
    fit_direction,
    fit_line,
    label_of,
    lacking,
    levels,
    logistic_directions,
)
from refusal_cliff.controls.table import Cell, ControlTable, rounded
from refusal_cliff.data.types import Trace, closed_spans
from refusal_cliff.model.blocks import input_device
from refusal_cliff.model.final_norm import find_final_norm, unembedding_rows
from refusal_cliff.model.subject import Subject
from refusal_cliff.probe.direction import calibrate_held_out
from refusal_cliff.run.pipeline import Job
from refusal_cliff.stages.study import Study
from refusal_cliff.stats import counts_with_all, percentiles

DRAWS = 100
"""Bootstrap draws of a direction, each a fit."""
COLUMNS = ("cosine with refusal", "AUROC", "AUROC, refused against complied", *LEVELS)
REFUSAL = "refusal"
HARM, HARM_ANYWHERE = "harmfulness, prompt end", "harmfulness, any token"
MEANS, TOKENS = "difference of means", "first answer tokens"
WITHOUT, ANEW = "refusal without ", "new probe without "
HARM_PLACES: dict[str, Place] = {HARM: "prompt end", HARM_ANYWHERE: "any token"}
_LARGE = 1e3


def measure(study: Study, job: Job) -> ControlTable:
    """Refusal, harmfulness and first answer tokens as directions, and the score without each."""
    bench = bench_of(study, job)
    rows = bench.fitting(CLOSING, REFUSED)
    harm = {
        name: fit_direction(bench.fitting(place, HARMFUL), study.seed)
        for name, place in HARM_PLACES.items()
    }
    drawn = _drawn(bench, {name: found.strength for name, (_, found) in harm.items()})
    reads: dict[str, Line] = {REFUSAL: bench.own} | {name: line for name, (line, _) in harm.items()}
    others = {name: reads[name].weight for name in harm}
    for name in (MEANS, TOKENS):
        others[name] = drawn[name][0]
        reads[name] = recalibrated(others[name], rows)
    for name, vector in others.items():
        left = without(bench.probe.weight.astype(np.float64), vector)
        reads[WITHOUT + name] = recalibrated(left, rows)
    for name, vector in others.items():
        line = fit_line(replace(rows, states=without(rows.states, vector)), study.seed)
        reads[ANEW + name] = Line(without(line.weight, vector), line.bias)
    traced = bench.traced(reads)
    harmful = [trace for trace in bench.test if trace.prompt.label == "harmful"]
    table = {
        name: (
            _cosine(bench, drawn, name),
            bench.auroc(read, HARM_PLACES[name], HARMFUL)
            if name in HARM_PLACES
            else bench.auroc(read, CLOSING, REFUSED),
            bench.auroc(read, CLOSING, ANSWERED, harmful),
            *levels(traced[name], study.seed),
        )
        for name, read in reads.items()
    }
    lacks = {name: lacking(rows, study.seed) for name, rows in traced.items()}
    return directions_table(table, lacks, bench.probe.layer, _how(study))


def _drawn(bench: Bench, strengths: Mapping[str, float]) -> dict[str, Floats]:
    """Each direction of the fitting traces and of draws of them, the same draws for all."""
    groups = [trace.prompt.group for trace in bench.fit]
    counts = counts_with_all(groups, bench.study.seed, DRAWS)

    def of(rule: Rule, place: Place = CLOSING) -> Any:
        """How often each row of `fitting` counts in each draw."""
        used = [label_of(trace, rule) >= 0 for trace in bench.fit]
        sizes = [len(bench.states[trace.prompt.id][place]) for trace in bench.fit]
        return np.repeat(counts[:, used], np.array(sizes)[used], axis=1)

    refusal = bench.fitting(CLOSING, REFUSED)
    answered = [t for t in bench.fit if label_of(t, ANSWERED) >= 0]
    words = first_token_rows(bench.study.subject, answered, bench.study.read_point == "resid_post")
    labels = bench.fitting(CLOSING, ANSWERED).labels
    found = {
        REFUSAL: logistic_directions(refusal, of(REFUSED), bench.probe.strength),
        MEANS: mean_differences(refusal.states, refusal.labels, of(REFUSED)),
        TOKENS: mean_differences(words, labels, of(ANSWERED)),
    }
    for name, strength in strengths.items():
        place = HARM_PLACES[name]
        counted = of(HARMFUL, place)
        found[name] = logistic_directions(bench.fitting(place, HARMFUL), counted, strength)
    return found


def _cosine(bench: Bench, drawn: Mapping[str, Floats], name: str) -> Cell:
    """Cosine of a direction with the probe's own, or of the probe with its fit on all rows."""
    if name == REFUSAL:
        own = bench.probe.weight.astype(np.float64)
        return Cell(float(cosine(own, drawn[name][0])), None, len(bench.fit))
    if name not in drawn:
        return Cell(None)
    return cosine_cell(drawn[REFUSAL], drawn[name], len(bench.fit))


@torch.inference_mode()
def first_token_rows(subject: Subject, traces: Sequence[Trace], before_norm: bool) -> Floats:
    """Unembedding of each trace's first response token, [traces, d], as the read point sees it.

    A logit is ``u · norm(h)``; of a root-mean-square norm, ``norm(h) = gain ⊙ h`` times one number
    a token, so before the norm the direction is ``gain ⊙ u``. The gain is read off the norm's
    output for an input of ±1 of large scale, which any norm over features returns as ``± gain``.
    """
    ids = [trace.token_ids[closed_spans(trace).closing] for trace in traces]
    rows = unembedding_rows(subject.model, ids)
    if before_norm:
        rows = rows * _gain(subject)
    return rows.numpy()


def _gain(subject: Subject) -> torch.Tensor:
    norm: Any = find_final_norm(subject)
    like = next(norm.parameters())
    there = input_device(subject.model) if like.device.type == "meta" else like.device
    signs = torch.ones(subject.width, device=there, dtype=like.dtype)
    signs[1::2] = -1
    ends = [norm(sign * _LARGE * signs[None])[0] for sign in (1, -1)]
    return ((ends[0] - ends[1]) / 2 * signs).float().cpu()


def _how(study: Study) -> str:
    mean = "mean unembedding row of refused minus complied traces' first response tokens"
    if study.read_point == "final_norm":
        return mean + ", as the probe reads after the final norm"
    return mean + ", times the gain of the final norm, before which the probe reads"


def cosine(first: Floats, second: Floats) -> Floats:
    """Cosine of vectors [..., d] with vectors [..., d]; 0 for a vector of length 0."""
    lengths = np.linalg.norm(first, axis=-1) * np.linalg.norm(second, axis=-1)
    products = (first * second).sum(-1)
    return np.divide(products, lengths, out=np.zeros_like(products), where=lengths > 0)


def without(vectors: Floats, direction: Floats) -> Floats:
    """Vectors [..., d] without their part along a direction [d]: states, or a probe's weight.

    ``w · (h − (h·û) û) = (w − (w·û) û) · h``: it does not matter from which of the two it is taken.
    """
    unit = direction / np.linalg.norm(direction)
    return vectors - (vectors @ unit)[..., None] * unit


def recalibrated(weight: Floats, rows: Rows) -> Line:
    """A direction [d] as a score: slope and threshold fitted on fitting traces (Platt scaling)."""
    slope, intercept = calibrate_held_out(rows.states.astype(np.float64) @ weight, rows.labels)
    return Line(slope * weight, intercept)


def mean_differences(rows: Floats, labels: NDArray[np.int64], counts: Floats) -> Floats:
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
    rows: Mapping[str, tuple[Cell, ...]], lacks: Mapping[str, str | None], layer: int, how: str
) -> ControlTable:
    """The control as a table.

    Args:
        rows: By name of the reading, cells for ``COLUMNS``.
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


def _finding(rows: Mapping[str, tuple[Cell, ...]], lacks: Mapping[str, str | None]) -> str:
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
