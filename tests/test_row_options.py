"""Every command that reads rows says where their fields are by the same options."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from served import Handler, serving
from test_arguments import COMMANDS, OPTIONS
from test_candidate_run import root
from typer.testing import CliRunner

from refusal_cliff.cli import app
from refusal_cliff.repair import training_run
from refusal_cliff.workflows import repair_loop

__all__ = ["root"]

ROW_FILES = {
    "--prompts", "--traces", "--before", "--labelled", "--data", "--benign", "--harmful",
    "--fit-on", "--evaluation", "--selected",
}  # fmt: skip
OURS = {"--selected", "--fit-on"}
"""Written by `select`; or one of the sources of the same audit."""
OWN_OPTIONS = {
    ("repair", "--prompts"): "--prompts-column",
    ("repair", "--benign"): "--benign-column",
    ("select", "--evaluation"): "--evaluation-column",
}
BY_OPTION = {"audit", "ablate", "train"}
"""Which option a file is given by says the label of its rows."""


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_a_file_of_rows_comes_with_its_options(name: str) -> None:
    options = OPTIONS[name]
    for file in sorted(options & ROW_FILES - OURS):
        assert OWN_OPTIONS.get((name, file), "--column") in options, file
        labelled = name in BY_OPTION or file in {"--benign", "--evaluation", "--labelled"}
        if not labelled:
            label = "--prompts-label" if (name, file) == ("repair", "--prompts") else "--label"
            assert label in options, file


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def repair_line(root: Path, tmp_path: Path, *more: str) -> list[str]:
    return [
        *("repair", "--model", str(root / "model"), "--probe", str(root / "probe")),
        *("--data", str(root / "data.jsonl"), "--out", str(tmp_path / "out")),
        *("--device", "cpu", "--thinking", "data", *more),
    ]


def test_the_files_of_a_repair_are_read_by_options_of_their_own(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Up to the training: both files are read by then, and what they hold is known."""
    prompts = write(tmp_path / "p.jsonl", [{"Goal": "Asked later?"}, {"Goal": "Asked never?"}])
    benign = write(tmp_path / "b.jsonl", [{"q": "Hi?", "a": "<think>\nFine.\n</think>\n\nYes."}])
    read: list[Any] = []

    def stop(*args: Any, **named: Any) -> None:
        read.extend(args)
        raise KeyboardInterrupt

    monkeypatch.setattr(training_run, "repair", stop)
    line = repair_line(
        root,
        tmp_path,
        *("--prompts", str(prompts), "--prompts-column", "text=Goal", "--prompts-label", "unsafe"),
        *("--benign", str(benign), "--benign-column", "text=q", "--benign-column", "response=a"),
    )
    CliRunner().invoke(app, line)
    assert len(read) > 1 and len(read[2]) == 1
    report = json.loads((tmp_path / "out" / "selection" / "selection.json").read_text())
    assert report["evaluation_prompts"] == 2
    assert report["left_out"]["overlaps with the evaluation"] == 1


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ((), "--prompts-column text=COLUMN"),
        (("--prompts-column", "text=Gaol"), "--prompts-column text=COLUMN"),
        (("--prompts-column", "text=Goal"), "--prompts-label"),
    ],
)
def test_test_prompts_are_refused_before_any_work_by_the_options_that_exist(
    root: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    more: tuple[str, ...],
    said: str,
) -> None:
    monkeypatch.setattr(repair_loop, "run_selection", lambda *_, **__: pytest.fail("it went on"))
    prompts = write(tmp_path / "p.jsonl", [{"Goal": "Asked later?"}])
    line = repair_line(root, tmp_path, "--benign", str(prompts), "--prompts", str(prompts), *more)
    result = CliRunner().invoke(app, line)
    assert result.exit_code == 1, (result.output, result.exception)
    assert said in result.stderr and "(--column" not in result.stderr
    assert not (tmp_path / "out").exists()


def test_more_evaluation_prompts_of_select_have_their_columns(root: Path, tmp_path: Path) -> None:
    asked = write(tmp_path / "asked.jsonl", [{"Goal": "Asked  later?"}])
    line = [
        *("select", "--model", str(root / "model"), "--probe", str(root / "probe")),
        *("--data", str(root / "data.jsonl"), "--out", str(tmp_path / "out"), "--n", "3"),
        *("--device", "cpu", "--thinking", "data", "--evaluation", str(asked)),
    ]
    result = CliRunner().invoke(app, line)
    assert result.exit_code == 1 and "--evaluation-column text=COLUMN" in result.stderr
    result = CliRunner().invoke(app, [*line, "--evaluation-column", "text=Goal"])
    assert result.exit_code == 0, (result.output, result.exception)
    report = json.loads((tmp_path / "out" / "selection.json").read_text())
    assert report["left_out"]["overlaps with the evaluation"] == 1


class WithItsOwnMarkers(Handler):
    """A model whose thoughts stand between markers that nobody knows."""

    def reply(self, request: dict[str, Any], body: bytes) -> None:
        message = {"role": "assistant", "content": "«I must refuse: sorry, no.» Sure. Step one."}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        self.send(200, json.dumps({"choices": [choice]}).encode())


@pytest.mark.parametrize("named", [True, False])
def test_a_served_model_is_read_at_the_markers_that_are_named(tmp_path: Path, named: bool) -> None:
    prompts = write(tmp_path / "p.jsonl", [{"prompt": "How?", "label": "harmful"}])
    with serving(WithItsOwnMarkers) as address:
        result = CliRunner().invoke(
            app,
            [
                *("generate", "--prompts", str(prompts), "--model", "m", "--endpoint", address),
                *("--out", str(tmp_path / "out"), *(["--thinking-markers", "« »"] * named)),
            ],
        )
    assert result.exit_code == 0, (result.output, result.exception)
    row = json.loads((tmp_path / "out/traces.jsonl").read_text())
    assert (row["thinking"] == "I must refuse: sorry, no.") == named
    assert (row["response"] == "Sure. Step one.") == named


def test_evaluate_lists_the_rows_that_it_leaves_out_of_both_files(tmp_path: Path) -> None:
    good = [
        {"id": f"q{n}", "prompt": f"How {n}?", "response": "No.", "verdict": "refused"}
        for n in range(3)
    ]
    after = write(tmp_path / "after.jsonl", [*good, {"prompt": "What?"}])
    before = write(tmp_path / "before.jsonl", [{"response": "No."}, *good])
    line = ["evaluate", "--traces", str(after), "--before", str(before), "--label", "harmful"]
    result = CliRunner().invoke(app, line)
    assert result.exit_code == 0, (result.output, result.exception)
    listed = [one for one in result.stdout.splitlines() if one.startswith("Left out: ")]
    assert [one.partition(": it has none")[0] for one in listed] == [
        f"Left out: {after}, row 4",
        f"Left out: {before}, row 1",
    ]


def test_trace_says_that_it_judged_by_the_rules(root: Path, tmp_path: Path) -> None:
    row = {"prompt": "How?", "thinking": "Hm.", "response": "No, sorry.", "label": "harmful"}
    judged = {**row, "prompt": "Why?", "verdict": "refused", "judge": "wildguard"}
    source = write(tmp_path / "t.jsonl", [row, judged])
    for _ in range(2):  # the second time all is finished
        result = CliRunner().invoke(
            app,
            [
                *("trace", "--model", str(root / "model"), "--probe", str(root / "probe")),
                *("--traces", str(source), "--out", str(tmp_path / "out"), "--device", "cpu"),
            ],
        )
        assert result.exit_code == 0, (result.output, result.exception)
        assert "1 rows came without a verdict and were judged by the phrase" in result.stdout
