"""How far a judge agrees with people: precision, recall, F1 and kappa, with bootstrap intervals."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from refusal_cliff.answers.agreement import Agreement, Measure, agreement
from refusal_cliff.answers.correction import error_of
from refusal_cliff.data.fields import bad, shown
from refusal_cliff.data.reading import DEFAULT, Reading, source_rows, used_and_left_out
from refusal_cliff.data.shapes import trace_of_row
from refusal_cliff.data.types import LeftOut, Row, Trace
from refusal_cliff.errors import RefusalCliffError
from refusal_cliff.io import fields_of
from refusal_cliff.judges import Judge, answer_of

_SHOWN = ("precision", "recall", "specificity", "f1", "kappa")


@dataclass(frozen=True, slots=True)
class Calibration(Agreement):
    """A judge against people.

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
            f"{self.judge}: {self.verdict} against people on {self.n:,} answers "
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


def _truth(label: str, positive: Sequence[str], negative: Sequence[str]) -> bool | None:
    if label in positive:
        return True
    return False if label in negative else None
