"""Probes come back as they were, and are refused on a model that they were not fitted on."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_chat import tiny_model, tiny_tokenizer
from tiny_families import WIDTH, closed_trace, family_subject, linear_probe

from refusal_cliff import __version__
from refusal_cliff.cliff.scores import score_traces
from refusal_cliff.data.types import Trace
from refusal_cliff.errors import RefusalCliffError
from refusal_cliff.model.capture import PositionResiduals, capture
from refusal_cliff.model.final_norm import AfterFinalNorm
from refusal_cliff.model.subject import Subject, subject_of
from refusal_cliff.probe.files import check_probes_fit, probes_of, read_probes, write_probes
from refusal_cliff.probe.fit import Probe, ProbeSet, Provenance, provenance_of
from refusal_cliff.probe.quality import Quality


@pytest.fixture(scope="module")
def subject() -> Subject:
    return subject_of("small", tiny_model(), tiny_tokenizer())


def probe_of(layer: int, width: int = WIDTH) -> Probe:
    weight = np.random.default_rng(layer).normal(size=width).astype(np.float32)
    quality = Quality(0.9, (0.8, 1.0), 0.85, (0.7, 0.95), 0.05, (0.02, 0.1))
    return Probe(layer, weight, layer / 3, 1e-2, 2 / 3, quality, 0.51, 0.02)


def probes_on(subject: Subject) -> ProbeSet:
    origin = Provenance(subject.name, subject.fingerprint, "d" * 64)
    rows = (probe_of(1, subject.width), probe_of(2, subject.width))
    return ProbeSet(rows, 2, "refused-vs-benign", "logistic", 99, origin)


def written(folder: Path, probes: ProbeSet) -> tuple[Path, Path]:
    files = folder / "probes.safetensors", folder / "probes.json"
    write_probes(*files, probes)
    return files


@pytest.mark.parametrize("known", [True, False])
def test_probes_come_back(known: bool, subject: Subject, tmp_path: Path) -> None:
    probes = probes_on(subject)
    probes = probes if known else replace(probes, provenance=None)
    files = written(tmp_path / "new", probes)
    read = read_probes(*files)
    assert replace(read, probes=()) == replace(probes, probes=())
    assert (read.row, read.read_point) == (1, "resid_post")
    for one, two in zip(read.probes, probes.probes, strict=True):
        assert np.array_equal(one.weight, two.weight)
        assert replace(one, weight=two.weight) == two
    assert sorted(file.name for file in files[0].parent.iterdir()) == [
        "probes.json",
        "probes.safetensors",
    ]


def test_the_file_says_how_the_probes_are_to_be_used(subject: Subject, tmp_path: Path) -> None:
    content = json.loads(written(tmp_path, probes_on(subject))[1].read_text())
    assert content["provenance"] == {
        "model": "small",
        "fingerprint": subject.fingerprint,
        "data_hash": "d" * 64,
        "read_point": "resid_post",
        "position": "last-closing",
        "polarity": "high score refuses",
        "version": __version__,
    }
    row = content["layers"][0]
    assert (row["auroc_ci"], row["accuracy_ci"], row["ece_ci"]) == (
        [0.8, 1.0],
        [0.7, 0.95],
        [0.02, 0.1],
    )


def test_probes_fit_the_model_that_they_were_fitted_on(subject: Subject, tmp_path: Path) -> None:
    files = written(tmp_path, probes_on(subject))
    assert read_probes(*files, subject).layer == 2
    assert probes_of(tmp_path, subject).layer == 2


def test_probes_of_another_model_are_refused_unless_that_is_meant(
    subject: Subject, tmp_path: Path
) -> None:
    files = written(tmp_path, probes_on(subject))
    repaired = subject_of("repaired", tiny_model(1), tiny_tokenizer())
    said = (
        rf"probes\.json were fitted on 'small' \(fingerprint {subject.fingerprint[:12]}\), not on "
        rf"'repaired' \({repaired.fingerprint[:12]}\).* Fit probes on this model, or load the other"
    )
    with pytest.raises(RefusalCliffError, match=said):
        read_probes(*files, repaired)
    check_probes_fit(read_probes(*files), repaired, files[1], same_space=True)


def test_probes_of_unknown_origin_fit_no_model(subject: Subject, tmp_path: Path) -> None:
    files = written(tmp_path, replace(probes_on(subject), provenance=None))
    with pytest.raises(RefusalCliffError, match="fitted on an unknown model, not on 'small'"):
        read_probes(*files, subject)


@pytest.mark.parametrize("same_space", [False, True])
@pytest.mark.parametrize(
    ("layers", "extra", "said"),
    [((1, 2), 3, r"width 35 .*of width 32 and 2 blocks"), ((1, 9), 0, "at least 9 blocks")],
)
def test_another_width_or_depth_is_never_right(
    subject: Subject, layers: tuple[int, ...], extra: int, said: str, same_space: bool
) -> None:
    rows = tuple(probe_of(layer, subject.width + extra) for layer in layers)
    probes = replace(probes_on(subject), probes=rows, layer=layers[-1])
    with pytest.raises(RefusalCliffError, match=said):
        check_probes_fit(probes, subject, Path("p.json"), same_space=same_space)


def test_files_of_different_probes_are_said(subject: Subject, tmp_path: Path) -> None:
    one = probes_on(subject)
    first = replace(one, probes=one.probes[1:])
    shifted = replace(one, probes=tuple(replace(p, bias=p.bias + 1e-9) for p in one.probes))
    files = [written(tmp_path / str(i), probes) for i, probes in enumerate((first, one, shifted))]
    with pytest.raises(RefusalCliffError, match=r"0/probes\.safetensors has 1 probes and .* 2\."):
        read_probes(files[0][0], files[1][1])
    with pytest.raises(RefusalCliffError, match=r"not of the same probes\. Delete both"):
        read_probes(files[1][0], files[2][1])


def test_a_chosen_layer_without_a_probe_is_said(subject: Subject, tmp_path: Path) -> None:
    files = written(tmp_path, replace(probes_on(subject), layer=7))
    with pytest.raises(RefusalCliffError, match="not of the same probes"):
        read_probes(*files)


TOP = ("layer", "label_rule", "estimator", "n", "provenance", "layers")
ROW = ("layer", "bias", "strength", "cv_auroc", "shuffled_auroc", "permutation_p")
QUALITY = ("auroc", "auroc_ci", "accuracy", "accuracy_ci", "ece", "ece_ci")
ORIGIN = ("model", "fingerprint", "data_hash", "read_point", "position", "polarity", "version")


@pytest.mark.parametrize(
    ("place", "name"),
    [
        *(((), name) for name in TOP),
        *((("layers", 1), name) for name in (*ROW, *QUALITY)),
        *((("provenance",), name) for name in ORIGIN),
    ],
)
def test_a_missing_field_is_named(
    place: tuple[str | int, ...], name: str, subject: Subject, tmp_path: Path
) -> None:
    files = written(tmp_path, probes_on(subject))
    content: Any = json.loads(files[1].read_text())
    part = content
    for step in place:
        part = part[step]
    del part[name]
    files[1].write_text(json.dumps(content))
    with pytest.raises(RefusalCliffError, match=rf"probes\.json lacks the field '{name}'.* Delete"):
        read_probes(*files)


@pytest.mark.parametrize("content", [[], "text", {"layers": [3]}])
def test_json_of_something_else_is_said(content: Any, subject: Subject, tmp_path: Path) -> None:
    files = written(tmp_path, probes_on(subject))
    files[1].write_text(json.dumps(content))
    with pytest.raises(RefusalCliffError, match="lacks the field"):
        read_probes(*files)


def test_an_unknown_read_point_is_said(subject: Subject, tmp_path: Path) -> None:
    files = written(tmp_path, probes_on(subject))
    files[1].write_text(files[1].read_text().replace("resid_post", "mlp_out"))
    with pytest.raises(RefusalCliffError, match="unknown read_point 'mlp_out'"):
        read_probes(*files)


def test_missing_or_damaged_weights_are_said(subject: Subject, tmp_path: Path) -> None:
    files = written(tmp_path, probes_on(subject))
    files[0].write_bytes(files[0].read_bytes()[:20])
    with pytest.raises(RefusalCliffError, match=r"Could not read .*probes\.safetensors"):
        read_probes(*files)
    files[0].unlink()
    with pytest.raises(RefusalCliffError, match=r"Could not read .*probes\.safetensors"):
        read_probes(*files)


def traces() -> list[Trace]:
    return [
        replace(closed_trace(5, 9, 4, 3 + seed, seed=seed), verdict="refused") for seed in range(4)
    ]


def test_the_hash_is_of_ids_tokens_and_labels_in_any_order(subject: Subject) -> None:
    mine = [replace(t, prompt=replace(t.prompt, id=f"p{i}")) for i, t in enumerate(traces())]
    found = provenance_of(subject, mine)
    assert (found.model, found.fingerprint) == ("small", subject.fingerprint)
    assert found == provenance_of(subject, mine[::-1])
    first = mine[0]
    others = [
        replace(first, verdict="complied"),
        replace(first, token_ids=(*first.token_ids[:-1], first.token_ids[-1] + 1)),
        replace(first, prompt=replace(first.prompt, id="other")),
        replace(first, prompt=replace(first.prompt, label="benign")),
    ]
    hashes = {provenance_of(subject, [other, *mine[1:]]).data_hash for other in others}
    assert len(hashes | {found.data_hash}) == len(others) + 1


def test_scores_of_a_final_norm_probe_are_of_normed_states() -> None:
    subject = family_subject("llama")
    last = subject.n_layers
    probe = linear_probe(last, probe_of(last).weight)
    origin = Provenance(subject.name, subject.fingerprint, "d" * 64, "final_norm")
    probes = ProbeSet((probe,), last, "refused-vs-benign", "logistic", 99, origin)
    positions = [trace.spans.last_closing for trace in traces() if trace.spans is not None]
    reader = PositionResiduals(positions, [last], subject.width)
    tap = AfterFinalNorm(reader, subject)
    capture(subject, [trace.token_ids for trace in traces()], [tap])
    scores = score_traces(subject, traces(), probes)
    for row, at, states in zip(scores, positions, reader.values[:, 0], strict=True):
        assert row.logits[0, at] == pytest.approx(states @ probe.weight + probe.bias, abs=1e-4)
    plain = score_traces(subject, traces(), replace(probes, provenance=None))
    assert not np.allclose(plain[0].logits, scores[0].logits, atol=1e-2)
