"""How far a judge agrees with labels given by people, with bootstrap intervals over prompts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from refusal_cliff.answers.correction import JudgeError, Known, effective_share
from refusal_cliff.data.fields import bad, shown
from refusal_cliff.data.reading import DEFAULT, Reading, source_rows, used_and_left_out
from refusal_cliff.data.shapes import trace_of_row
from refusal_cliff.data.types import LeftOut, Row, Trace
from refusal_cliff.errors import RefusalCliffError
from refusal_cliff.io import fields_of
from refusal_cliff.judges import Judge, answer_of
from refusal_cliff.stats import Interval, in_brackets, percentiles, resampled_counts

_SHOWN = ("precision", "recall", "specificity", "f1", "kappa")
Counts = NDArray[np.float64]
"""[..., 4]: true positives, false positives, false negatives, true negatives."""


@dataclass(frozen=True, slots=True)
class Measure:
    """A number and its bootstrap interval; without both, the ``reason`` why there is none."""

    value: float | None
    interval: Interval | None
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Agreement:
    """Verdicts against labels.

    Attributes:
        n: How many of both.
        positives: Labels that are yes.
        confusion: True positives, false positives, false negatives, true negatives.
        precision: Of the verdicts that are yes, how many labels are.
        recall: Of the labels that are yes, how many verdicts are: the sensitivity.
        specificity: Of the labels that are no, how many verdicts are.
        f1: Harmonic mean of precision and recall.
        kappa: Agreement beyond chance (Cohen 1960).
    """

    n: int
    positives: int
    confusion: tuple[int, int, int, int]
    precision: Measure
    recall: Measure
    specificity: Measure
    f1: Measure
    kappa: Measure


def agreement(groups: Sequence[str], true: ArrayLike, said: ArrayLike, seed: int = 0) -> Agreement:
    """Compare verdicts with labels.

    Args:
        groups: Group of each answer, such as its prompt; drawn together.
        true: Labels, booleans, as many.
        said: Verdicts, booleans, as many.
        seed: Seed of the bootstrap.
    """
    counts = _confusion(np.asarray(said, dtype=bool), np.asarray(true, dtype=bool))
    total, drawn = counts.sum(0), resampled_counts(groups, seed) @ counts
    tp, fp, fn, tn = (int(n) for n in total)

    def measure(of: Callable[[Counts, Counts, Counts, Counts], Counts]) -> Measure:
        value = float(of(*total))
        if np.isfinite(value):
            return Measure(value, percentiles(of(*drawn.T)))
        never = "the judge says yes to none of them" if tp + fp == 0 else "the answers do not vary"
        return Measure(None, None, f"{never}, so that it divides by nothing")

    return Agreement(
        n=len(groups),
        positives=tp + fn,
        confusion=(tp, fp, fn, tn),
        precision=measure(lambda tp, fp, fn, tn: _ratio(tp, tp + fp)),
        recall=measure(lambda tp, fp, fn, tn: _ratio(tp, tp + fn)),
        specificity=measure(lambda tp, fp, fn, tn: _ratio(tn, tn + fp)),
        f1=measure(_f1),
        kappa=measure(_kappa),
    )


def _confusion(said: NDArray[np.bool_], true: NDArray[np.bool_]) -> Counts:
    """One row an answer, a 1 in the cell it falls into."""
    cells = (said & true, said & ~true, ~said & true, ~said & ~true)
    return np.stack(cells, axis=1).astype(np.float64)


def _f1(tp: Counts, fp: Counts, fn: Counts, tn: Counts) -> Counts:
    del tn
    return _ratio(2 * tp, 2 * tp + fp + fn)


def _kappa(tp: Counts, fp: Counts, fn: Counts, tn: Counts) -> Counts:
    n = tp + fp + fn + tn
    agreed = (tp + tn) / n
    chance = ((tp + fp) * (tp + fn) + (fn + tn) * (fp + tn)) / n**2
    return _ratio(agreed - chance, 1 - chance)


def _ratio(over: Any, under: Any) -> Counts:
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(np.divide(over, under), dtype=np.float64)


def error_of(judge: str, verdict: str, found: Agreement) -> JudgeError:
    """A judge's error out of its agreement with people."""
    tp, fp, fn, tn = found.confusion

    def known(count: int, n: int, interval: Interval | None) -> Known:
        if interval is None:  # no answer of that class, so that nothing is known
            return Known(0.0, 0.0)
        return Known(count / n, n * effective_share(count, n, interval))

    return JudgeError(
        judge,
        verdict,
        known(tp, tp + fn, found.recall.interval),
        known(tn, tn + fp, found.specificity.interval),
    )


@dataclass(frozen=True, slots=True)
class Calibration(Agreement):
    """A judge against people, or against the verdicts of another judge.

    Attributes:
        judge: Which judge.
        verdict: The verdict that counts as yes.
        unscored: Answers without a verdict; they are in no number above.
        others: For every other label: verdicts and how many.
        left_out: Rows that could not be read, each with the reason.
    """

    judge: str
    verdict: str
    unscored: int
    others: dict[str, dict[str, int]]
    left_out: list[LeftOut]

    def as_json(self) -> dict[str, Any]:
        """All of it as JSON, with the judge's error as `evaluate --judge-error` reads it."""
        return {**asdict(self), "error": asdict(error_of(self.judge, self.verdict, self))}

    def lines(self) -> list[str]:
        """All of it as sentences."""
        found = [
            f"{self.judge}: {self.verdict} against the labels of {self.n:,} answers "
            f"({self.positives:,} yes); {self.unscored:,} unscored, "
            f"{len(self.left_out):,} rows unusable"
        ]
        for name in _SHOWN:
            found.append(f"{name}: {_told(getattr(self, name))}")
        for label, verdicts in self.others.items():
            told = ", ".join(f"{verdict} {n:,}" for verdict, n in sorted(verdicts.items()))
            found.append(f"apart, label {label!r}: {told}")
        return found


def _told(measure: Measure) -> str:
    if measure.value is None or measure.interval is None:
        return f"not measured: {measure.reason}"
    return f"{measure.value:.3f} {in_brackets(measure.interval, '.3f')}"


def calibrate_file(
    judge: Judge,
    path: Path,
    *,
    label_column: str,
    positive: Sequence[str],
    negative: Sequence[str],
    verdict: str = "refused",
    seed: int = 0,
    reading: Reading = DEFAULT,
) -> Calibration:
    """Judge every answer of a labelled file and compare.

    Args:
        judge: Who judges.
        path: Rows with ``prompt``, ``response`` and the label of people.
        label_column: Column of that label.
        positive: Labels that mean yes.
        negative: Labels that mean no; every other label is reported apart.
        verdict: The judge's verdict that means yes.
        seed: Seed of the bootstrap; rows with the same prompt are drawn together.
        reading: How rows are read.

    Raises:
        RefusalCliffError: There are no answers with a yes or none with a no.
    """
    make = partial(_labelled, label_column, reading)
    labelled, left_out = used_and_left_out(path, source_rows(path, reading), make)
    answers = [answer_of(trace) for trace, _ in labelled]
    verdicts = [said.verdict for said in judge.judge(answers)]
    labels = [label for _, label in labelled]
    meant = dict.fromkeys(negative, False) | dict.fromkeys(positive, True)
    truth = [meant.get(label) for label in labels]
    told = list(zip(answers, truth, verdicts, strict=True))
    chosen = [(a.prompt, t, v == verdict) for a, t, v in told if t is not None and v != "unscored"]
    if len({true for _, true, _ in chosen}) < 2:
        raise RefusalCliffError(
            f"{path} has no scored answers of both kinds in column {label_column!r}: it holds "
            f"{', '.join(sorted(set(labels))) or 'no labels'}. Name the labels with --positive and "
            "--negative, and the column with --label-column."
        )
    groups, true, said = (list(column) for column in zip(*chosen, strict=True))
    found = agreement(groups, true, said, seed)
    return Calibration(
        **fields_of(found),
        judge=judge.name,
        verdict=verdict,
        unscored=sum(t is not None and v == "unscored" for _, t, v in told),
        others=_others(labels, truth, verdicts),
        left_out=left_out,
    )


def _others(
    labels: Sequence[str], truth: Sequence[bool | None], verdicts: Sequence[str]
) -> dict[str, dict[str, int]]:
    """Verdicts on answers whose label is neither yes nor no."""
    found: dict[str, Counter[str]] = {}
    for label, true, verdict in zip(labels, truth, verdicts, strict=True):
        if true is None:
            found.setdefault(label, Counter())[verdict] += 1
    return {label: dict(counted) for label, counted in sorted(found.items())}


def _labelled(label_column: str, reading: Reading, number: int, row: Row) -> tuple[Trace, str]:
    """An answer and the label that people gave it; whether the request is harmful is not asked."""
    label = row.get(label_column)
    if not isinstance(label, str):
        raise bad(f"{label_column!r} is {shown(label)}, not a text", "give it a label")
    asked = {name: value for name, value in row.items() if name != "label"}
    return trace_of_row("labelled", number, asked, reading.by_default("harmful")), label
