"""Heads taken out by adapters of a server: what the model here writes, or refused with a reason."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from lora_server import LoraServer
from served import serving
from test_answer_again import thought
from test_audit import SMALL, audit
from tiny_chat import save_tiny
from tiny_heads import head_row

from refusal_cliff.data.examples import write_prompts
from refusal_cliff.data.types import LABELS, Trace
from refusal_cliff.errors import RefusalCliffError
from refusal_cliff.generate.adapters import AdapterServer
from refusal_cliff.generate.endpoint import EndpointConfig
from refusal_cliff.heads.served import agreement
from refusal_cliff.io import read_json
from refusal_cliff.model.subject import Head, Subject, load_subject
from refusal_cliff.organisms import embedded_path, language
from refusal_cliff.run.pipeline import Job, Stage
from refusal_cliff.settings import GenerationConfig, Server
from refusal_cliff.stages.ablated import Answers, adapter_name, written_adapter
from refusal_cliff.stages.elsewhere import Adapters, Elsewhere
from refusal_cliff.stages.study import Study

CONFIG = GenerationConfig(max_new_tokens=90, batch_size=16)
ROWS = [head_row(index, 1.0 if index < 3 else -1.0) for index in range(4)]
ONE, TWO, PROMOTING = [Head(1, 0)], [Head(1, 1), Head(1, 2)], [Head(1, 3)]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def subject(base: Path) -> Subject:
    return load_subject(str(base), device="cpu")


@pytest.fixture(scope="module")
def traces(subject: Subject) -> list[Trace]:
    said = {"Hi": "they greet me", "Why is it so?": "hm", "How are you": "a question"}
    found = [thought(subject, text, thinking) for text, thinking in said.items()]
    return [replace(trace, verdict="complied") for trace in found]


@pytest.fixture
def server(base: Path) -> LoraServer:
    return LoraServer(base)


@pytest.fixture
def address(server: LoraServer) -> Iterator[str]:
    with serving(server.handler) as found:
        yield found


def study(subject: Subject, folder: Path | None, address: str = "") -> Study:
    if folder is None:
        return Study("m", subject, 0, CONFIG)
    config = EndpointConfig(subject.name, Server(address, retries=1), CONFIG)
    adapters = Adapters(AdapterServer(config), folder)
    return Study("m", subject, 0, CONFIG, elsewhere=Elsewhere(adapters=adapters))


def job(folder: Path) -> Job:
    stage = Stage("m/ablate", (), (), {}, lambda _: {})
    return Job(stage, folder, folder, lambda *_: None, {}, folder / "journal")


def said(traces: Sequence[Trace]) -> list[object]:
    """What two ways must agree in; the text of a thought that never closed stands elsewhere."""
    return [
        (t.prompt.id, t.token_ids, t.spans, t.spans and t.response, t.complete, t.verdict)
        for t in traces
    ]


def test_a_server_answers_as_the_model_here(
    subject: Subject, traces: list[Trace], server: LoraServer, address: str, tmp_path: Path
) -> None:
    """Anew and after kept thoughts; what promotes refusal is never written; nothing asked twice."""
    prompts = [trace.prompt for trace in traces]
    sets = [heads for heads in (ONE, TWO, PROMOTING) for _ in traces]
    here = Answers(study(subject, None), job(tmp_path / "here"), ROWS, traces)
    folder = tmp_path / "adapters"
    there = Answers(study(subject, folder, address), job(tmp_path / "there"), ROWS, traces)
    names = [adapter_name(subject, heads) for heads in (ONE, TWO)]
    both, again = [(act, name) for name in names for act in ("load", "unload")], list[Trace]()
    for _ in range(2):
        assert said(there.write(prompts * 3, sets)) == said(here.write(prompts * 3, sets))
        again = there.again(traces * 3, sets, everywhere=True)
        assert said(again) == said(here.again(traces * 3, sets, everywhere=True))
        assert server.loading() == both * 2
        assert set(server.models) == {subject.name}
    assert there.written == here.written
    assert sorted(path.name for path in folder.iterdir() if path.is_dir()) == sorted(names)
    told = there.served[names[1]]
    assert told.heads == (Head(1, 1), Head(1, 2))
    assert told.check.other == 0 < told.check.telling <= told.check.tokens
    kept = there.again(traces, [PROMOTING] * 3)  # from the closing tokens on: never a server
    assert said(kept) == said(here.again(traces, [PROMOTING] * 3)) != said(again[6:])


def test_a_server_that_says_something_else_is_refused(
    subject: Subject, traces: list[Trace], base: Path, tmp_path: Path
) -> None:
    deaf = LoraServer(base, deaf=True)
    with serving(deaf.handler) as address:
        answers = Answers(study(subject, tmp_path / "a", address), job(tmp_path), ROWS, traces)
        with pytest.raises(RefusalCliffError, match=r"of \d+ greedy tokens .* \d+ are other ones"):
            answers.write([trace.prompt for trace in traces], [TWO] * 3)
        name = adapter_name(subject, TWO)
        assert deaf.loading() == [("load", name), ("unload", name)]
        assert ("chat/completions", name) not in deaf.asked
        with pytest.raises(RefusalCliffError, match="greedy tokens"):  # the check is kept, too
            answers.write([trace.prompt for trace in traces], [TWO] * 3)


def test_why_an_adapter_is_not_loaded(
    subject: Subject, traces: list[Trace], server: LoraServer, address: str, tmp_path: Path
) -> None:
    prompts, folder = [trace.prompt for trace in traces], tmp_path / "adapters"
    answers = Answers(study(subject, folder, address), job(tmp_path), ROWS, traces)
    server.max_rank = 8
    with pytest.raises(RefusalCliffError, match=r"of rank 16: .*rank 16 is greater .*--max-lora-r"):
        answers.write(prompts, [TWO] * 3)
    server.runtime = False
    with pytest.raises(RefusalCliffError, match=r"ALLOW_RUNTIME_LORA_UPDATING.*--lora-modules"):
        answers.write(prompts, [TWO] * 3)
    name = adapter_name(subject, TWO)
    server.load(name, folder / name)  # as a name of --lora-modules
    server.asked.clear()
    answers.write(prompts, [TWO] * 3)
    assert server.loading() == []
    assert name in server.models


def test_an_adapters_folder_is_of_one_model(
    subject: Subject, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    first = written_adapter(subject, ONE, tmp_path / "a")
    before = {path: path.stat().st_mtime_ns for path in first.iterdir()}
    assert written_adapter(subject, ONE, tmp_path / "a") == first
    assert {path: path.stat().st_mtime_ns for path in first.iterdir()} == before
    other = load_subject(str(save_tiny(tmp_path_factory.mktemp("other"), 1)), device="cpu")
    with pytest.raises(RefusalCliffError, match="fingerprint differ"):
        written_adapter(other, ONE, tmp_path / "a")


def test_a_tie_counts_once_and_another_model_often(subject: Subject, traces: list[Trace]) -> None:
    """Each token is held against what came before it, whoever wrote that."""
    trace = traces[0]
    assert trace.spans is not None
    begun = {"a": trace.token_ids[: trace.spans.closing]}
    found = agreement(subject, TWO, begun, {"a": list(range(70, 90))})
    assert (found.tokens, found.other) == (20, found.telling) or found.other > 10
    assert found.furthest > 0.5
    with pytest.raises(RefusalCliffError, match=r"1\.1, 1\.2"):
        found.require("a", TWO, "http://here")


@pytest.mark.slow
def test_a_whole_audit_says_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command on tiny, and again with its answers and a server that takes heads out."""
    monkeypatch.setattr("refusal_cliff.workflows.audit.AblationPlan", lambda: SMALL)
    files = tmp_path / "harmful.jsonl", tmp_path / "benign.jsonl"
    for file, label, n in zip(files, LABELS, (180, 60), strict=True):
        write_prompts(file, language.prompts("test", label, n, 0))
    tiny = embedded_path("tiny")
    code, output = audit(str(tiny), files, tmp_path / "here")
    assert code == 0, output
    server = LoraServer(tiny, max_rank=256)
    with serving(server.handler) as address:
        written = [
            f"--traces={tmp_path / 'here' / 'model' / f'traces-{part}.parquet'}"
            for part in ("fit", "test")
        ]
        options = ["--endpoint", address, "--adapters-dir", str(tmp_path / "adapters")]
        code, output = audit(str(tiny), files, tmp_path / "there", *written, *options)
    assert code == 0, output
    here, there = (
        read_json(tmp_path / name / "model" / "ablation.json") for name in ("here", "there")
    )
    served = there["served"].values()
    assert here["heads"] == there["heads"]
    assert sorted(here["heads"]) in [one["heads"] for one in served]
    assert all(one["check"]["other"] == 0 for one in served)
    for name in ("before", "after", "pairs"):
        assert there[name] == here[name], name
    page = (tmp_path / "there" / "report.html").read_text()
    assert "heads taken out by" in page
    assert {act for act, _ in server.loading()} == {"load", "unload"}
