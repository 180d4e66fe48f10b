"""A real server is asked: killed runs go on, faults cost nothing, text and ids score the same."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from by_rules import judge_all
from killable import Killable
from served import serving, spoiling, transformers_serve
from tiny_families import linear_probe
from typer.testing import CliRunner

from refusal_cliff.answers.collect import generate_answers
from refusal_cliff.cli import app
from refusal_cliff.cliff.scores import read_scores, score_traces
from refusal_cliff.cliff.shards import read_shards, score_source
from refusal_cliff.cliff.source import agrees, as_written, read_trace
from refusal_cliff.data.examples import PromptSet, read_prompt_set, write_prompts
from refusal_cliff.data.said import NO_ANSWER, told_of
from refusal_cliff.data.traces import closed, read_answers
from refusal_cliff.data.types import Prompt
from refusal_cliff.generate import GenerationConfig, generate
from refusal_cliff.generate.endpoint import EndpointBackend, EndpointConfig
from refusal_cliff.model.subject import Subject, load_subject
from refusal_cliff.organisms import EMBEDDED, embedded_path
from refusal_cliff.organisms.language import prompts
from refusal_cliff.probe.fit import ProbeSet
from refusal_cliff.settings import Server

TINY = embedded_path("tiny")
STRIPPED = ("tiny", "tiny-fooling")
"""Those that write blanks which the server strips."""
ASKED = [*prompts("test", "harmful", 4, 3), *prompts("test", "benign", 4, 3)]
MOST = 160


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    pytest.importorskip("fastapi", reason="transformers serve needs fastapi")
    with transformers_serve() as address:
        yield address


def config(address: str, model: Path = TINY) -> EndpointConfig:
    server = Server(address, concurrency=2, retries=4, timeout=120)
    return EndpointConfig(str(model), server, GenerationConfig(MOST))


@pytest.fixture(scope="module")
def through_endpoint(server: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("endpoint")
    generate_answers(EndpointBackend(config(server)), PromptSet(list(ASKED)), out, source="test")
    return out


def served_path(name: str, subject: Subject, folder: Path) -> Path:
    """A checkpoint that a server can load: an adapter is merged into one, in the folder."""
    path = embedded_path(name)
    if (path / "config.json").is_file():
        return path
    subject.model.save_pretrained(folder)
    subject.tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("name", EMBEDDED)
def test_text_and_ids_have_the_same_spans_and_scores(
    name: str, server: str, tmp_path: Path
) -> None:
    """Of the same greedy answers, as the server told them and as this process generated them."""
    subject = load_subject(name, device="cpu")
    local = judge_all(generate(subject, ASKED, GenerationConfig(MOST)))
    backend = EndpointBackend(config(server, served_path(name, subject, tmp_path / "served")))
    answers, out = tmp_path / "answers", tmp_path / "scores"
    generate_answers(backend, PromptSet(list(ASKED)), answers, source="test")
    file = answers / "traces.jsonl"
    rows = rows_of(file)
    records = read_answers(file)[0]
    assert [row["tokens"] for row in rows] == [len(trace.token_ids) for trace in local]
    told = [read_trace(file, number, row, subject) for number, row in enumerate(rows, start=1)]
    whole = [as_written(subject, trace, r) for trace, r in zip(told, records, strict=True)]
    assert [(trace.token_ids, trace.spans) for trace in whole] == [
        (trace.token_ids, trace.spans) for trace in local
    ]
    believed = [
        agrees(t, told_of(r)) and t.token_ids != w.token_ids
        for t, r, w in zip(told, records, whole, strict=True)
    ]
    assert any(believed) == (name == "tiny-fooling")  # as many tokens by chance, but others
    probes = any_probes(subject)
    done = score_source(subject, probes, str(file), out, every_layer=True)
    mine, theirs = score_traces(subject, closed(local), probes), read_scores(next(read_shards(out)))
    assert (done.scored, done.restored > 0) == (len(mine), name in STRIPPED)
    restored = [row["blanks"] for row in rows_of(out / "restored-00000.jsonl")]
    assert len(restored) == done.restored
    assert all(isinstance(blanks, int) and blanks > 0 for blanks in restored)
    assert set(done.left_out) <= {"its thinking never closed", "thinking without an answer"}
    for left, right in zip(mine, theirs, strict=True):
        assert (left.trace_id, left.spans, left.verdict) == (
            *(right.trace_id, right.spans, right.verdict),
        )
        np.testing.assert_allclose(left.logits, right.logits, atol=1e-4)


def any_probes(subject: Subject) -> ProbeSet:
    rng = np.random.default_rng(0)
    weights = rng.normal(size=(subject.n_layers, subject.width)).astype(np.float32)
    probes = tuple(linear_probe(m, row) for m, row in enumerate(weights, start=1))
    return ProbeSet(probes, subject.n_layers, "refused-vs-benign", "logistic", 99)


def test_a_killed_run_goes_on_and_asks_every_prompt_once(server: str, tmp_path: Path) -> None:
    """The whole command: benchmark file and server in, judged traces with intervals out."""
    file, out = tmp_path / "bench.jsonl", tmp_path / "out"
    write_prompts(file, ASKED)
    options = ["--max-new-tokens", str(MOST), "--concurrency", "1"]
    words = [
        *("generate", "--prompts", str(file), "--endpoint", server, "--model", str(TINY)),
        *("--out", str(out), *options),
    ]
    environment = {"OPENAI_API_KEY": "sk-very-secret"}
    first = Killable(with_environment, environment, words)
    journal = out / "answers.journal"
    while lines(journal) < 2 and first.is_alive():
        time.sleep(0.02)
    first.kill()
    assert first.wait() == -signal.SIGKILL
    before = lines(journal)
    assert 2 <= before < len(ASKED)
    kept = journal.read_bytes()
    with journal.open("ab") as torn:
        torn.write(b'{"id": "half a li')
    done = CliRunner(env=environment).invoke(app, words)
    assert done.exit_code == 0, done.output
    assert "attack success" in done.stdout
    assert journal.read_bytes().startswith(kept)
    rows = [json.loads(line) for line in (out / "traces.jsonl").read_text().splitlines()]
    assert [row["id"] for row in rows] == [prompt.id for prompt in ASKED]
    assert lines(journal) == len(ASKED)
    unscored = [row["reason"] for row in rows if row["verdict"] == "unscored"]
    assert unscored == [NO_ANSWER]  # one model answers in its thought, and ends
    rates = json.loads((out / "rates.json").read_text())
    assert rates["outcomes"][0]["attacks"]["n"] == 4  # the one that ends in its thought is benign
    everything = b"".join(path.read_bytes() for path in out.iterdir() if path.is_file())
    assert b"sk-very-secret" not in everything + done.output.encode()


def with_environment(variables: dict[str, str], words: list[str]) -> None:
    """The command line in a process that has these variables."""
    os.environ |= variables
    app(words)


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.is_file() else 0


def test_faults_on_the_way_lose_and_repeat_nothing(
    server: str, through_endpoint: Path, tmp_path: Path
) -> None:
    """Resets, 429, 500, malformed JSON, half an answer, none: each prompt ends with its answer."""
    handler, answered = spoiling(server)
    with serving(handler) as proxy:
        backend = EndpointBackend(config(proxy))
        found = generate_answers(backend, PromptSet(list(ASKED)), tmp_path, source="test")
    assert found.left_out == []
    assert answered == {prompt.text: 1 for prompt in ASKED}
    whole = read_prompt_set(through_endpoint / "traces.jsonl")
    assert [prompt.id for prompt in whole.prompts] == [r.prompt.id for r in found.traces]
    told = [row["response"] for row in rows_of(through_endpoint / "traces.jsonl")]
    assert [record.response for record in found.traces] == told


def test_a_truncated_answer_is_said(server: str, tmp_path: Path) -> None:
    short = EndpointConfig(str(TINY), Server(server, timeout=120), GenerationConfig(5))
    prompt = Prompt("p", ASKED[0].text, "harmful")
    found = generate_answers(EndpointBackend(short), PromptSet([prompt]), tmp_path, source="test")
    record = found.traces[0]
    assert (record.closed, record.complete, told_of(record).finish) == (False, False, "length")
    assert record.response == ""
