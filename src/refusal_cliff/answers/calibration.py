"""How far a judge agrees with people: precision, recall, F1 and kappa, with bootstrap intervals."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from refusal_cliff.data.prompt_files import usable_rows
from refusal_cliff.data.traces import Row
from refusal_cliff.errors import RefusalCliffError
from refusal_cliff.judges import Answer, Judge
from refusal_cliff.stats import Interval, percentiles, resampled_counts

Counts = NDArray[np.float64]
"""[..., 4]: true positives, false positives, false negatives, true negatives."""


@dataclass(frozen=True, slots=True)
class Measure:
    """A number and its bootstrap interval; without both, the ``reason`` why there is none."""

    value: float | None
    interval: Interval | None
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Calibration:
    """A judge against people.

    Attributes:
        judge: Which judge.
        verdict: The verdict that counts as yes.
        n: Answers with a yes or no of people and a verdict.
        positives: Those that people call yes.
        confusion: True positives, false positives, false negatives, true negatives.
        precision: Of the answers the judge calls yes, how many people do.
        recall: Of the answers people call yes, how many the judge does.
        f1: Their harmonic mean.
        kappa: Agreement beyond chance (Cohen 1960).
        unscored: Answers without a verdict; they are in no number above.
        others: For every other label: verdicts and how many.
        unusable: Rows that could not be read.
    """

    judge: str
    verdict: str
    n: int
    positives: int
    confusion: tuple[int, int, int, int]
    precision: Measure
    recall: Measure
    f1: Measure
    kappa: Measure
    unscored: int
    others: dict[str, dict[str, int]]
    unusable: int

    def as_json(self) -> dict[str, Any]:
        """All of it as JSON."""
        return asdict(self)

    def lines(self) -> list[str]:
        """All of it as sentences."""
        found = [
            f"{self.judge}: {self.verdict} against people on {self.n:,} answers "
            f"({self.positives:,} yes); {self.unscored:,} unscored, {self.unusable:,} rows unusable"
        ]
        for name in ("precision", "recall", "f1", "kappa"):
            found.append(f"{name}: {_told(getattr(self, name))}")
        for label, verdicts in self.others.items():
            told = ", ".join(f"{verdict} {n:,}" for verdict, n in sorted(verdicts.items()))
            found.append(f"apart, label {label!r}: {told}")
        return found


def _told(measure: Measure) -> str:
    if measure.value is None or measure.interval is None:
        return f"not measured: {measure.reason}"
    low, high = measure.interval
    return f"{measure.value:.3f} [{low:.3f}, {high:.3f}]"


def calibrate_file(
    judge: Judge,
    path: Path,
    *,
    label_column: str,
    positive: Sequence[str],
    negative: Sequence[str],
    verdict: str = "refused",
    seed: int = 0,
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

    Raises:
        RefusalCliffError: There are no answers with a yes or none with a no.
    """
    rows = [row for _, row in usable_rows(path)]
    labelled = [r for r in rows if not isinstance(r, str) and _usable(r, label_column)]
    answers = [Answer(str(row["prompt"]), str(row["response"])) for row in labelled]
    verdicts = [said.verdict for said in judge.judge(answers)]
    labels = [str(row[label_column]) for row in labelled]
    truth = [_truth(label, positive, negative) for label in labels]
    told = list(zip(answers, truth, verdicts, strict=True))
    chosen = [(a.prompt, t, v == verdict) for a, t, v in told if t is not None and v != "unscored"]
    if len({true for _, true, _ in chosen}) < 2:
        raise RefusalCliffError(
            f"{path} has no scored answers of both kinds in column {label_column!r}: it holds "
            f"{', '.join(sorted(set(labels))) or 'no labels'}. Name the labels with --positive and "
            "--negative, and the column with --label-column."
        )
    groups, true, said = (list(column) for column in zip(*chosen, strict=True))
    counts = _confusion(np.array(said, dtype=bool), np.array(true, dtype=bool))
    total, drawn = counts.sum(0), resampled_counts(groups, seed) @ counts
    tp, fp, fn, tn = (int(n) for n in total)
    return Calibration(
        judge=judge.name,
        verdict=verdict,
        n=len(chosen),
        positives=tp + fn,
        confusion=(tp, fp, fn, tn),
        precision=_measure(_precision, total, drawn),
        recall=_measure(_recall, total, drawn),
        f1=_measure(_f1, total, drawn),
        kappa=_measure(_kappa, total, drawn),
        unscored=sum(t is not None and v == "unscored" for _, t, v in told),
        others=_others(labels, truth, verdicts),
        unusable=len(rows) - len(labelled),
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


def _usable(row: Row, label_column: str) -> bool:
    return all(isinstance(row.get(name), str) for name in ("prompt", "response", label_column))


def _truth(label: str, positive: Sequence[str], negative: Sequence[str]) -> bool | None:
    if label in positive:
        return True
    return False if label in negative else None


def _confusion(said: NDArray[np.bool_], true: NDArray[np.bool_]) -> Counts:
    """One row an answer, a 1 in the cell it falls into."""
    cells = (said & true, said & ~true, ~said & true, ~said & ~true)
    return np.stack(cells, axis=1).astype(np.float64)


def _measure(of: Callable[[Counts], Counts], total: Counts, drawn: Counts) -> Measure:
    value, draws = float(of(total)), of(drawn)
    if np.isnan(value):
        tp, fp, _, _ = total
        never = "the judge says yes to none of them" if tp + fp == 0 else "the answers do not vary"
        return Measure(None, None, f"{never}, so that it divides by nothing")
    return Measure(value, percentiles(draws))


def _precision(counts: Counts) -> Counts:
    tp, fp, _, _ = np.moveaxis(counts, -1, 0)
    return _ratio(tp, tp + fp)


def _recall(counts: Counts) -> Counts:
    tp, _, fn, _ = np.moveaxis(counts, -1, 0)
    return _ratio(tp, tp + fn)


def _f1(counts: Counts) -> Counts:
    tp, fp, fn, _ = np.moveaxis(counts, -1, 0)
    return _ratio(2 * tp, 2 * tp + fp + fn)


def _kappa(counts: Counts) -> Counts:
    tp, fp, fn, tn = np.moveaxis(counts, -1, 0)
    n = tp + fp + fn + tn
    agreed = (tp + tn) / n
    chance = ((tp + fp) * (tp + fn) + (fn + tn) * (fp + tn)) / n**2
    return _ratio(agreed - chance, 1 - chance)


def _ratio(over: Any, under: Any) -> Counts:
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(np.divide(over, under), dtype=np.float64)
