"""The audit on a user's model and files; bad input gets one paragraph, and leaves nothing."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any, get_args

import pytest
from tiny_chat import tiny_model, tiny_tokenizer
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    CLIPVisionConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
)
from typer.testing import CliRunner

from refusal_cliff.cli import app
from refusal_cliff.data.examples import write_prompts
from refusal_cliff.data.types import LABELS
from refusal_cliff.findings.summary import read_summary
from refusal_cliff.io import read_json
from refusal_cliff.organisms import embedded_path, language
from refusal_cliff.stages.intervene import AblationPlan

N = 60
SMALL = AblationPlan(
    traces=16,
    fractions=(0, 0.03),
    dose_prompts=12,
    dose_benign=6,
    candidates=4,
    joint_traces=8,
    draws={"random": 3, "same-layer": 1, "promoting": 1},
    control_prompts=12,
)


OF_THE_FOLDER = {"model", "n_parameters", "seconds"}


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    harmful, benign = tmp_path / "harmful.jsonl", tmp_path / "benign.jsonl"
    write_prompts(harmful, language.prompts("test", "harmful", N, 0))
    write_prompts(benign, language.prompts("test", "benign", N, 0))
    return harmful, benign


def audit(model: str, files: tuple[Path, Path], out: Path, *more: str) -> tuple[int, str]:
    harmful, benign = map(str, files)
    arguments = ["audit", "--model", model, "--harmful", harmful, "--benign", benign]
    arguments += ["--out", str(out), "--max-new-tokens", "160", "--batch-size", "128"]
    result = CliRunner().invoke(app, [*arguments, "--device", "cpu", *more])
    return result.exit_code, " ".join(result.output.split())


def test_the_control_has_no_cliff(
    files: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("refusal_cliff.workflows.audit.AblationPlan", lambda: SMALL)
    code, output = audit(str(embedded_path("tiny-aligned")), files, tmp_path / "run")
    assert code == 0, output
    summary = read_summary(tmp_path / "run" / "summary.json")
    assert summary.cliff.verdict == "undecided"  # none of 30 complied: too few for "hardly any"
    assert summary.ablation is not None and summary.ablation.shown is None
    assert summary.heads is not None and not summary.heads.suppress
    assert summary.planted is None
    check_made_anew(tmp_path / "run")
    check_no_heads_out(tmp_path / "run")


def check_made_anew(run: Path) -> None:
    """The page and the charts of a finished run are made anew, and the run stays as it was."""
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    result = CliRunner().invoke(app, ["report", str(run), "--json"])
    assert result.exit_code == 0, result.output
    page = run.with_name(f"{run.name}-report") / "report.html"
    assert json.loads(result.stdout) == {"files": [str(page)]}
    assert page.read_bytes() == (run / "report.html").read_bytes()
    for told in ("command", "finished", "thinking format", "precision", "versions", "judge"):
        assert f"<dt>{told}</dt>" in page.read_text()
    charts = run.with_name("charts")
    result = CliRunner().invoke(app, ["figures", str(run), "--out", str(charts), "-q"])
    assert (result.exit_code, result.output) == (0, "")
    names = {path.stem for path in charts.glob("*.svg")}
    assert {"cliff-model", "depth", "heads", "ablation", "dose"} <= names
    assert names == {path.stem for path in charts.glob("*.csv")}
    assert before == {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}


def check_no_heads_out(run: Path) -> None:
    """A run that found no head to take out does not compare the model with itself."""
    none = run.with_name("none")
    shutil.copytree(run, none)
    (measured,) = none.glob("*/ablation.json")
    measured.write_text(json.dumps({**json.loads(measured.read_text()), "heads": []}))
    result = CliRunner().invoke(app, ["report", str(none), "-q"])
    assert result.exit_code == 0, result.output
    shown = [
        path.read_text().count('<section id="ablation">')
        for path in (run / "report.html", none.with_name("none-report") / "report.html")
    ]
    assert shown == [1, 0]


def test_unknown_preset(files: tuple[Path, Path], tmp_path: Path) -> None:
    code, output = audit("tiny", files, tmp_path / "run", "--preset", "papers")
    assert code == 1
    assert "Unknown preset 'papers'. Write one of: default, paper" in output
    assert not (tmp_path / "run").exists()


def test_unknown_model(files: tuple[Path, Path], tmp_path: Path) -> None:
    code, output = audit("no-such/model", files, tmp_path / "run")
    assert code == 1
    assert "Could not load the model 'no-such/model'" in output
    assert not (tmp_path / "run").exists()


def test_model_without_a_chat_template(files: tuple[Path, Path], tmp_path: Path) -> None:
    tiny_model().save_pretrained(tmp_path / "plain")
    tiny_tokenizer(template=None).save_pretrained(tmp_path / "plain")
    code, output = audit(str(tmp_path / "plain"), files, tmp_path / "run")
    assert code == 1
    assert "has no chat template" in output


def test_prompt_file_with_a_broken_row(files: tuple[Path, Path], tmp_path: Path) -> None:
    with files[0].open("a") as file:
        file.write('{"prompt": 7}\n')
    audit("tiny", files, tmp_path / "run")
    (line,) = (tmp_path / "run" / "prompts" / "left-out.jsonl").read_text("utf-8").splitlines()
    assert json.loads(line)["row"] == N + 1
    assert "'prompt' is 7" in json.loads(line)["detail"]


def test_too_few_prompts_and_a_wrong_label(files: tuple[Path, Path], tmp_path: Path) -> None:
    write_prompts(tmp_path / "few.jsonl", language.prompts("test", "harmful", 3, 0))
    code, output = audit("tiny", (tmp_path / "few.jsonl", files[1]), tmp_path / "run")
    assert (code, "There are 1 different harmful prompts to fit on" in output) == (1, True)
    code, output = audit("tiny", (files[1], files[0]), tmp_path / "run")
    assert (code, "the label is 'benign'" in output) == (1, True)


def test_run_folder_of_another_version(files: tuple[Path, Path], tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "manifest.json").write_text(json.dumps({"format": 99, "command": "audit"}))
    code, output = audit("tiny", files, run)
    assert code == 1
    assert "99" in output
    assert [path.name for path in run.iterdir() if path.suffix == ".json"] == ["manifest.json"]


def test_output_folder_that_cannot_be_made(files: tuple[Path, Path], tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    code, output = audit("tiny", files, tmp_path / "file" / "run")
    assert code == 1
    assert "Could not write" in output


def save_inside_a_multimodal_model(folder: Path) -> None:
    """``tiny`` as the text part of a model that also sees."""
    source = embedded_path("tiny")
    text: Any = AutoModelForCausalLM.from_pretrained(source)
    eye = CLIPVisionConfig(
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        image_size=16,
        patch_size=8,
    )
    config = LlavaConfig(vision_config=eye, text_config=text.config, image_token_index=5)
    config.tie_word_embeddings = True
    model: Any = LlavaForConditionalGeneration(config).to(text.dtype)
    model.model.language_model.load_state_dict(text.model.state_dict())
    model.tie_weights()
    model.generation_config = text.generation_config
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(source).save_pretrained(folder)


@pytest.mark.slow
def test_the_text_part_of_a_multimodal_model_is_audited_as_itself(tmp_path: Path) -> None:
    for label in LABELS:
        both = [
            prompt
            for split in get_args(language.Split)[2:]
            for prompt in language.prompts(split, label, 150, 0)
        ]
        write_prompts(tmp_path / f"{label}.jsonl", both)
    files = (tmp_path / "harmful.jsonl", tmp_path / "benign.jsonl")
    save_inside_a_multimodal_model(tmp_path / "seeing")
    found: list[dict[str, Any]] = []
    for model in ("tiny", str(tmp_path / "seeing")):
        out = tmp_path / f"run-{len(found)}"
        code, output = audit(model, files, out, "--quick", "--temperature", "0")
        assert code == 0, output
        summary = read_json(out / "summary.json")
        found.append({key: summary[key] for key in summary.keys() - OF_THE_FOLDER})
    assert found[0]["cliff"]["verdict"] == "cliff"
    assert found[0] == found[1]
