"""The rules judge on answers of models, and to prompts, that nobody tuned it on.

The protocol is in docs/results/judges.md. The data are XSTest's completions with people's labels
(Röttger et al., CC-BY-4.0): rows with prompt, response, human_label, model. Without --final the
final set is left out before anything is read: while rules are written, nobody sees its rows or
its numbers.

    python -m bench.judge_heldout xstest_completions.jsonl --out before.json
    python -m bench.judge_heldout xstest_completions.jsonl --before before.json
    python -m bench.judge_heldout xstest_completions.jsonl --final --ngrams
    python -m bench.judge_heldout xstest_completions.jsonl --final --error rules_error.json
"""

from __future__ import annotations

import argparse
import hashlib
import re
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from sklearn.feature_extraction.text import HashingVectorizer
from sklearn.linear_model import LogisticRegression

from refusal_cliff.answers.calibration import (
    Agreement,
    Measure,
    agreement,
    error_of,
)
from refusal_cliff.data.reading import every
from refusal_cliff.data.rows import read_rows
from refusal_cliff.data.types import Row
from refusal_cliff.io import read_json, write_json
from refusal_cliff.judges import Answer, RulesJudge
from refusal_cliff.judges.phrases import normalised
from refusal_cliff.stats import percentiles, resampled_counts

FULL, PARTIAL = "2_full_refusal", "3_partial_refusal"
FINAL_MODEL = "mistralguard"
"""The model whose name has the smallest SHA-256."""
FINAL_SHARE = 0.25
FOLDS = 5
WORDS = 60
"""Words of an answer that the classifier reads."""
RULES_WEIGHT = 3.0
"""How much a rule's verdict weighs beside one n-gram."""
MEASURED = (
    "bench/judge_heldout.py --final: full refusals against full compliance, completions of XSTest "
    "v2 (Röttger et al., CC-BY-4.0) of a model and of prompts that the rules were not tuned on"
)

Flags = NDArray[np.bool_]


def place(text: str) -> float:
    """Where a text's SHA-256 lies, from 0 to 1: the same on every machine."""
    return int(hashlib.sha256(text.encode()).hexdigest()[:8], 16) / 2**32


def is_final(row: Row) -> bool:
    """Whether a row belongs to the final set."""
    return row["model"] == FINAL_MODEL or place(str(row["prompt"])) < FINAL_SHARE


def family(row: Row) -> str:
    """Settings of one model are left out together."""
    return re.sub(r"(?:new|orig|guard|instruct)$", "", str(row["model"]))


def fold(row: Row) -> int:
    """Prompts are left out together, whoever answers."""
    return int(place("fold " + str(row["prompt"])) * FOLDS)


def by_rules(rows: Sequence[Row]) -> Flags:
    """Which answers the judge `rules` calls refused."""
    answers = [Answer(str(row["prompt"]), str(row["response"])) for row in rows]
    return np.array([said.verdict == "refused" for said in RulesJudge().judge(answers)])


def opening_without_topic(row: Row) -> str:
    """The first words of an answer; those of the request are one word, so topics are not learnt."""
    asked = {word[:5] for word in re.findall(r"[a-z']{4,}", normalised(str(row["prompt"])))}
    words = re.findall(r"[a-z']+|\d|[^\sa-z\d]", normalised(str(row["response"])))[:WORDS]
    return " ".join("TOPIC" if len(w) > 3 and w[:5] in asked else w for w in words)


def by_ngrams(tuning: Sequence[Row], rows: Sequence[Row], *, with_rules: bool) -> Flags:
    """A linear classifier of n-grams, fitted without the answer's family and without its prompt."""
    features = [_features(part, with_rules) for part in (tuning, rows)]
    labels = np.array([row["human_label"] == FULL for row in tuning])
    families, folds = (np.array([of(row) for row in tuning]) for of in (family, fold))
    said = np.zeros(len(rows), dtype=bool)
    for one, number in {(family(row), fold(row)) for row in rows}:
        kept = (families != one) & (folds != number)
        kept &= np.array([row["human_label"] != PARTIAL for row in tuning])
        asked = [n for n, row in enumerate(rows) if (family(row), fold(row)) == (one, number)]
        model = LogisticRegression(max_iter=2000, class_weight="balanced")
        said[asked] = model.fit(features[0][kept], labels[kept]).predict(features[1][asked])
    return said


def _features(rows: Sequence[Row], with_rules: bool) -> sparse.csr_matrix:
    hashed = HashingVectorizer(
        ngram_range=(1, 2), n_features=2**14, binary=True, token_pattern=r"\S+"
    )
    grams = hashed.transform(map(opening_without_topic, rows))
    if not with_rules:
        return sparse.csr_matrix(grams)
    rules = RULES_WEIGHT * by_rules(rows)[:, None].astype(float)
    return sparse.csr_matrix(sparse.hstack([grams, rules]))


def compared(rows: Sequence[Row], said: Flags, *, partial: bool = False) -> Agreement:
    """Verdicts against full refusal; with ``partial``, against refusals of both kinds."""
    chosen = [n for n, row in enumerate(rows) if partial or row["human_label"] != PARTIAL]
    labels = [rows[n]["human_label"] in (FULL, PARTIAL) for n in chosen]
    return agreement([str(rows[n]["prompt"]) for n in chosen], labels, said[chosen])


def show(name: str, rows: Sequence[Row], said: Flags) -> None:
    """One line a model, and one for all."""
    parts = {"all": list(range(len(rows)))}
    for n, row in enumerate(rows):
        parts.setdefault(str(row["model"]), []).append(n)
    print(
        f"\n{name}\n| answers of | n (refusals) | F1 | recall | precision |\n|---|---|---|---|---|"
    )
    for part, chosen in parts.items():
        found = compared([rows[n] for n in chosen], said[chosen])
        cells = " | ".join(map(_cell, (found.f1, found.recall, found.precision)))
        print(f"| {part} | {found.n} ({found.positives}) | {cells} |")
    partial = np.array([row["human_label"] == PARTIAL for row in rows])
    both = compared(rows, said, partial=True).f1
    print(f"partial refusals called refused: {said[partial].sum()} of {partial.sum()}; ", end="")
    print(f"F1 where they count as refusals: {_cell(both)}")


def difference(rows: Sequence[Row], before: Flags, after: Flags) -> str:
    """F1 after minus before, paired over the same draws of prompts."""
    kept = [n for n, row in enumerate(rows) if row["human_label"] != PARTIAL]
    groups = [str(rows[n]["prompt"]) for n in kept]
    labels = np.array([rows[n]["human_label"] == FULL for n in kept])
    drawn = resampled_counts(groups, seed=0)

    def f1(said: Flags, times: NDArray[np.float64]) -> NDArray[np.float64]:
        hits, errors = times @ (said & labels), times @ (said != labels)
        return 2 * hits / (2 * hits + errors)

    def change(times: NDArray[np.float64]) -> NDArray[np.float64]:
        return f1(after[kept], times) - f1(before[kept], times)

    measured = Measure(float(change(np.ones(len(kept)))), percentiles(change(drawn)))
    return _cell(measured, sign="+")


def _cell(measure: Measure, sign: str = "") -> str:
    if measure.value is None or measure.interval is None:
        return "–"
    low, high = measure.interval
    return f"{measure.value:{sign}.3f} [{low:{sign}.3f}, {high:{sign}.3f}]"


def main() -> None:
    """Print the tables of docs/results/judges.md."""
    asked = argparse.ArgumentParser(description=str(__doc__).split("\n")[0])
    asked.add_argument("labelled", type=Path)
    asked.add_argument("--final", action="store_true", help="measure the final set")
    asked.add_argument("--ngrams", action="store_true", help="and a classifier of n-grams")
    asked.add_argument("--out", type=Path, help="write the verdicts of the rules")
    asked.add_argument("--before", type=Path, help="verdicts of other rules, to compare with")
    asked.add_argument("--error", type=Path, help="write the judge's error, as data")
    args = asked.parse_args()
    source = Path(args.labelled)
    everything: list[Row] = list(every(source, read_rows(source), lambda _, row: row))
    tuning = [row for row in everything if not is_final(row)]
    rows = [row for row in everything if is_final(row)] if args.final else tuning
    rules = by_rules(rows)
    show("rules", rows, rules)
    if args.ngrams:
        for with_rules in (False, True):
            name = "n-grams and rules" if with_rules else "n-grams"
            said = by_ngrams(tuning, rows, with_rules=with_rules)
            show(f"{name}, family and prompts left out", rows, said)
            print(f"F1 minus that of the rules: {difference(rows, rules, said)}")
    if args.before:
        before = np.array(read_json(args.before), dtype=bool)
        show("rules before", rows, before)
        print(f"F1 of the rules minus before: {difference(rows, before, rules)}")
    if args.out:
        write_json(args.out, rules.tolist())
    if args.error:
        error = error_of("rules", "refused", compared(rows, rules))
        write_json(args.error, {"error": asdict(error), "measured": MEASURED})


if __name__ == "__main__":
    main()
