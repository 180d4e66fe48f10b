"""A guard judge in audit, check, select, repair and ablate: what it calls harmful is an attack."""

from __future__ import annotations

import json
import re
import signal
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import killed_audit
import pyarrow.parquet as pq
import pytest
from killable import whole_output
from rigged_guards import save_rigged
from tiny_chat import save_tiny
from typer.testing import CliRunner

from refusal_cliff.answers.correction import JudgeError, Known, judged_rates, refusal_error
from refusal_cliff.answers.evaluate import rates
from refusal_cliff.cli import app
from refusal_cliff.data.examples import write_examples, write_prompts
from refusal_cliff.data.journal import Journal
from refusal_cliff.data.traces import read_traces
from refusal_cliff.data.types import LABELS, Prompt, Trace, Verdict
from refusal_cliff.errors import RefusalCliffError
from refusal_cliff.findings.summary import read_summary
from refusal_cliff.generate import GenerationConfig
from refusal_cliff.io import read_json, write_json
from refusal_cliff.judges import (
    Answer,
    Judgement,
    JudgeSettings,
    Remembering,
    RulesJudge,
    judge_traces,
    knows_harm,
)
from refusal_cliff.judges.choose import chosen_judge, full_name, judge_of
from refusal_cliff.model.subject import load_subject
from refusal_cliff.organisms import language
from refusal_cliff.run.pipeline import stage_key
from refusal_cliff.settings import JUDGES
from refusal_cliff.stages.control import control_stages
from refusal_cliff.stages.intervene import AblationPlan, intervene_stages
from refusal_cliff.stages.measure import measure_stages
from refusal_cliff.stages.study import Study
from refusal_cliff.stats import Share
from refusal_cliff.thinking import Spans

KEY = "llama-guard-3"
SIZES = ("--max-new-tokens", "110", "--batch-size", "192", "--device", "cpu")


def run(*words: str | Path) -> tuple[int, str]:
    result = CliRunner().invoke(app, list(map(str, words)))
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, " ".join(result.output.split())


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A guard that calls what ``tiny`` answers harmful, and prompts of which it refuses enough."""
    root = tmp_path_factory.mktemp("judges")
    save_rigged(KEY, root / "guard")
    asked = language.prompts("test", "harmful", 200, 0)
    write_prompts(root / "harmful.jsonl", [p for p in asked if p.category in ("damage", "deceit")])
    write_prompts(root / "benign.jsonl", language.prompts("test", "benign", 90, 0))
    return root


def guard(root: Path) -> tuple[str, ...]:
    return ("--judge", KEY, "--judge-model", str(root / "guard"))


@pytest.fixture(scope="module")
def audited(root: Path) -> Path:
    files = ("--harmful", root / "harmful.jsonl", "--benign", root / "benign.jsonl")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("refusal_cliff.live._SECONDS_BETWEEN_LINES", 0.0)
        code, output = run(
            *("audit", "--model", "tiny", "--quick", *files, "--out", root / "run"),
            *guard(root),
            *SIZES,
        )
    assert code == 0, output
    told = re.findall(r"model/generate: [\d,]+ of (\d+)", output)
    assert told[0] == "160"  # of 190: two parts, 40 prompts of each label
    assert f"judged by {KEY}+rules" in output
    assert "error of this judge not given" in output
    return root / "run"


def test_an_audit_counts_harmful_as_attacks_and_names_its_judge(root: Path, audited: Path) -> None:
    name = f"{KEY}+rules ({root / 'guard'})"
    traces = read_traces(audited / "model" / "traces-test.parquet")
    verdicts = Counter(t.verdict for t in traces if t.prompt.label == "harmful")
    assert verdicts["harmful"] > 8 and verdicts["refused"] > 4
    summary = read_summary(audited / "summary.json")
    assert summary.ablation is not None
    assert summary.ablation.asr_before == pytest.approx(
        (verdicts["harmful"] + verdicts["complied"]) / summary.ablation.n
    )
    assert summary.cliff.verdict in ("cliff", "undecided") and summary.cliff.cliff > 0.3
    assert (summary.judge.judge, summary.judge.error) == (name, None)
    page = (audited / "report.html").read_text()
    assert name in page and "phrase rules" not in page
    assert read_json(audited / "model" / "ablation.json")["judge"] == name


def test_check_counts_them_too(root: Path, audited: Path, tmp_path: Path) -> None:
    write_prompts(tmp_path / "few.jsonl", language.prompts("test", "harmful", 24, 0))
    command = ("check", "--model", "tiny", "--probe", audited / "model")
    command = (*command, "--prompts", tmp_path / "few.jsonl", "--out", tmp_path / "out", *SIZES)
    code, output = run(*command, *guard(root))
    assert code == 3, output
    assert "error of this judge not given" in output
    judged = [row for row in rows_of(tmp_path / "out" / "answers.journal") if "verdict" in row]
    attacks = sum(row["verdict"] == "harmful" for row in judged)
    assert attacks > 8
    assert f"{attacks / len(judged):.2f} [" in output
    answers = sum("verdict" not in row for row in rows_of(tmp_path / "out" / "answers.journal"))
    code, output = run(*command)  # another judge: the answers stay
    assert "judged by rules, which calls 97.4% of what people call refused so" in output
    assert "corrected for the judge's error" in output
    again = rows_of(tmp_path / "out" / "answers.journal")
    assert sum("verdict" not in row for row in again) == answers
    assert sum("verdict" in row for row in again) == 2 * len(judged)
    code, output = run(*command[:2], "tiny-aligned", *command[3:])
    assert code == 1 and "holds answers with other settings: model" in output


def rows_of(journal: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in journal.read_text().splitlines()]


def test_select_by_a_guard_takes_what_it_calls_harmful(
    root: Path, audited: Path, tmp_path: Path
) -> None:
    write_examples(tmp_path / "pool.jsonl", language.safety_pool(40, 0))
    command = ("select", "--model", "tiny", "--probe", audited / "model", "--out", tmp_path / "s")
    command = (*command, "--data", tmp_path / "pool.jsonl", "--strategy", "judge", "--n", "2")
    code, output = run(*command, *guard(root), *SIZES)
    assert code == 0, output
    table = pq.read_table(tmp_path / "s" / "scores" / "scores-00000.parquet").to_pylist()
    harmful = {row["row"] for row in table if row["verdict"] == "harmful"}
    chosen = [json.loads(line) for line in (tmp_path / "s" / "selected.jsonl").open()]
    assert {"harmful", "refused"} <= {row["verdict"] for row in table}
    assert {row["row"] for row in chosen} <= harmful
    report = read_json(tmp_path / "s" / "selection.json")
    assert report["complied_chosen"] == 2
    code, output = run(*command, *SIZES)
    assert code == 1 and "with other settings: judge differ" in output


def test_a_repair_is_proved_by_the_judge_that_was_named(
    root: Path, audited: Path, tmp_path: Path
) -> None:
    write_examples(tmp_path / "pool.jsonl", language.safety_pool(16, 0))
    write_examples(tmp_path / "benign.jsonl", language.examples("pool", "benign", 8, 0))
    both = [p for label in LABELS for p in language.prompts("test", label, 12, 0)]
    write_prompts(tmp_path / "asked.jsonl", both)
    error = {"value": 0.9, "n": 100}
    name = f"{KEY}+rules ({root / 'guard'})"
    told = {"judge": name, "verdict": "refused", "sensitivity": error, "specificity": error}
    write_json(tmp_path / "error.json", {"error": told})
    code, output = run(
        *("repair", "--model", "tiny", "--probe", audited / "model", "--out", tmp_path / "out"),
        *("--data", tmp_path / "pool.jsonl", "--benign", tmp_path / "benign.jsonl", "--n", "2"),
        *("--strategy", "judge", "--prompts", tmp_path / "asked.jsonl", "--steps", "1"),
        *("--train-batch-size", "2", "--judge-error", tmp_path / "error.json", *guard(root)),
        *SIZES,
    )
    assert code in (0, 3), output
    traces = read_traces(tmp_path / "out" / "proof" / "before" / "traces.parquet")
    verdicts = Counter(t.verdict for t in traces if t.prompt.label == "harmful")
    assert verdicts["harmful"] > 3
    proof = read_json(tmp_path / "out" / "proof" / "proof.json")
    assert proof["judge"] == name
    assert proof["before"]["attacks"]["count"] == verdicts["harmful"] + verdicts["complied"]
    card = (tmp_path / "out" / "adapter" / "README.md").read_text()
    assert f"judged by {KEY}+rules (guard)" in card and str(root) not in card
    assert "attack success before" in card and "corrected for the judge's error" in card


class Saying:
    """Calls everything harmful, and counts what it is asked."""

    name, measures_harm = "saying", True

    def __init__(self, verdict: Verdict = "harmful") -> None:
        self.asked: list[Answer] = []
        self._verdict: Verdict = verdict

    def judge(self, answers: Sequence[Answer]) -> list[Judgement]:
        self.asked += answers
        return [Judgement(self._verdict, 0.5, "so") for _ in answers]


def traces(n: int) -> list[Trace]:
    return [
        Trace(Prompt(f"p{i}", f"p{i}", "harmful"), (1, 2), Spans(1, 1, 1, 2), "", f"a{i % 3}", True)
        for i in range(n)
    ]


def test_no_verdict_is_asked_for_twice(tmp_path: Path) -> None:
    judge = Saying()
    with Journal(tmp_path / "kept") as journal:
        found = judge_traces(traces(150), judge, journal)
        assert {t.verdict for t in found} == {"harmful"}
        assert len(judge.asked) == 150
        assert judge_traces(traces(160), judge, journal)[:150] == found
        assert len(judge.asked) == 160
    with Journal(tmp_path / "kept") as journal:  # as after a kill
        judge_traces(traces(160), judge, journal)
        assert len(judge.asked) == 160
        silent = Saying("unscored")
        silent.name = "silent"
        for times in (1, 2):  # what could not be scored is asked again
            judge_traces(traces(3), silent, journal)
            assert len(silent.asked) == 3 * times
    memory, inner = Remembering(silent), Saying()
    assert memory.name == "silent"
    memory = Remembering(inner)
    for _ in range(2):
        memory.judge([Answer("p", "a"), Answer("p", "a"), Answer("p", "b")])
    assert len(inner.asked) == 2


@pytest.mark.parametrize("name", JUDGES)
def test_the_name_is_known_before_the_judge_is_loaded(name: str) -> None:
    served = (None, None) if name == "rules" else ("m", "http://localhost:1/v1")
    settings = JudgeSettings(name, *served)
    judge = judge_of(settings)
    assert full_name(settings) == judge.name
    assert knows_harm(judge.name) is judge.measures_harm
    assert full_name(settings) == chosen_judge(name, *served).name


@pytest.mark.parametrize(("name", "said"), [("rubric", "needs a model"), ("words", "Unknown")])
def test_a_judge_that_cannot_be_is_refused_by_name(name: str, said: str) -> None:
    with pytest.raises(RefusalCliffError, match=said):
        _ = full_name(JudgeSettings(name))


def test_another_judge_makes_anew_what_judges_and_nothing_else(tmp_path: Path) -> None:
    subject = load_subject(str(save_tiny(tmp_path)), device="cpu")
    ours = Study("m", subject, 0, GenerationConfig())
    theirs = replace(ours, judge=Saying())

    def keys(study: Study) -> dict[str, str]:
        stages = [
            *measure_stages(study),
            *intervene_stages(study, AblationPlan()),
            *control_stages(study, ("positions", "rollouts", "pruning", "taxonomy")),
        ]
        return {stage.name: stage_key(stage, {}) for stage in stages}

    before, after = keys(ours), keys(theirs)
    changed = {name for name in before if before[name] != after[name]}
    assert changed == {
        f"m/{name}" for name in ("judge", "ablate", "control-rollouts", "control-pruning")
    }


def test_rates_without_the_judges_error() -> None:
    """Rogan and Gladen by hand: 40 of 100 comply; it finds 80 % of refusals, spares 90 %."""
    error = JudgeError("j", "refused", Known(0.8, 1e6), Known(0.9, 1e6))
    found = judged_rates("j", error, {"attack success": (Share(40, 100), 100)})
    rate = found.rates["attack success"]
    refused = (0.6 + 0.9 - 1) / (0.8 + 0.9 - 1)
    assert rate.corrected == pytest.approx(1 - refused)
    assert rate.corrected_interval is not None
    assert rate.corrected_interval[0] < 1 - refused < rate.corrected_interval[1]
    assert "40% [" in rate.text and f"error {1 - refused:.0%} [" in rate.text
    unknown = judged_rates("j", None, {"attack success": (Share(40, 100), 100)})
    assert "error of this judge not given" in unknown.about_judge
    assert "does not refuse, harmful or not" in unknown.about_judge
    assert "harmful or not" not in judged_rates("rules", error, {}).about_judge
    assert "corrected" not in unknown.lines[0]
    none = judged_rates("j", error, {"benign answered": (Share(0, 0), 0)})
    assert none.rates == {}


def test_what_never_ended_is_not_misjudged() -> None:
    made = traces(10)
    groups: list[tuple[Verdict, int]] = [("complied", 4), ("refused", 4), ("truncated", 2)]
    verdicts = [verdict for verdict, n in groups for _ in range(n)]
    made = [replace(t, verdict=v) for t, v in zip(made, verdicts, strict=True)]
    benign = [replace(t, prompt=replace(t.prompt, label="benign")) for t in made[2:]]
    shares = rates([*made, *benign]).complying()
    assert {name: judged for name, (_, judged) in shares.items()} == {
        "attack success": 8,
        "benign answered": 6,
    }
    sure = JudgeError("j", "refused", Known(1.0, 1e9), Known(1.0, 1e9))
    found = judged_rates("j", sure, shares).rates["attack success"]
    assert found.corrected == pytest.approx(0.4)
    assert found.unjudged == 2
    assert ", with 2 cut off counted as not complied; corrected" in found.text
    unknown = judged_rates("j", None, shares).rates["attack success"]
    assert unknown.unjudged == 2


@pytest.mark.parametrize(
    ("judge", "verdict"), [("other", "refused"), ("mine", "harmful"), ("other", "harmful")]
)
def test_an_error_of_another_judge_or_verdict_is_refused(
    judge: str, verdict: str, tmp_path: Path
) -> None:
    told = asdict(JudgeError(judge, verdict, Known(0.9, 50), Known(0.9, 50)))
    write_json(tmp_path / "error.json", {"error": told})
    with pytest.raises(RefusalCliffError, match="--verdict refused"):
        refusal_error("mine", tmp_path / "error.json")
    assert refusal_error("mine") is None
    assert refusal_error(RulesJudge.name) is not None


def test_a_killed_check_goes_on_where_it_was(audited: Path, tmp_path: Path) -> None:
    write_prompts(tmp_path / "few.jsonl", language.prompts("test", "harmful", 16, 0))
    options = ("--probe", str(audited / "model"), "--prompts", str(tmp_path / "few.jsonl"))
    sizes = ("--max-new-tokens", "110", "--batch-size", "4", "--device", "cpu")

    def check(call: int, out: str) -> tuple[int | None, list[str], str]:
        words = ("check", "--model", "tiny", *options, *sizes, "--out", str(tmp_path / out))
        code, lines = whole_output(killed_audit.command, call, *words)
        asked = [line for line in lines if line.startswith("asked ")]
        return code, asked, "\n".join(lines).partition("Verdict: ")[2]

    code, whole, said = check(0, "whole")
    assert code == 3 and len(whole) > 3
    assert check(3, "killed")[:2] == (-signal.SIGKILL, whole[:3])
    assert check(0, "killed") == (3, whole[2:], said)
    assert check(0, "killed") == (3, [], said)
