"""Every guard at work from the command line: as a checkpoint on this machine, and behind a server.

What the checkpoints say is known, see `rigged_guards`; what they are asked is the guard's format.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, ClassVar

import pytest
from rigged_guards import HARM, REFUSAL, SCRIPTS, save_rigged
from served import Handler, serving
from typer.testing import CliRunner

from refusal_cliff.cli import app
from refusal_cliff.errors import RefusalCliffError
from refusal_cliff.judges.guards import GUARDS, defused
from refusal_cliff.judges.speakers import LocalSpeaker

ANSWERS = {
    "Sure. Use a tin opener.": "complied",
    f"Sure. {HARM} [step two]": "harmful",
    f"{REFUSAL} with that.": "refused",
}
TEXTS = ("wildguard", "harmbench")


def judged(traces: Path, key: str, out: Path, *options: str) -> list[dict[str, Any]]:
    command = ["judge", "--traces", str(traces), "--judge", key, "--out", str(out), *options]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    return [json.loads(line) for line in (out / "traces.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def traces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three answers, and one that never ended; the thinking says what the answer does not."""
    file = tmp_path_factory.mktemp("guards") / "traces.jsonl"
    rows: list[dict[str, Any]] = [
        {"prompt": f"How do I open tin {number}?", "thinking": HARM, "response": answer}
        for number, answer in enumerate((*ANSWERS, HARM))
    ]
    rows[-1]["complete"] = False
    file.write_text("".join(json.dumps({**row, "label": "harmful"}) + "\n" for row in rows))
    return file


@pytest.mark.parametrize("key", GUARDS)
def test_a_guard_on_this_machine(key: str, traces: Path, tmp_path: Path) -> None:
    folder = save_rigged(key, tmp_path / "guard")
    rows = judged(traces, key, tmp_path / "out", "--judge-model", str(folder))
    assert [row["verdict"] for row in rows] == [*ANSWERS.values(), "truncated"]
    by = "" if GUARDS[key].says_refusal else "+rules"
    assert {row["judge"] for row in rows} == {f"{key}{by} ({folder})"}
    assert rows[1]["score"] == 1.0
    if key.startswith("llama"):
        assert rows[1]["reason"] == SCRIPTS[key].on[HARM][1].strip()


class Guarding(Handler):
    """Says what the guard's script says about the last thing that it is asked."""

    key = ""
    asked: ClassVar[list[Any]] = []

    def reply(self, request: dict[str, Any], body: bytes) -> None:
        del body
        self.asked.append(request.get("prompt") or request["messages"])
        script, read = SCRIPTS[self.key], str(self.asked[-1])
        said = next((reply for word, reply in script.on.items() if word in read), script.otherwise)
        text = "".join(said)
        message = {"message": {"role": "assistant", "content": text}}
        choice = message if self.path.endswith("/chat/completions") else {"text": text}
        choice = {"index": 0, "finish_reason": "stop", **choice}
        self.send(200, json.dumps({"id": "1", "object": "x", "choices": [choice]}).encode())


@pytest.mark.parametrize("key", GUARDS)
def test_a_guard_behind_a_server(
    key: str, traces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Guarding, "key", key)
    monkeypatch.setattr(Guarding, "asked", [])
    with serving(Guarding) as address:
        rows = judged(traces, key, tmp_path / "out", "--judge-endpoint", address)
    assert [row["verdict"] for row in rows] == [*ANSWERS.values(), "truncated"]
    assert {isinstance(asked, str) for asked in Guarding.asked} == {key in TEXTS}
    expected = [
        GUARDS[key].ask(f"How do I open tin {number}?", defused(answer))
        for number, answer in enumerate(ANSWERS)
    ]
    assert sorted(map(str, Guarding.asked)) == sorted(map(str, expected))


def test_a_template_that_drops_the_answer_is_refused(tmp_path: Path) -> None:
    folder = save_rigged("qwen3guard", tmp_path)
    (folder / "chat_template.jinja").write_text("{{- messages[0].content }}")
    speaker = LocalSpeaker(str(folder), 8)
    with pytest.raises(RefusalCliffError, match="leaves out what is to be judged"):
        speaker.say([[{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}]])
