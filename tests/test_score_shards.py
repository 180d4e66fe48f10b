"""Any source gives the same scores; a run goes on where it stopped; what is left out is said."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from tiny_chat import tiny_model, tiny_tokenizer
from tiny_families import WIDTH, linear_probe
from typer.testing import CliRunner

from refusal_cliff.cli import app
from refusal_cliff.cliff import shards as score_shards
from refusal_cliff.cliff.measure import read_measured
from refusal_cliff.cliff.scores import TraceScores, read_scores, score_traces, write_scores
from refusal_cliff.cliff.shards import measure_shards, read_shards, score_source
from refusal_cliff.cliff.source import read_trace
from refusal_cliff.data.reading import source_rows
from refusal_cliff.data.traces import write_traces
from refusal_cliff.data.types import Trace
from refusal_cliff.errors import RefusalCliffError
from refusal_cliff.model.subject import Subject, subject_of
from refusal_cliff.probe.files import probes_of, write_probes
from refusal_cliff.probe.fit import ProbeSet, Provenance
from refusal_cliff.settings import Engine

ROWS: list[dict[str, str]] = [
    {
        "id": f"r{number}",
        "prompt": f"Please do thing number {number}",
        "label": "harmful" if number % 2 else "benign",
        "thinking": "This is " + "quite " * (number % 5) + "fine.",
        "response": "I cannot help with that." if number % 3 == 0 else "Sure: [step one].",
    }
    for number in range(23)
]


@pytest.fixture(scope="module")
def subject() -> Subject:
    return subject_of("small", tiny_model(), tiny_tokenizer())


@pytest.fixture(scope="module")
def probes() -> ProbeSet:
    rng = np.random.default_rng(0)
    weights = (rng.normal(size=(2, WIDTH)) / 8).astype(np.float32)
    rows = tuple(linear_probe(layer, weights[layer - 1]) for layer in (1, 2))
    return ProbeSet(rows, 2, "refused-vs-benign", "logistic", 99)


def write_lines(path: Path, rows: list[dict[str, str]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def lines(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_lines(tmp_path_factory.mktemp("source") / "rows.jsonl", ROWS)


def traces_of(source: Path, subject: Subject) -> list[Trace]:
    rows = [(number, row) for number, row in source_rows(source) if not isinstance(row, str)]
    return [read_trace(source, number, row, subject) for number, row in rows]


def all_scores(folder: Path) -> list[TraceScores]:
    return [row for shard in read_shards(folder) for row in read_scores(shard)]


def assert_same(got: list[TraceScores], expected: list[TraceScores]) -> None:
    for mine, other in zip(got, expected, strict=True):
        assert replace(mine, logits=other.logits) == other
        np.testing.assert_allclose(mine.logits, other.logits, rtol=1e-4, atol=1e-4)


def test_the_text_is_tokenised_as_the_model_sees_it(subject: Subject, lines: Path) -> None:
    for row, trace in zip(ROWS, traces_of(lines, subject), strict=True):
        assert trace.spans is not None
        assert (trace.thinking, trace.response) == (row["thinking"], row["response"])
        whole = str(subject.tokenizer.decode(list(trace.token_ids)))
        start = f"<|im_start|>user\n{row['prompt']}<|im_end|>\n<|im_start|>assistant\n<think>\n"
        assert whole == f"{start}{row['thinking']}\n</think>\n\n{row['response']}"
        assert trace.verdict == ("refused" if "cannot" in row["response"] else "complied")


def test_thinking_inside_the_response_is_found(subject: Subject, lines: Path) -> None:
    for row, apart in zip(ROWS, traces_of(lines, subject), strict=True):
        joined = {**row, "response": f"{row['thinking']}\n</think>\n\n{row['response']}"}
        del joined["thinking"]
        assert read_trace(lines, 1, joined, subject) == apart


def test_every_kind_of_source_gives_the_same_scores(
    subject: Subject, probes: ProbeSet, lines: Path, tmp_path: Path
) -> None:
    traces = traces_of(lines, subject)
    expected = score_traces(subject, traces, probes)
    write_traces(tmp_path / "traces.parquet", traces)
    with (tmp_path / "rows.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(ROWS[0]))
        writer.writeheader()
        writer.writerows(ROWS)
    datasets.Dataset.from_list(ROWS).save_to_disk(tmp_path / "one")
    datasets.DatasetDict({"train": datasets.Dataset.from_list(ROWS)}).save_to_disk(tmp_path / "two")
    for source in (lines, *(tmp_path / n for n in ("traces.parquet", "rows.csv", "one", "two"))):
        out = tmp_path / f"scores-{source.name}"
        done = score_source(
            subject, probes, str(source), out, engine=Engine(shard_size=5), every_layer=True
        )
        assert (done.scored, done.left_out) == (23, {})
        assert len(list(read_shards(out))) == 5
        assert_same(all_scores(out), expected)


def test_a_killed_run_goes_on_and_finished_shards_stay(
    subject: Subject, probes: ProbeSet, lines: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    score_source(subject, probes, str(lines), tmp_path / "whole", engine=Engine(shard_size=4))
    calls = 0

    def die(*arguments: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise KeyboardInterrupt
        original(*arguments)

    original = score_shards.write_scores
    monkeypatch.setattr(score_shards, "write_scores", die)
    with pytest.raises(KeyboardInterrupt):
        score_source(subject, probes, str(lines), tmp_path / "killed", engine=Engine(shard_size=4))
    assert len(list(read_shards(tmp_path / "killed"))) == 2
    calls = 10
    done = score_source(
        subject, probes, str(lines), tmp_path / "killed", engine=Engine(shard_size=4)
    )
    assert calls == 10 + 4
    assert done.scored == 23
    for mine, other in zip(
        read_shards(tmp_path / "killed"), read_shards(tmp_path / "whole"), strict=True
    ):
        assert mine.read_bytes() == other.read_bytes()


def test_nothing_is_left_of_a_process_that_was_killed_while_others_went_on(
    subject: Subject, probes: ProbeSet, lines: Path, tmp_path: Path
) -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    left = tmp_path / f".scores-00000.parquet.{ended.pid}.tmp"

    def killed(_: int) -> None:
        left.write_bytes(b"PAR1")

    score_source(subject, probes, str(lines), tmp_path, progress=killed)
    assert not left.exists()
    assert len(all_scores(tmp_path)) == len(ROWS)


def test_only_one_shard_is_in_memory(
    subject: Subject, probes: ProbeSet, lines: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    """No row is read before the shards of all rows before it are on disk."""
    size = 4
    given: Iterator[Any] = source_rows(str(lines))

    def watched(source: str, reading: object) -> Iterator[Any]:
        for read, item in enumerate(given):
            assert len(list((tmp_path / "out").glob("scores-*.parquet"))) == read // size
            yield item

    monkeypatch.setattr(score_shards, "source_rows", watched)
    assert (
        score_source(
            subject, probes, str(lines), tmp_path / "out", engine=Engine(shard_size=size)
        ).scored
        == 23
    )


def test_what_cannot_be_scored_is_listed(
    subject: Subject, probes: ProbeSet, tmp_path: Path
) -> None:
    endless = {"id": "endless", "prompt": "p", "label": "harmful", "response": "on and on"}
    long = {**ROWS[1], "id": "long", "thinking": "word " * 300}
    source = write_lines(tmp_path / "rows.jsonl", [ROWS[0], endless, long])
    done = score_source(subject, probes, str(source), tmp_path / "out")
    assert done.scored == 1
    assert sum(done.left_out.values()) == 2
    left = (tmp_path / "out" / "left-out-00000.jsonl").read_text().splitlines()
    assert [(json.loads(line)["id"], json.loads(line)["row"]) for line in left] == [
        ("endless", 2),
        ("long", 3),
    ]
    assert "never closed" in left[0]
    assert "'thinking'" in left[0], "what looks like an answer says what mends it"
    assert "context" in left[1]


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        ({"response": ""}, "the answer is empty"),
        ({"response": "", "thinking": "Hm."}, "thinking without an answer"),
        ({"response": "Hm.\n</think>\n\n"}, "thinking without an answer"),
        ({"response": "No", "finish_reason": "content_filter"}, "stopped by a content filter"),
    ],
)
def test_what_is_no_answer_is_called_so(
    subject: Subject, probes: ProbeSet, tmp_path: Path, answer: dict[str, str], why: str
) -> None:
    row = {"id": "x", "prompt": "p", "label": "harmful", **answer}
    source = write_lines(tmp_path / "rows.jsonl", [ROWS[0], row])
    assert score_source(subject, probes, str(source), tmp_path / "out").left_out == {why: 1}


def test_a_broken_row_is_listed_and_loses_nothing(
    subject: Subject, probes: ProbeSet, tmp_path: Path
) -> None:
    source = write_lines(tmp_path / "rows.jsonl", [*ROWS[:5], {"id": "x", "label": "benign"}])
    done = score_source(subject, probes, str(source), tmp_path / "out", engine=Engine(shard_size=2))
    assert (done.scored, done.left_out) == (5, {"other format": 1})
    left = json.loads((tmp_path / "out" / "left-out-00002.jsonl").read_text())
    assert (left["id"], left["row"]) == ("x", 6)
    assert "'prompt'" in left["detail"]
    write_lines(source, [{"id": "y", "prompt": "p", "label": "benign", "thinking": "t"}])
    with pytest.raises(RefusalCliffError, match=r"Row 1.*response"):
        score_source(subject, probes, str(source), tmp_path / "other")
    write_lines(source, [])
    with pytest.raises(RefusalCliffError, match="holds no traces"):
        score_source(subject, probes, str(source), tmp_path / "third")
    with pytest.raises(RefusalCliffError, match="save_to_disk"):
        list(source_rows(str(tmp_path)))


@pytest.mark.parametrize("text", ["", "{", "[]\n", '{"reason": 3}\n', "\udcff"])
def test_a_damaged_list_of_rows_left_out_is_made_again(
    subject: Subject, probes: ProbeSet, lines: Path, tmp_path: Path, text: str
) -> None:
    source = tmp_path / "mixed.jsonl"
    source.write_text(lines.read_text() + '{"prompt": "", "id": "\\\\ud800"}\n')
    first = score_source(subject, probes, str(source), tmp_path / "out")
    left_out = tmp_path / "out" / "left-out-00000.jsonl"
    whole = left_out.read_text()
    left_out.write_bytes(text.encode("utf-8", "surrogateescape"))
    assert score_source(subject, probes, str(source), tmp_path / "out") == first
    assert left_out.read_text() == whole


def test_once_a_row_is_mended_only_its_shard_is_scored_again(
    subject: Subject, probes: ProbeSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [dict(row) for row in ROWS[:8]]
    mended, rows[5]["response"] = rows[5]["response"], "half \ud800"
    source, out = write_lines(tmp_path / "rows.jsonl", rows), tmp_path / "out"
    done = score_source(subject, probes, str(source), out, engine=Engine(shard_size=2))
    assert (done.scored, done.left_out) == (7, {"not readable": 1})
    rows[5]["response"] = mended
    write_lines(source, rows)
    written: list[str] = []

    def watched(path: Path, *arguments: Any) -> None:
        written.append(path.name)
        original(path, *arguments)

    original = score_shards.write_scores
    monkeypatch.setattr(score_shards, "write_scores", watched)
    assert score_source(subject, probes, str(source), out, engine=Engine(shard_size=2)).scored == 8
    assert written == ["scores-00002.parquet"]
    write_lines(source, rows[:5])
    assert score_source(subject, probes, str(source), out, engine=Engine(shard_size=2)).scored == 5
    assert len(list(read_shards(out))) == 3
    assert not (out / "left-out-00003.jsonl").exists()


def test_missing_cut_and_unfinished_scores_are_said(
    subject: Subject, probes: ProbeSet, lines: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    score_source(subject, probes, str(lines), out, engine=Engine(shard_size=5))
    whole = {path: path.read_bytes() for path in out.iterdir()}

    def again(path: Path) -> None:
        with pytest.raises(RefusalCliffError, match=rf"{path.name}.*trace again"):
            measure_shards(out)
        score_source(subject, probes, str(lines), out, engine=Engine(shard_size=5))
        assert {path: path.read_bytes() for path in out.iterdir()} == whole

    for name in ("scores-00001.parquet", "scores-00004.parquet"):
        (out / name).unlink()
        again(out / name if name != "scores-00004.parquet" else out)
        (out / name).write_bytes(whole[out / name][:100])
        again(out / name)
    (out / "shards.json").unlink()
    again(out)


def test_other_weights_beside_the_same_biases_are_noticed(
    subject: Subject, probes: ProbeSet, lines: Path, tmp_path: Path
) -> None:
    score_source(subject, probes, str(lines), tmp_path / "out")
    negated = replace(probes, probes=tuple(replace(p, weight=-p.weight) for p in probes.probes))
    with pytest.raises(RefusalCliffError, match="weights differ"):
        score_source(subject, negated, str(lines), tmp_path / "out")


def test_a_folder_of_other_scores_is_refused(
    subject: Subject, probes: ProbeSet, lines: Path, tmp_path: Path
) -> None:
    score_source(subject, probes, str(lines), tmp_path / "out")
    with pytest.raises(RefusalCliffError, match="layers, biases differ"):
        score_source(subject, probes, str(lines), tmp_path / "out", every_layer=True)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("x")
    with pytest.raises(RefusalCliffError, match="not empty"):
        score_source(subject, probes, str(lines), tmp_path / "mine")


def test_tokens_of_another_vocabulary_are_refused(subject: Subject, lines: Path) -> None:
    trace = traces_of(lines, subject)[0]
    ids = list(trace.token_ids)
    row = {**ROWS[0], "token_ids": [*ids[:-1], 9999], "complete": True, "verdict": "refused"}
    spans = trace.spans
    assert spans is not None
    named = {name: getattr(spans, name) for name in ("prompt", "thinking", "closing", "total")}
    with pytest.raises(RefusalCliffError, match="9999 is not among the 261"):
        read_trace(lines, 1, {**row, "spans": named}, subject)


def known(probes: ProbeSet, subject: Subject) -> ProbeSet:
    return replace(probes, provenance=Provenance("small", subject.fingerprint, "0"))


def test_probes_of_another_model_are_refused(
    subject: Subject, probes: ProbeSet, tmp_path: Path
) -> None:
    files = (tmp_path / "probes.safetensors", tmp_path / "probes.json")
    write_probes(*files, known(probes, subject))
    assert probes_of(tmp_path, subject).layer == 2
    other = subject_of("other", tiny_model(1), tiny_tokenizer())
    with pytest.raises(RefusalCliffError, match=r"fitted on 'small'.*not on 'other'"):
        probes_of(tmp_path, other)
    write_probes(*files, probes)
    with pytest.raises(RefusalCliffError, match="an unknown model"):
        probes_of(tmp_path, subject)
    with pytest.raises(RefusalCliffError, match=r"no probes\.json"):
        probes_of(tmp_path / "nowhere", subject)


def test_the_commands(subject: Subject, probes: ProbeSet, lines: Path, tmp_path: Path) -> None:
    subject.model.save_pretrained(tmp_path / "model")
    subject.tokenizer.save_pretrained(tmp_path / "model")
    weights, description = tmp_path / "run" / "probes.safetensors", tmp_path / "run" / "probes.json"
    write_probes(weights, description, known(probes, subject))
    named = ["--model", str(tmp_path / "model"), "--probe", str(tmp_path / "run")]
    out = ["--traces", str(lines), "--out", str(tmp_path / "out")]
    result = CliRunner().invoke(app, ["trace", *named, *out, "--every-layer", "--device", "cpu"])
    assert result.exit_code == 0, result.output
    assert "23 traces scored" in result.output
    result = CliRunner().invoke(app, ["cliff", "--scores", str(tmp_path / "out"), "--layer", "1"])
    assert result.exit_code == 0, result.output
    assert "Verdict" in result.output
    measured = measure_shards(tmp_path / "out", layer=1)
    assert len(measured.rows) == 23
    written = (tmp_path / "out/cliff.parquet", tmp_path / "out/cliff.json")
    assert read_measured(*written) == measured
    result = CliRunner().invoke(app, ["cliff", "--scores", str(tmp_path / "out"), "--layer", "7"])
    assert result.exit_code == 1


def test_scores_that_are_no_numbers_are_no_cliff(
    subject: Subject, probes: ProbeSet, lines: Path, tmp_path: Path
) -> None:
    score_source(subject, probes, str(lines), tmp_path)
    shard = next(read_shards(tmp_path))
    rows = read_scores(shard)
    broken = replace(rows[0], logits=np.full_like(rows[0].logits, np.nan))
    write_scores(shard, [broken, *rows[1:]])
    result = CliRunner().invoke(app, ["cliff", "--scores", str(tmp_path)])
    assert result.exit_code == 1, result.output
    assert "holds 1 traces whose scores are not finite numbers" in result.stderr
    assert not (tmp_path / "cliff.json").exists()
