"""A damaged probe is refused with one paragraph, by every command, and passes nobody."""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file
from typer.testing import CliRunner

from refusal_cliff.cli import app
from refusal_cliff.data.examples import write_examples, write_prompts
from refusal_cliff.errors import RefusalCliffError
from refusal_cliff.model.subject import Subject
from refusal_cliff.organisms import language
from refusal_cliff.probe.files import read_probes, write_probes
from refusal_cliff.probe.fit import Probe, ProbeSet, Provenance
from refusal_cliff.probe.quality import Quality

WIDTH = 128
Tensors = dict[str, Any]
Damage = Callable[[Tensors, Any], object]


def whole(folder: Path, fingerprint: str = "f" * 64) -> Path:
    quality = Quality(0.9, (0.8, 1.0), 0.85, (0.7, 0.95), 0.05, (0.02, 0.1))
    rng = np.random.default_rng(0)
    found = tuple(
        Probe(
            layer,
            (rng.normal(size=WIDTH) / 100).astype(np.float32),
            0.25,
            0.01,
            0.9,
            quality,
            0.5,
            0.02,
        )
        for layer in (3, 4)
    )
    origin = Provenance("tiny", fingerprint, "d" * 64)
    probes = ProbeSet(found, 4, "refused-vs-benign", "logistic", 99, origin)
    folder.mkdir(parents=True, exist_ok=True)
    write_probes(folder / "probes.safetensors", folder / "probes.json", probes)
    return folder


def weight(value: float) -> Damage:
    def damage(tensors: Tensors, content: Any) -> None:
        tensors["weight"] = np.full_like(tensors["weight"], value)
        content.pop("weights_sha256")  # as in files of an earlier version

    return damage


def put(name: str, value: Any) -> Damage:
    return lambda tensors, content: content.__setitem__(name, value)


def in_row(name: str, value: Any) -> Damage:
    return lambda tensors, content: content["layers"][1].__setitem__(name, value)


def tensor(name: str, make: Callable[[Any], Any]) -> Damage:
    return lambda tensors, content: tensors.__setitem__(name, make(tensors[name]))


DAMAGES: dict[str, tuple[Damage, str]] = {
    "infinite weights": (weight(math.inf), "'weight' with NaN or infinity"),
    "NaN weights": (weight(math.nan), "'weight' with NaN or infinity"),
    "negated weights": (tensor("weight", np.negative), "not of the same probes"),
    "weights of one axis": (tensor("weight", np.ravel), r"shape \[256\], not \[layers, width\]"),
    "weights of three axes": (tensor("weight", lambda w: w[:, None].copy()), "shape"),
    "no weights": (tensor("weight", lambda w: w[:, :0].copy()), r"shape \[2, 0\]"),
    "whole-number weights": (tensor("weight", lambda w: w.astype(np.int32)), "int32"),
    "fewer weights": (tensor("weight", lambda w: w[:1].copy()), "has 1 probes and"),
    "bias of two axes": (tensor("bias", lambda b: b[:, None].copy()), "'bias' of shape"),
    "NaN bias": (tensor("bias", lambda b: b * math.nan), "'bias' with NaN or infinity"),
    "no bias": (lambda tensors, content: tensors.pop("bias"), "lacks the tensor 'bias'"),
    "bias as text": (in_row("bias", "0.25"), r"layers\.1\.bias is '0\.25'"),
    "bias as a list": (in_row("bias", [0.25]), r"layers\.1\.bias is \[0\.25\]"),
    "bias of NaN": (in_row("bias", math.nan), r"layers\.1\.bias is nan"),
    "bias too large": (in_row("bias", 10**400), r"layers\.1\.bias"),
    "interval as a number": (in_row("auroc_ci", 1), r"layers\.1\.auroc_ci is 1"),
    "interval of three": (in_row("auroc_ci", [0, 1, 1]), r"layers\.1\.auroc_ci"),
    "a falling interval": (in_row("auroc_ci", [0.9, 0.2]), "ends before it begins"),
    "the other sign": (
        lambda tensors, content: content["provenance"].__setitem__("polarity", "high complies"),
        "unknown polarity 'high complies'",
    ),
    "AUROC above 1": (in_row("auroc", 1.5), r"layers\.1\.auroc is 1\.5"),
    "block as text": (in_row("layer", "4"), r"layers\.1\.layer is '4'"),
    "block 0": (in_row("layer", 0), r"layers\.1\.layer is 0"),
    "a block twice": (
        lambda tensors, content: [row.__setitem__("layer", 4) for row in content["layers"]],
        "4, 4, which are not in ascending order",
    ),
    "falling blocks": (
        lambda tensors, content: content["layers"][0].__setitem__("layer", 9),
        "9, 4, which are not in ascending order",
    ),
    "no layers": (put("layers", []), "layers is"),
    "layers as a number": (put("layers", 3), "layers is 3"),
    "an unknown rule": (put("label_rule", "sometimes"), "unknown label_rule 'sometimes'"),
    "an unknown estimator": (put("estimator", ["x"]), "unknown estimator"),
    "n of none": (put("n", 0), "n is 0"),
    "provenance as text": (put("provenance", "tiny"), "lacks the field 'provenance'"),
    "a fingerprint of numbers": (
        lambda tensors, content: content["provenance"].__setitem__("fingerprint", 12),
        r"provenance\.fingerprint is 12",
    ),
}


def damaged(folder: Path, damage: Damage) -> Path:
    tensors = load_file(folder / "probes.safetensors")
    content = json.loads((folder / "probes.json").read_text())
    damage(tensors, content)
    save_file(tensors, folder / "probes.safetensors")
    (folder / "probes.json").write_text(json.dumps(content))
    return folder


@pytest.mark.parametrize("name", DAMAGES)
def test_each_damage_is_one_paragraph_with_a_file_and_a_remedy(name: str, tmp_path: Path) -> None:
    damage, said = DAMAGES[name]
    folder = damaged(whole(tmp_path), damage)
    with pytest.raises(RefusalCliffError, match=said) as error:
        read_probes(folder / "probes.safetensors", folder / "probes.json")
    assert "probes.json" in str(error.value) or "probes.safetensors" in str(error.value)
    assert any(word in str(error.value) for word in ("Delete", "Update"))
    assert "\n" not in str(error.value)


def test_only_probes_of_the_last_block_read_after_the_final_norm(tmp_path: Path) -> None:
    folder = damaged(
        whole(tmp_path),
        lambda tensors, content: content["provenance"].__setitem__("read_point", "final_norm"),
    )
    subject = cast("Subject", SimpleNamespace(width=WIDTH, n_layers=9, fingerprint="f" * 64))
    with pytest.raises(RefusalCliffError, match="not of the last block alone"):
        read_probes(folder / "probes.safetensors", folder / "probes.json", subject)


@pytest.mark.parametrize(
    "text",
    ["", "{", "NaN", "[]", "null", "[" * 100_000, '{"layer": ' * 100_000, "\udcff", "{}" * 2],
)
def test_what_is_no_description_is_said(text: str, tmp_path: Path) -> None:
    folder = whole(tmp_path)
    (folder / "probes.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(RefusalCliffError, match=r"probes\.json"):
        read_probes(folder / "probes.safetensors", folder / "probes.json")


def test_files_of_an_earlier_version_are_read(tmp_path: Path) -> None:
    folder = damaged(whole(tmp_path), lambda tensors, content: content.pop("weights_sha256"))
    assert read_probes(folder / "probes.safetensors", folder / "probes.json").layer == 4


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=6,
)


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_whatever_stands_in_a_field_is_read_or_refused(data: st.DataObject, tmp_path: Path) -> None:
    folder = whole(tmp_path)
    file = folder / "probes.json"
    content = json.loads(file.read_text())
    part = data.draw(st.sampled_from([content, content["layers"][0], content["provenance"]]))
    part[data.draw(st.sampled_from(sorted(part)))] = data.draw(values)
    file.write_text(json.dumps(content))
    try:
        probes = read_probes(folder / "probes.safetensors", file)
    except RefusalCliffError:
        return
    for probe in probes.probes:
        numbers = [probe.bias, probe.strength, probe.cv_auroc, *probe.quality.auroc_ci]
        assert all(isinstance(n, int | float) and math.isfinite(n) for n in numbers)


@settings(deadline=None, max_examples=50)
@given(st.binary(max_size=200), st.integers(0, 400))
def test_bytes_that_are_no_weights_are_refused(noise: bytes, at: int) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = whole(Path(name))
        weights = folder / "probes.safetensors"
        before = weights.read_bytes()
        weights.write_bytes(before[:at] + noise + before[at + len(noise) :])
        try:
            found = read_probes(weights, folder / "probes.json")
        except RefusalCliffError as error:
            assert "probes" in str(error)
        else:
            assert all(np.isfinite(probe.weight).all() for probe in found.probes)


@pytest.fixture(scope="module")
def commands(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """Every command that reads a probe, up to the folder of the probe and of the output."""
    folder = tmp_path_factory.mktemp("inputs")
    write_prompts(folder / "few.jsonl", language.prompts("test", "harmful", 12, 0))
    write_examples(folder / "pool.jsonl", language.safety_pool(12, 0))
    write_examples(folder / "benign.jsonl", language.examples("pool", "benign", 12, 0))
    rows = [
        {"prompt": "How do I pick a lock?", "thinking": "It is harm.", "response": "No."}
        for _ in range(2)
    ]
    (folder / "traces.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    model = ["--model", "tiny", "--device", "cpu"]
    data = ["--data", str(folder / "pool.jsonl"), "--max-new-tokens", "110", "--n", "2"]
    return {
        "trace": ["trace", *model, "--traces", str(folder / "traces.jsonl"), "--label", "harmful"],
        "check": [
            *(
                "check",
                *model,
                "--prompts",
                str(folder / "few.jsonl"),
                "--max-cliff",
                "1",
                "--allow",
                "cliff",
            ),
            *("--max-asr", "1", "--max-unmeasured", "1", "--max-new-tokens", "110"),
        ],
        "select": [
            *("select", *model, *data, "--evaluation", str(folder / "few.jsonl")),
            *("--thinking", "data"),
        ],
        "repair": [
            *("repair", *model, *data, "--benign", str(folder / "benign.jsonl")),
            *("--prompts", str(folder / "few.jsonl"), "--thinking", "data"),
        ],
    }


@pytest.fixture(scope="module")
def fingerprint() -> str:
    from refusal_cliff.model.subject import load_subject

    return load_subject("tiny", device="cpu").fingerprint


@pytest.mark.parametrize("command", ["trace", "check", "select", "repair"])
@pytest.mark.parametrize("name", ["bias as text", "weights too large"])
def test_no_command_goes_on_with_it(
    name: str, command: str, commands: dict[str, list[str]], fingerprint: str, tmp_path: Path
) -> None:
    damage = weight(3e38) if name == "weights too large" else DAMAGES[name][0]
    probe = damaged(whole(tmp_path / "probe", fingerprint), damage)
    out = [] if command == "check" else ["--out", str(tmp_path / "out")]
    result = CliRunner().invoke(app, [*commands[command], "--probe", str(probe), *out])
    assert result.exit_code == 1, (result.output, result.exception)
    assert "Passed" not in result.output
    assert "Error: " in result.stderr, result.output
    assert ("not a finite number" in result.stderr) == (name == "weights too large")


def test_the_same_commands_work_with_the_probe_as_it_was(
    commands: dict[str, list[str]], fingerprint: str, tmp_path: Path
) -> None:
    probe = whole(tmp_path / "probe", fingerprint)
    for name in ("trace", "check", "select"):
        out = [] if name == "check" else ["--out", str(tmp_path / name)]
        result = CliRunner().invoke(app, [*commands[name], "--probe", str(probe), *out])
        assert result.exit_code == 0, (name, result.output)
        assert ("Passed." in result.output) == (name == "check")
