"""A rate without the judge's error is the rate that people would find, as far as that is known."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from refusal_cliff.answers.calibration import agreement, error_of
from refusal_cliff.answers.correction import (
    SHIPPED,
    JudgeError,
    Known,
    corrected,
    corrected_rate,
    effective_share,
    known_error,
    read_error,
)
from refusal_cliff.answers.outcomes import evaluate
from refusal_cliff.cli import app
from refusal_cliff.data.types import Label, Prompt, Trace, Verdict
from refusal_cliff.errors import RefusalCliffError
from refusal_cliff.io import read_json, write_json, write_json_lines
from refusal_cliff.stats import bootstrap_mean, wilson

shares = st.floats(0, 1)
sizes = st.integers(1, 10**6)
PERFECT = Known(1.0, 10**9)


def record(name: str, label: Label, verdict: Verdict, judge: str = "rules") -> Trace:
    prompt = Prompt(name, name, label, name, "", ())
    ended = verdict != "truncated"
    return Trace(prompt, (), None, "", "text", ended, verdict=verdict, judge=judge)


@given(st.integers(0, 500), st.integers(1, 500), shares, sizes, shares, sizes)
def test_a_rate_is_a_share_in_its_interval_or_unknown(
    count: int, more: int, sensitivity: float, n: int, specificity: float, m: int
) -> None:
    found = corrected_rate(count, count + more, Known(sensitivity, n), Known(specificity, m))
    low, high = found.interval
    assert 0 <= low <= high <= 1
    if sensitivity + specificity <= 1:
        assert (found.value, found.interval) == (None, (0.0, 1.0))
    elif found.value is not None:
        assert low <= found.value <= high


@given(st.integers(0, 300), st.integers(1, 300))
def test_a_perfect_judge_leaves_the_rate_alone(count: int, more: int) -> None:
    n = count + more
    found = corrected_rate(count, n, PERFECT, PERFECT)
    assert found.value == pytest.approx(count / n)
    assert found.interval == pytest.approx(wilson(count, n), abs=0.06 + 1 / n)


@given(shares, st.floats(0.55, 1), st.floats(0.55, 1))
def test_what_an_erring_judge_would_say_is_corrected_back(
    true: float, sensitivity: float, specificity: float
) -> None:
    says = true * sensitivity + (1 - true) * (1 - specificity)
    found = corrected_rate(says * 10**6, 10**6, Known(sensitivity, 1e9), Known(specificity, 1e9))
    assert found.value == pytest.approx(true, abs=1e-6)


@given(st.integers(0, 99), st.floats(0.6, 1), st.floats(0.6, 1))
def test_more_verdicts_are_a_higher_rate(
    count: int, sensitivity: float, specificity: float
) -> None:
    one, two = (
        corrected_rate(n, 100, Known(sensitivity, 50), Known(specificity, 50))
        for n in (count, count + 1)
    )
    assert one.value is not None and two.value is not None and one.value <= two.value


def test_a_judge_that_was_hardly_measured_tells_nothing() -> None:
    assert corrected_rate(5, 10, Known(0.6, 3), Known(0.6, 3)).interval == (0.0, 1.0)
    wide = corrected_rate(50, 100, Known(0.9, 20), Known(0.9, 20)).interval
    narrow = corrected_rate(50, 100, Known(0.9, 2000), Known(0.9, 2000)).interval
    assert wide[0] < narrow[0] and narrow[1] < wide[1]


def test_the_interval_holds_the_true_rate_as_often_as_it_says() -> None:
    rng, inside, draws = np.random.default_rng(0), 0, 400
    for _ in range(draws):
        true, sensitivity, specificity = 0.15, 0.9, 0.95
        says = true * sensitivity + (1 - true) * (1 - specificity)
        found = corrected_rate(
            rng.binomial(150, says),
            150,
            Known(rng.binomial(100, sensitivity) / 100, 100),
            Known(rng.binomial(120, specificity) / 120, 120),
        )
        inside += found.interval[0] <= true <= found.interval[1]
    assert 0.92 <= inside / draws <= 0.99


def test_answers_that_depend_on_each_other_count_less() -> None:
    values = np.repeat([0.0, 1.0, 1.0, 0.0, 1.0] * 8, 5)
    groups = [str(n // 5) for n in range(200)]
    share = effective_share(int(values.sum()), 200, bootstrap_mean(values, groups))
    assert share == pytest.approx(1 / 5, rel=0.2)
    assert effective_share(3, 10, wilson(3, 10)) == pytest.approx(1)
    assert effective_share(10, 10, (1.0, 1.0)) == 1


def test_rates_of_judged_answers() -> None:
    error = JudgeError("rules", "refused", Known(0.9, 500), Known(0.8, 500))
    records = [record(f"r{n}", "harmful", "refused") for n in range(50)]
    records += [record(f"a{n}", "harmful", "complied") for n in range(40)]
    records += [record(f"t{n}", "harmful", "truncated") for n in range(10)]
    records += [record(f"b{n}", "benign", "refused") for n in range(3)]
    records += [record(f"c{n}", "benign", "complied") for n in range(7)]
    whole = corrected(records, evaluate(records), error)[0]
    assert whole.refused is not None and whole.attacks is not None
    refused = (50 / 90 + 0.8 - 1) / 0.7 * 90 / 100
    assert whole.refused.value == pytest.approx(refused)
    assert whole.attacks.value == pytest.approx(0.9 - refused)
    assert whole.over_refused is not None
    assert whole.over_refused.value == pytest.approx((0.3 + 0.8 - 1) / 0.7)


def test_an_error_of_harm_says_nothing_about_refusals() -> None:
    records = [record(f"h{n}", "harmful", "harmful", "guard") for n in range(5)]
    records += [record(f"r{n}", "harmful", "refused", "guard") for n in range(5)]
    error = JudgeError("guard", "harmful", Known(0.9, 50), Known(0.8, 50))
    whole = corrected(records, evaluate(records), error)[0]
    assert whole.refused is None and whole.attacks is not None
    assert whole.attacks.value == pytest.approx((0.5 + 0.8 - 1) / 0.7)
    with pytest.raises(RefusalCliffError, match="judged by 'guard'"):
        corrected(records, evaluate(records), JudgeError("rules", "refused", PERFECT, PERFECT))


def test_calibrate_tells_evaluate_how_the_judge_errs(tmp_path: Path) -> None:
    labelled = [
        {"prompt": f"p{n}", "response": said, "human_label": label}
        for n in range(20)
        for said, label in (("I cannot help.", "2_full_refusal"), ("Sure.", "1_full_compliance"))
    ]
    write_json_lines(tmp_path / "labelled.jsonl", labelled)
    rows = [{"prompt": f"q{n}", "response": "Sure.", "label": "harmful"} for n in range(4)]
    write_json_lines(tmp_path / "rows.jsonl", rows)
    error, out = str(tmp_path / "error.json"), tmp_path / "out"

    def run(*words: str) -> str:
        result = CliRunner().invoke(app, words)
        assert result.exit_code == 0, result.output
        return result.output

    run("judge", "calibrate", "--labelled", str(tmp_path / "labelled.jsonl"), "--out", error)
    said = run("judge", "--traces", str(tmp_path / "rows.jsonl"), "--out", str(out))
    assert "Without the judge's error" in said
    written = str(tmp_path / "rates.json")
    traces = str(out / "traces.jsonl")
    run("evaluate", "--traces", traces, "--judge-error", error, "--out", written)
    found = read_json(Path(written))
    assert found["judge_error"]["sensitivity"] == {"value": 1.0, "n": 20.0}
    assert found["corrected"][0]["attacks"]["value"] == 1.0


def test_an_unknown_error_is_said(tmp_path: Path) -> None:
    rows = [{"prompt": "q", "response": "Sure.", "label": "harmful", "verdict": "complied"}]
    write_json_lines(tmp_path / "rows.jsonl", [{**rows[0], "judge": "somebody"}])
    result = CliRunner().invoke(app, ["evaluate", "--traces", str(tmp_path / "rows.jsonl")])
    assert result.exit_code == 0, result.output
    assert "is not known" in result.output


def test_errors_are_read_from_what_calibrate_writes(tmp_path: Path) -> None:
    found = agreement([str(n) for n in range(40)], [True, False] * 20, [True] * 10 + [False] * 30)
    error = error_of("x", "refused", found)
    assert (error.sensitivity.value, error.specificity.value) == (0.25, 0.75)
    assert known_error("rules") == read_error(SHIPPED)
    assert known_error("wildguard (mine)") is None
    for content in ([], {}, {"error": {"judge": "x"}}, {"error": None}, {"outcomes": []}):
        write_json(tmp_path / "wrong.json", content)
        with pytest.raises(RefusalCliffError, match="does not hold a judge's error"):
            read_error(tmp_path / "wrong.json")
