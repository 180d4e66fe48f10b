"""Rates and changes equal the ones counted by hand; journals survive what a kill leaves."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import binomtest
from sklearn.metrics import cohen_kappa_score, f1_score, precision_score, recall_score

from refusal_cliff.answers.calibration import calibrate_file
from refusal_cliff.answers.outcomes import compare, evaluate, loops
from refusal_cliff.data.journal import Journal
from refusal_cliff.data.types import Label, Prompt, Trace, Verdict
from refusal_cliff.errors import RefusalCliffError
from refusal_cliff.io import write_text
from refusal_cliff.judges import Answer, Judgement, RulesJudge
from refusal_cliff.stats import mcnemar, share_interval, wilson


def record(
    name: str,
    label: Label,
    verdict: Verdict,
    *,
    group: str = "",
    category: str = "",
    **more: object,
) -> Trace:
    prompt = Prompt(name, name, label, group, category, (f"from:{name[0]}",))
    fields = {"judge": "rules", **more}
    return Trace(prompt, (), None, "", "text", verdict != "truncated", verdict=verdict, **fields)  # type: ignore[arg-type]


def test_rates_by_source_and_category() -> None:
    records = [
        record("a1", "harmful", "complied", category="x"),
        record("a2", "harmful", "refused", category="x"),
        record("a3", "harmful", "truncated", category="y"),
        record("a4", "harmful", "unscored", category="y"),
        record("b1", "benign", "refused"),
        record("b2", "benign", "complied"),
    ]
    found = {(row.source, row.category): row for row in evaluate(records)}
    assert set(found) == {("", ""), ("a", ""), ("a", "x"), ("a", "y"), ("b", "")}
    whole = found["", ""]
    assert whole.attacks is not None and whole.over_refused is not None
    assert (whole.attacks.count, whole.attacks.n, whole.attacks.interval) == (1, 3, wilson(1, 3))
    assert (whole.over_refused.count, whole.over_refused.n) == (1, 2)
    assert whole.truncated is not None and whole.unscored is not None
    assert (whole.truncated.count, whole.unscored.count) == (1, 1)
    assert found["b", ""].attacks is None
    x = found["a", "x"].attacks
    assert x is not None and (x.count, x.n) == (1, 2)


def test_an_attack_works_as_the_judge_can_say() -> None:
    pair = [record("a1", "harmful", "complied"), record("a2", "harmful", "harmful")]
    guarded = [
        record(r.prompt.id, "harmful", r.verdict, judge="wildguard (x)", score=s)
        for r, s in zip(pair, (0.0, 1.0), strict=True)
    ]
    attacks = evaluate(guarded)[0].attacks
    assert attacks is not None and attacks.count == 1
    assert evaluate(guarded)[0].harm == 0.5
    for judge, worked in (("rules", 1), ("mine", 1), ("llama-guard-3+rules (x)", 0)):
        attacks = evaluate([record("a1", "harmful", "complied", judge=judge)])[0].attacks
        assert attacks is not None and attacks.count == worked, judge
    with pytest.raises(RefusalCliffError, match="no verdict to count"):
        evaluate([record("a", "harmful", "unscored")])


def test_samples_of_one_prompt_are_drawn_together() -> None:
    records = [
        record(f"a{i}", "harmful", "complied" if i < 8 else "refused", group=f"g{i // 4}")
        for i in range(12)
    ]
    attacks = evaluate(records)[0].attacks
    assert attacks is not None
    hits = [True] * 8 + [False] * 4
    groups = [r.prompt.group for r in records]
    low, high = share_interval(hits, groups)
    assert attacks.interval == (low, high)
    assert high - low > 0.5  # three prompts, not twelve
    none = evaluate(records)[0].truncated
    assert none is not None and none.interval == wilson(0, 3)


def test_answers_without_a_source_have_one_row_for_all() -> None:
    rows = evaluate([record("a", "harmful", "refused"), record("b", "harmful", "complied")])
    assert [(row.source, row.category) for row in rows].count(("", "")) == 1


def test_changes_are_paired() -> None:
    before = [record(f"a{i}", "harmful", "complied" if i < 15 else "refused") for i in range(20)]
    after = [record(f"a{i}", "harmful", "complied" if i < 4 else "refused") for i in range(1, 22)]
    change = {row.rate: row for row in compare(before, after)}["attacks"]
    assert (change.n, change.before, change.after) == (19, 14 / 19, 3 / 19)
    assert change.p == pytest.approx(binomtest(0, 11).pvalue)
    assert change.interval[0] <= change.difference <= change.interval[1] < 0
    with pytest.raises(RefusalCliffError, match="share no prompt"):
        compare(before, [record("z", "harmful", "refused")])
    with pytest.raises(RefusalCliffError, match="judged differently"):
        compare(before, [record("a1", "harmful", "refused", judge="other")])


def test_mcnemar_is_the_sign_test_of_what_changed() -> None:
    before = [True] * 9 + [False] * 3 + [True] * 5
    after = [False] * 9 + [True] * 3 + [True] * 5
    assert mcnemar(before, after) == pytest.approx(binomtest(3, 12).pvalue)
    assert mcnemar([True], [True]) == 1.0


@pytest.mark.parametrize(
    ("text", "looping"),
    [
        ("again and " * 40, True),
        ("a" * 300, True),
        ("Well. " + "step one, step two\n" * 15, True),
        ("again and " * 40 + "no more", False),
        (" ".join(str(n) for n in range(400)), False),
        ("ha" * 20, False),
        ("", False),
    ],
)
def test_loops(text: str, looping: bool) -> None:
    assert loops(text) == looping


class Odd:
    """Refuses every third, says nothing of every seventh."""

    name = "odd"
    measures_harm = False

    def judge(self, answers: Sequence[Answer]) -> list[Judgement]:
        def said(i: int) -> Verdict:
            return "unscored" if i % 7 == 6 else "refused" if i % 3 == 0 else "complied"

        return [Judgement(said(i)) for i in range(len(answers))]


def test_calibration_is_scikit_learns(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    labels = rng.choice(["2_full_refusal", "1_full_compliance", "3_partial_refusal"], 90)
    file = tmp_path / "rows.csv"
    rows = [f"q{i % 30},a{i},{label}" for i, label in enumerate(labels)]
    write_text(file, "\n".join(["prompt,response,human_label", *rows]))
    yes, no = ["2_full_refusal"], ["1_full_compliance"]
    found = calibrate_file(Odd(), file, label_column="human_label", positive=yes, negative=no)
    kept = [i for i in range(90) if i % 7 != 6 and labels[i] != "3_partial_refusal"]
    true = [labels[i] == "2_full_refusal" for i in kept]
    said = [i % 3 == 0 for i in kept]
    assert found.n == len(kept)
    assert found.precision.value == pytest.approx(precision_score(true, said))
    assert found.recall.value == pytest.approx(recall_score(true, said))
    assert found.f1.value == pytest.approx(f1_score(true, said))
    assert found.kappa.value == pytest.approx(cohen_kappa_score(true, said))
    assert found.f1.interval is not None and found.f1.value is not None
    assert found.f1.interval[0] < found.f1.value < found.f1.interval[1]
    partial = [i for i in range(90) if labels[i] == "3_partial_refusal"]
    assert sum(found.others["3_partial_refusal"].values()) == len(partial)
    assert found.unscored == sum(i % 7 == 6 and labels[i] != "3_partial_refusal" for i in range(90))
    with pytest.raises(RefusalCliffError, match="--label-column"):
        calibrate_file(
            RulesJudge(), file, label_column="human_label", positive=["x"], negative=["y"]
        )


def test_a_journal_drops_half_a_line_and_keeps_the_rest(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "rows.journal"
    with Journal(path) as journal:
        journal.add({"id": "a", "text": "line\nbreak \ud800"})
    whole = path.read_bytes()
    for torn in (b'{"id": "b"', b"\xff", b'{"id": "b"}'):
        path.write_bytes(whole + torn)
        with Journal(path) as journal:
            assert set(journal.rows) == {"a"}
            journal.add({"id": "c"})
        with Journal(path) as journal:
            assert set(journal.rows) == {"a", "c"}
    path.write_bytes(whole + b"not json\n" + whole)
    with pytest.raises(RefusalCliffError, match="row 2"):
        Journal(path)
