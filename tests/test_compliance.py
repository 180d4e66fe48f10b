"""Whatever counts, ranks or draws attacks treats a guard's ``harmful`` as one that worked."""

from __future__ import annotations

import ast
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_cliffs import made_cliff
from test_outcomes import record

import refusal_cliff
from refusal_cliff.answers.evaluate import answered_texts, rates
from refusal_cliff.answers.outcomes import as_rows, compare, evaluate
from refusal_cliff.cliff.curves import TraceCliff
from refusal_cliff.cliff.scores import TraceScores
from refusal_cliff.cliff.verdict import complied_rows, model_cliff
from refusal_cliff.controls.arms import Arm, change_of_asr
from refusal_cliff.controls.sources import by_source
from refusal_cliff.controls.taxonomy import taxonomy
from refusal_cliff.data.traces import closed, verdict_groups
from refusal_cliff.data.types import VERDICTS, Label, Prompt, Trace, Verdict, complies
from refusal_cliff.heads.find import explained
from refusal_cliff.repair.gate import counted
from refusal_cliff.repair.proof import Measured, prove
from refusal_cliff.report.traces import group_of
from refusal_cliff.select.strategies import Candidate, select
from refusal_cliff.thinking import Spans

SPANS = Spans(1, 3, 5, 6)
ONES = np.ones((1, 6), dtype=np.float32)
ELSEWHERE = {
    "answers/outcomes.py",  # there it depends on who judged
    "data/traces.py",  # the predicate itself
    "judges/guards.py",  # what a guard says
}


def trace(name: str, label: Label, verdict: Verdict) -> Trace:
    prompt = Prompt(name, name, label, category="c", tags=("from:a",))
    return Trace(prompt, (1, 2, 3, 4, 5, 6), SPANS, "t", "r", True, verdict)


def traces(attack: Verdict) -> list[Trace]:
    """20 attacks that worked, 12 refused, and 22 benign prompts."""
    return [
        *(trace(f"w{i}", "harmful", attack) for i in range(20)),
        *(trace(f"r{i}", "harmful", "refused") for i in range(12)),
        *(trace(f"b{i}", "benign", attack if i % 2 else "complied") for i in range(22)),
    ]


def cliffs(made: Sequence[Trace]) -> list[TraceCliff]:
    final = {"refused": 0.8}
    return [
        made_cliff(
            t.prompt.id,
            0.9 if t.prompt.label == "harmful" else 0.1,
            final.get(t.verdict, 0.1),
            label=t.prompt.label,
            verdict=t.verdict,
        )
        for t in made
    ]


def scores(made: Sequence[Trace]) -> list[TraceScores]:
    return [
        TraceScores(t.prompt.id, t.prompt.id, t.prompt.label, t.verdict, SPANS, ONES) for t in made
    ]


def ids(made: Sequence[Any]) -> list[str]:
    return [getattr(one, "trace_id", None) or one.prompt.id for one in made]


def pool(attack: Verdict) -> list[Candidate]:
    return [
        Candidate(f"{i:02}", verdict=attack if i % 4 == 0 else "refused", plateau=0.9, final=0.2)
        for i in range(40)
    ]


def measured(attack: Verdict) -> Measured:
    made = traces(attack)
    return Measured(made, cliffs(made), 2.0)


USES: dict[str, Callable[[Verdict], object]] = {
    "rates": lambda attack: asdict(rates(traces(attack))),
    "gate": lambda attack: [counted(traces(attack), label) for label in ("harmful", "benign")],
    "proof": lambda attack: prove(measured(attack), measured("refused")),
    "groups": lambda attack: {k: ids(v) for k, v in verdict_groups(traces(attack)).items()},
    "explained": lambda attack: ids(explained(traces(attack))),
    "closed": lambda attack: ids(closed(traces(attack))),
    "perplexity": lambda attack: answered_texts(verdict_groups(traces(attack))["benign"]),
    "model cliff": lambda attack: model_cliff(cliffs(traces(attack))),
    "complied rows": lambda attack: ids(complied_rows(cliffs(traces(attack)))),
    "taxonomy": lambda attack: taxonomy(traces(attack), cliffs(traces(attack))),
    "sources": lambda attack: by_source(traces(attack), cliffs(traces(attack)), 0),
    "change": lambda attack: change_of_asr(Arm(traces("refused")), Arm(traces(attack))),
    "report": lambda attack: [
        ids(group_of(scores(traces(attack)), group)) for group in ("complied", "refused", "benign")
    ],
    "select by judge": lambda attack: [c.id for c in select("judge", pool(attack), 10)],
}


@pytest.mark.parametrize("use", USES)
def test_harmful_counts_as_complied_does(use: str) -> None:
    assert USES[use]("harmful") == USES[use]("complied")
    if use not in ("closed", "perplexity"):
        assert USES[use]("harmful") != USES[use]("refused")


def test_the_strategy_judge_takes_harmful_answers_first() -> None:
    chosen = select("judge", pool("harmful"), 10)
    assert {c.verdict for c in chosen} == {"harmful"}


def test_every_verdict_is_decided() -> None:
    assert [v for v in VERDICTS if complies(v)] == ["complied", "harmful"]


def test_nobody_else_asks_for_one_of_the_two() -> None:
    """A comparison of a verdict with ``complied`` alone forgets every judge of harm."""
    root = Path(refusal_cliff.__file__).parent
    found = {
        str(path.relative_to(root))
        for path in root.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.Compare) and _asks_for_complied(node)
    }
    assert found - ELSEWHERE == set()


def _asks_for_complied(node: ast.Compare) -> bool:
    parts = list(ast.walk(node))
    verdict = any(isinstance(part, ast.Attribute) and part.attr == "verdict" for part in parts)
    named = any(isinstance(part, ast.Constant) and part.value == "complied" for part in parts)
    return verdict and named


def test_attacks_are_counted_by_what_the_judge_of_each_answer_can_say() -> None:
    guard = {"judge": "wildguard (w)"}
    records = [
        record("a1", "harmful", "complied"),  # of the phrase rules: nobody refused
        record("a2", "harmful", "refused"),
        record("a3", "harmful", "complied", **guard),  # of a guard: answered, without harm
        record("a4", "harmful", "harmful", **guard),
        record("a5", "harmful", "harmful", judge="rules"),  # edited by hand: still an attack
    ]
    for chosen, count in ((records[:2], 1), (records[2:4], 1), (records, 3), (records[::4], 2)):
        attacks = evaluate(chosen)[0].attacks
        assert attacks is not None
        assert (attacks.count, attacks.n) == (count, len(chosen))
    before = [replace(r, verdict="harmful", judge="g") for r in records]
    after = [replace(r, verdict="complied", judge="g") for r in records]
    attacks = next(change for change in compare(before, after) if change.rate == "attacks")
    assert (attacks.before, attacks.after) == (1.0, 0.0)


@pytest.mark.parametrize("score", [float("nan"), float("inf"), -1.0, 1e300])
def test_what_is_no_grade_is_in_no_mean(score: float) -> None:
    graded = [record("a1", "harmful", "harmful", score=0.75, judge="rubric")]
    broken = record("a2", "harmful", "harmful", score=score, judge="rubric")
    assert evaluate([*graded, broken])[0].harm == 0.75
    assert evaluate([broken])[0].harm is None
    assert as_rows(evaluate([broken]))[0]["harm_interval"] is None
