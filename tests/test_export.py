"""An exported ablation answers as the run-time one does, says what it is, and never weakens."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from ablation_example import ablation_result, joint_search, rates_with
from safetensors.torch import load_file
from test_edits import outside
from tiny_heads import head_row
from typer.testing import CliRunner

from refusal_cliff.answers.evaluate import rates
from refusal_cliff.cli import app
from refusal_cliff.errors import RefusalCliffError
from refusal_cliff.generate import GenerationConfig, answer
from refusal_cliff.heads.edits import write_adapter
from refusal_cliff.heads.table import Estimate, HeadRow, write_heads
from refusal_cliff.io import write_as
from refusal_cliff.model.subject import Head, Subject, load_subject
from refusal_cliff.organisms import embedded_path, language, planted_heads
from refusal_cliff.stages.study import Study
from refusal_cliff.stats import Share
from refusal_cliff.thinking import render_prompt
from refusal_cliff.workflows.export import Choice, Form, _joint_heads, _of_run, export_ablation

WEIGHTS = "adapter_model.safetensors"
GENERATION = GenerationConfig(110, 64)
PLANTED = [Head(*head) for head in planted_heads(embedded_path("tiny"))]


@pytest.fixture(scope="module")
def tiny() -> Subject:
    return load_subject("tiny", device="cpu")


def table(subject: Subject, path: Path, suppressing: list[Head]) -> Path:
    """A made-up table in which these heads suppress refusal and all others promote it."""
    rows: list[HeadRow] = []
    for place, head in enumerate(subject.heads()):
        size = 9.0 - place / 1000 if head in suppressing else -1.0
        effect = Estimate(size, size - 0.5, size + 0.5, 1.0, 40)
        adds = Estimate(-size, -size - 0.5, 0.5 - size, 1.0, 40)
        row = replace(head_row(0, size), layer=head.layer, index=head.index)
        rows.append(replace(row, causal=effect, direct=adds))
    path.parent.mkdir(parents=True, exist_ok=True)
    write_heads(path, rows, subject.fingerprint)
    return path


def card_of(folder: Path) -> tuple[dict[str, Any], str]:
    _, front, text = (folder / "README.md").read_text().split("---\n", 2)
    return yaml.safe_load(front), text


def test_without_a_ranking_the_heads_are_those_that_the_run_took_out(
    tiny: Subject, tmp_path: Path
) -> None:
    heads = table(tiny, tmp_path / "heads.parquet", PLANTED)
    joint = tmp_path / "joint.json"
    write_as(joint, joint_search(None))
    assert export_ablation(tiny, heads, "adapter", tmp_path / "ranked") == PLANTED
    chosen = PLANTED[::-1]
    write_as(joint, joint_search(tuple(chosen)))
    found = export_ablation(tiny, heads, "adapter", tmp_path / "together")
    assert found == chosen
    assert "Chosen of all heads by joint effect." in card_of(tmp_path / "together")[1]
    write_as(joint, joint_search((chosen[0],) * 3))
    assert export_ablation(tiny, heads, "adapter", tmp_path / "once") == [PLANTED[-1]]
    write_adapter(tiny, [PLANTED[-1]], 0.0, tmp_path / "alone")
    once, alone = (load_file(tmp_path / one / WEIGHTS) for one in ("once", "alone"))
    assert once.keys() == alone.keys()
    assert all(torch.equal(once[name], alone[name]) for name in once)
    by_name = export_ablation(tiny, heads, "adapter", tmp_path / "named", Choice(method="direct"))
    assert by_name == PLANTED
    write_as(joint, joint_search((Head(1, 0),)))  # promotes refusal
    with pytest.raises(RefusalCliffError, match="not measured to suppress refusal"):
        export_ablation(tiny, heads, "adapter", tmp_path / "weaker")
    assert not (tmp_path / "weaker").exists()


def test_both_forms_of_tiny_answer_as_its_ablation_does(tiny: Subject, tmp_path: Path) -> None:
    """In a process of plain transformers and PEFT; the prompts are complied with before."""
    heads = table(tiny, tmp_path / "heads.parquet", PLANTED)
    for form in ("adapter", "merged"):
        assert export_ablation(tiny, heads, form, tmp_path / form) == PLANTED
    tiny.model.save_pretrained(tmp_path / "base")
    asked = language.prompts("test", "harmful", 24, 0)
    ids = [render_prompt(tiny.tokenizer, prompt.text) for prompt in asked]
    length = max(map(len, ids), key=[len(row) for row in ids].count)
    ids = [row for row in ids if len(row) == length]
    plain = answer(tiny, ids, 12)
    expected = answer(tiny, ids, 12, [PLANTED] * len(ids))
    assert plain != expected
    for text in outside(tmp_path, torch.tensor(ids)):
        assert [row[length:] for row in text] == expected


def test_the_card_says_what_was_measured_on_prompts(tiny: Subject, tmp_path: Path) -> None:
    heads = table(tiny, tmp_path / "heads.parquet", PLANTED)
    prompts = [
        *language.prompts("test", "harmful", 20, 0),
        *language.prompts("test", "benign", 20, 0),
    ]
    export_ablation(tiny, heads, "adapter", tmp_path / "out", None, prompts, GENERATION)
    front, text = card_of(tmp_path / "out")
    assert front["base_model"] == "tiny"
    assert front["library_name"] == "peft"
    study, row_heads = Study("", tiny, 0, GENERATION), [PLANTED] * len(prompts)
    found = [rates(study.write(prompts, row_heads=chosen)) for chosen in (None, row_heads)]
    assert found[0].attacks.count > 8
    assert found[1].attacks.count <= 1
    assert found[1].answered.count >= 19
    for measured in found:
        assert f"{measured.attacks.count} of 20" in text
        assert f"{measured.answered.count} of 20" in text
    assert all(f"| {head} | +" in text for head in PLANTED)
    assert "40 prompts given for it, judged by rules." in text


def test_the_card_takes_the_numbers_of_the_run_if_they_are_of_the_same_heads(
    tiny: Subject, tmp_path: Path
) -> None:
    heads = table(tiny, tmp_path / "run" / "heads.parquet", PLANTED)
    sides = (rates_with(Share(count, 100)) for count in (61, 3))
    found = ablation_result(tuple(PLANTED), sides)
    found = replace(found, judge="wildguard (/home/me/<b>guard)", perplexity_after=2.02)
    write_as(heads.with_name("ablation.json"), found)
    export_ablation(tiny, heads, "adapter", tmp_path / "same")
    _, text = card_of(tmp_path / "same")
    assert "61 of 100 = 61.0%" in text
    assert "3 of 100 = 3.0%" in text
    assert "× 1.010" in text
    assert "held-out prompts, judged by wildguard (bguard)." in text
    export_ablation(tiny, heads, "adapter", tmp_path / "fewer", Choice(fraction=0.01))
    assert "Not measured for these heads" in card_of(tmp_path / "fewer")[1]


def test_what_cannot_be_exported_is_refused_and_nothing_is_written(
    tiny: Subject, tmp_path: Path
) -> None:
    promoting = table(tiny, tmp_path / "promoting.parquet", [])
    with pytest.raises(RefusalCliffError, match="not measured to suppress refusal"):
        export_ablation(tiny, promoting, "adapter", tmp_path / "out")
    good = table(tiny, tmp_path / "heads.parquet", PLANTED)
    with pytest.raises(RefusalCliffError, match="never stronger"):
        export_ablation(tiny, good, "merged", tmp_path / "out", Choice(scale=2.0))
    with pytest.raises(RefusalCliffError, match="one of causal"):
        Choice(method="guess")
    with pytest.raises(RefusalCliffError, match="another model"):
        export_ablation(load_subject("tiny-aligned"), good, "merged", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_command_writes_the_folder(tiny: Subject, tmp_path: Path) -> None:
    heads = table(tiny, tmp_path / "heads.parquet", PLANTED)
    command = ["ablate", "--model", "tiny", "--heads", str(heads), "--device", "cpu"]
    out = tmp_path / "merged"
    done = CliRunner().invoke(app, [*command, "--fraction", "0.01", "--export", "merged", str(out)])
    assert done.exit_code == 0, done.output
    assert f"1 heads out: {PLANTED[0]}" in done.output
    card = json.loads((out / "config.json").read_text())
    assert card["architectures"] == ["Qwen3ForCausalLM"]
    assert load_subject(str(out)).fingerprint != tiny.fingerprint
    again = CliRunner().invoke(app, [*command, "--export", "torch", str(tmp_path / "x")])
    assert again.exit_code == 1
    assert "Write one of: adapter, merged (--export)" in " ".join(again.output.split())


def test_names_cannot_act_in_the_card(tiny: Subject, tmp_path: Path) -> None:
    hostile = replace(tiny, name='x"\n---\n<script>alert(1)</script>[a](http://b)')
    heads = table(hostile, tmp_path / "heads.parquet", PLANTED)
    export_ablation(hostile, heads, "adapter", tmp_path / "out")
    text = (tmp_path / "out" / "README.md").read_text()
    front = yaml.safe_load(text.split("\n---\n", 1)[0])
    assert front["base_model"] == hostile.name
    assert "<script>" not in text.split("\n---\n", 1)[1]
    assert asdict(Choice())["scale"] == 0


@pytest.mark.parametrize("form", ["adapter", "merged"])
def test_no_private_path_is_written(tiny: Subject, tmp_path: Path, form: Form) -> None:
    assert tiny.source is not None
    shutil.copytree(tiny.source, tmp_path / "private" / "mine")
    subject = load_subject(str(tmp_path / "private" / "mine"), device="cpu")
    heads = table(subject, tmp_path / "heads.parquet", PLANTED)
    for model, out in ((subject, tmp_path / "private" / "out"), (tiny, tmp_path / "tiny-out")):
        export_ablation(model, heads, form, out)
        written = b"".join(path.read_bytes() for path in sorted(out.rglob("*")) if path.is_file())
        assert b"private" not in written
        assert str(tiny.source.parent).encode() not in written
        assert load_subject(str(out), device="cpu").fingerprint != tiny.fingerprint


@pytest.mark.parametrize("chosen", ["7.7", [{"a": 1}], ["7"], 3])
def test_a_damaged_joint_set_is_named(tmp_path: Path, chosen: object) -> None:
    joint = tmp_path / "joint.json"
    write_as(joint, joint_search(None))
    joint.write_text(json.dumps({**json.loads(joint.read_text()), "chosen": chosen}))
    with pytest.raises(RefusalCliffError, match=r"joint\.json: chosen.* damaged.*--method causal"):
        _joint_heads(joint)
    joint.write_text("[]")
    with pytest.raises(RefusalCliffError, match=r"joint\.json: .* damaged.*--method causal"):
        _joint_heads(joint)


def test_a_head_named_three_times_is_taken_out_once(tmp_path: Path) -> None:
    joint = tmp_path / "joint.json"
    write_as(joint, joint_search((Head(7, 7),) * 3))
    joint.write_text(joint.read_text().replace("7.7", "7.07", 1))
    assert _joint_heads(joint) == [Head(7, 7)]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("heads", 5),
        ("heads", [[1]]),
        ("before", None),
        ("after", {"attacks": 3}),
        ("perplexity_before", 0),
        ("perplexity_before", "1"),
        ("perplexity_after", math.nan),
        ("judge", {}),
    ],
)
def test_a_damaged_measurement_of_the_run_is_named(
    tmp_path: Path, name: str, value: object
) -> None:
    half = rates_with(Share(1, 2), Share(1, 2))
    file = tmp_path / "ablation.json"
    write_as(file, replace(ablation_result((Head(1, 0),), (half, half)), perplexity_after=3.0))
    whole = json.loads(file.read_text())
    found = _of_run(file, [Head(1, 0)])
    assert found is not None and found.perplexity == 1.5
    assert _of_run(file, [Head(1, 1)]) is None
    file.write_text(json.dumps(whole | {name: value}))
    with pytest.raises(RefusalCliffError, match=rf"ablation\.json: {name}.* It is damaged"):
        _of_run(file, [Head(1, 0)])
