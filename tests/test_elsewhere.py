"""Answers that are there already, or come from a server: read, matched, asked once, never lost."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tiny_chat import save_tiny

from refusal_cliff.commands.arguments import prompt_sources
from refusal_cliff.data.journal import Journal
from refusal_cliff.data.reading import DEFAULT
from refusal_cliff.data.types import LeftOut, Prompt, Told, Trace
from refusal_cliff.errors import RefusalCliffError
from refusal_cliff.generate import GenerationConfig, generate
from refusal_cliff.generate.adapters import AdapterServer
from refusal_cliff.generate.backend import Finished
from refusal_cliff.generate.endpoint import EndpointConfig
from refusal_cliff.model.subject import Subject, load_subject
from refusal_cliff.settings import Server
from refusal_cliff.stages.asking import asked_first
from refusal_cliff.stages.elsewhere import Adapters, Elsewhere, served
from refusal_cliff.stages.study import Study
from refusal_cliff.workflows.audit import run_audit
from refusal_cliff.workflows.audit_cost import Part, audit_cost, cost_lines
from refusal_cliff.workflows.audit_prompts import (
    AuditPrompts,
    AuditSources,
    audit_prompts,
    read_given,
)

CONFIG = GenerationConfig(max_new_tokens=12)
PROMPTS = [Prompt(f"p{n}", f"Question number {n}?", "harmful") for n in range(6)]


@pytest.fixture(scope="module")
def subject(tmp_path_factory: pytest.TempPathFactory) -> Subject:
    return load_subject(str(save_tiny(tmp_path_factory.mktemp("tiny"))), device="cpu")


@pytest.fixture(scope="module")
def written(subject: Subject) -> dict[str, Trace]:
    return {trace.prompt.id: trace for trace in generate(subject, PROMPTS, CONFIG)}


class Fake:
    """A server that knows some answers, and fails on the other prompts."""

    def __init__(self, traces: dict[str, Trace]) -> None:
        self.traces, self.asked = traces, []

    def description(self) -> dict[str, Any]:
        return {"backend": "fake"}

    def answer(self, prompts: Sequence[Prompt], finished: Finished) -> None:
        for prompt in prompts:
            self.asked.append(prompt.id)
            if prompt.id in self.traces:
                finished(self.traces[prompt.id])
            else:
                finished(LeftOut(prompt.id, None, "the server is busy"))


def test_a_servers_answers_are_kept_and_none_is_lost(
    subject: Subject, written: dict[str, Trace], tmp_path: Path
) -> None:
    half = Fake({name: written[name] for name in ("p0", "p2")})
    with (
        Journal(tmp_path / "j") as journal,
        pytest.raises(RefusalCliffError, match=r"4 of 6 prompts .* p1: the server is busy"),
    ):
        served(half, subject, PROMPTS, journal)
    whole = Fake(written)
    with Journal(tmp_path / "j") as journal:
        found = served(whole, subject, PROMPTS, journal)
    assert whole.asked == ["p1", "p3", "p4", "p5"]
    assert {name: t.token_ids for name, t in found.items()} == {
        name: t.token_ids for name, t in written.items()
    }
    assert {trace.verdict for trace in found.values()} == {"unscored"}


class Textual(Fake):
    """A server that tells no token ids, and counted others than its text gives for some prompts."""

    def __init__(self, traces: dict[str, Trace], unlike: set[str]) -> None:
        super().__init__(traces)
        self.unlike = unlike

    def answer(self, prompts: Sequence[Prompt], finished: Finished) -> None:
        def without_ids(result: Trace | LeftOut) -> None:
            assert isinstance(result, Trace)
            counted = 99 if result.prompt.id in self.unlike else None
            text = Trace(result.prompt, (), None, "So.", "Yes.", complete=True)
            finished(replace(text, told=Told(True, tokens=counted)))

        super().answer(prompts, without_ids)


def test_what_a_servers_text_does_not_give_back_is_written_here(
    subject: Subject, written: dict[str, Trace], tmp_path: Path
) -> None:
    server = Textual(written, {"p1", "p4"})
    study = Study("m", subject, 0, CONFIG, elsewhere=Elsewhere({}, {}, server))
    done: list[int] = []
    with Journal(tmp_path / "j") as journal:
        found, here = study.first_answers(PROMPTS, journal, done.append)
    assert (here, sum(done)) == (2, 6)
    assert [trace.prompt.id for trace in found] == [prompt.id for prompt in PROMPTS]
    same = {t.prompt.id for t in found if t.token_ids == written[t.prompt.id].token_ids}
    assert same >= server.unlike
    with Journal(tmp_path / "j") as journal:  # killed after it: nobody is asked again
        assert study.first_answers(PROMPTS, journal) == (found, here)
    assert len(server.asked) == 6


def test_a_server_of_another_model_is_no_accident(
    subject: Subject, written: dict[str, Trace]
) -> None:
    server = Textual(written, {"p0", "p1", "p2", "p3"})
    with pytest.raises(RefusalCliffError, match=r"4 of 6 answers .* p0: its text .*--model"):
        served(server, subject, PROMPTS, None)


def test_only_what_is_missing_is_asked(subject: Subject, written: dict[str, Trace]) -> None:
    server = Fake(written)
    some = {name: written[name] for name in ("p1", "p4")}
    study = Study("m", subject, 0, CONFIG, elsewhere=Elsewhere(some, {}, server))
    found, _ = study.first_answers(PROMPTS, None)
    assert server.asked == ["p0", "p2", "p3", "p5"]
    assert [trace.prompt.id for trace in found] == [prompt.id for prompt in PROMPTS]
    here = Study("m", subject, 0, CONFIG, elsewhere=Elsewhere(some))
    assert here.first_answers(PROMPTS, None) == (list(written.values()), 4)


def rows_of(path: Path, rows: Sequence[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_given_answers_take_the_labels_of_their_prompts(subject: Subject, tmp_path: Path) -> None:
    known = [Prompt("h1", "How do I do harm?", "harmful", "g", tags=("from:h",))]
    said = {"thinking": "hm", "response": "No.", "complete": True}
    traces = rows_of(
        tmp_path / "t.jsonl",
        [
            {"prompt": known[0].text, **said},
            {"prompt": known[0].text, **said, "label": "harmful"},
            {"id": "own", "prompt": "What is rain?", **said, "label": "benign"},
            {"prompt": "What is snow?", **said},
            {"prompt": "What is hail?", "label": "benign"},
        ],
    )
    given, left_out = read_given([traces], DEFAULT, subject, known)
    assert [(t.prompt.id, t.prompt.label, t.verdict) for t in given] == [
        ("h1", "harmful", "unscored"),
        ("h1#2", "harmful", "unscored"),
        ("own", "benign", "unscored"),
    ]
    assert given[0].prompt.tags == ("from:h",)
    assert given[2].prompt.tags == ("from:t",)
    assert [row.row for row in left_out] == [4, 5]
    assert "label" in left_out[0].why


def test_an_audit_may_begin_with_traces_alone(subject: Subject, tmp_path: Path) -> None:
    rows = [
        {"prompt": f"{word} {n}?", "label": label, "thinking": "hm", "response": "No."}
        for label, word in (("harmful", "Harm"), ("benign", "Help"))
        for n in range(50)
    ]
    sources = AuditSources((), (), traces=(rows_of(tmp_path / "t.jsonl", rows),))
    found = audit_prompts(sources, 0, subject)
    assert len(found.fit) + len(found.test) == len(found.given) == 100
    assert set(found.files) == {str(tmp_path / "t.jsonl")}
    prompt_sources((), (), (), ["t.jsonl"])
    with pytest.raises(RefusalCliffError, match="--traces"):
        prompt_sources((), (), ())


def test_samples_are_of_prompts_without_an_answer(subject: Subject, tmp_path: Path) -> None:
    said = {"thinking": "hm", "response": "No."}
    harmful = [{"prompt": f"Harm {n}?", "label": "harmful"} for n in range(40)]
    benign = [{"prompt": f"Help {n}?", "label": "benign"} for n in range(40)]
    sources = AuditSources(
        (rows_of(tmp_path / "h.jsonl", harmful),),
        (rows_of(tmp_path / "b.jsonl", benign),),
        traces=(rows_of(tmp_path / "t.jsonl", [{**row, **said} for row in harmful[:30]]),),
    )
    found = audit_prompts(sources, 0, subject, samples=3)
    every = [*found.fit, *found.test]
    assert sum(prompt.label == "harmful" for prompt in every) == 30 + 3 * 10
    assert sum(prompt.label == "benign" for prompt in every) == 3 * 40
    assert len({prompt.id for prompt in every}) == len(every)


def test_the_cost_is_counted(subject: Subject, written: dict[str, Trace], tmp_path: Path) -> None:
    from refusal_cliff.stages.intervene import AblationPlan

    benign = [Prompt(f"b{n}", f"Kind {n}?", "benign") for n in range(4)]
    prompts = AuditPrompts(PROMPTS, [*PROMPTS, *benign], {}, given={"p0": written["p0"]})
    plan = AblationPlan(
        fractions=(0, 0.2, 0.5),
        dose_prompts=2,
        dose_benign=1,
        draws={"random": 3},
        control_prompts=5,
    )
    server = Study("m", subject, 0, CONFIG, elsewhere=Elsewhere(prompts.given, {}, Fake(written)))
    cost = audit_cost(prompts, server, plan, None)
    assert cost.parts == (
        Part("answers of the model", 6 + 10 - 2, 12, here=False),
        Part("the same test prompts without the heads found", 10, 12),
        Part("doses, thoughts kept", 2 * 2 * 3, 64),
        Part("control sets, thoughts kept", 4 * 5, 64),
    )
    assert cost.tokens(10) == 10 * 10 + 12 * 10 + 20 * 10
    for first in (2, 5, None):  # of a quick audit, only given answers to what it asks spare any
        fit, test = (asked_first(part, 0, first) for part in (prompts.fit, prompts.test))
        asked = [prompt.id for part in (fit, test) for some in part.values() for prompt in some]
        assert audit_cost(prompts, server, plan, first).parts[0].answers == sum(
            name != "p0" for name in asked
        )
    assert "by the server" in cost_lines(cost)[0]
    assert cost.speed() > 0
    config = EndpointConfig("m", Server("http://here/v1"))
    adapters = Adapters(AdapterServer(config), tmp_path)
    server = Study("m", subject, 0, CONFIG, elsewhere=Elsewhere({}, {}, Fake(written), adapters))
    there = audit_cost(prompts, server, plan, None)
    assert [part.here for part in there.parts] == [False, False, False, True]
    assert there.tokens(10) == 20 * 10
    assert f"adapters in {tmp_path}" in " ".join(cost_lines(there))


def test_adapters_need_a_server_and_our_definitions() -> None:
    with pytest.raises(RefusalCliffError, match="--endpoint URL"):
        run_audit("tiny", AuditSources((), ()), Path("out"), adapters_dir=Path("a"))
    with pytest.raises(RefusalCliffError, match="former length"):
        run_audit(
            "tiny",
            AuditSources((), ()),
            Path("out"),
            server=Server("http://here/v1"),
            adapters_dir=Path("a"),
            preset="paper",
        )
