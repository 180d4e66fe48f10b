"""What goes wrong with an endpoint is said in one paragraph, and the key is in none of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, ClassVar

import pytest
from served import Handler, free_port, serving

from refusal_cliff.answers.collect import generate_answers
from refusal_cliff.data.examples import PromptSet
from refusal_cliff.data.said import told_of
from refusal_cliff.data.types import Prompt
from refusal_cliff.errors import RefusalCliffError
from refusal_cliff.generate.endpoint import GREEDY, EndpointBackend, EndpointConfig
from refusal_cliff.judges import Answer
from refusal_cliff.judges.choose import chosen_judge
from refusal_cliff.settings import GenerationConfig, Server

KEY = "sk-very-secret-4711"
PROMPTS = PromptSet([Prompt(f"p{index}", f"Question {index}", "benign") for index in range(6)])


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)


def backend(address: str, generation: GenerationConfig = GREEDY, **server: Any) -> EndpointBackend:
    where = Server(address, **{"retries": 0, "concurrency": 2, "timeout": 20, **server})
    return EndpointBackend(EndpointConfig("m", where, generation))


class Answering(Handler):
    """Says what it was asked; some questions get something else."""

    def reply(self, request: dict[str, Any], body: bytes) -> None:
        del body
        asked = request["messages"][-1]["content"]
        if asked.endswith("3"):
            key = self.headers["Authorization"]
            self.send(400, json.dumps({"error": {"message": f"too long for {key}"}}).encode())
            return
        message: dict[str, Any] = {"role": "assistant", "content": f"To {asked}: yes."}
        if asked.endswith("1"):
            message["reasoning_content"] = "Hm."
        if asked.endswith("2"):
            message["reasoning"] = "Well."
        if asked.endswith("4"):
            message["content"] = "<think>\nOne.\n</think>\n\nTwo."
        if asked.endswith("5"):
            message["content"] = {"not": "a text"}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        self.send(200, json.dumps({"id": "1", "object": "x", "choices": [choice]}).encode())


class Refusing(Handler):
    """Repeats the key, as servers do."""

    status = 401

    def reply(self, request: dict[str, Any], body: bytes) -> None:
        del request, body
        told = f"Incorrect API key provided: {self.headers['Authorization']}"
        self.send(self.status, json.dumps({"error": {"message": told}}).encode())


def test_every_field_of_thinking_is_read_and_bad_rows_are_listed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("refusal_cliff.generate.endpoint._FIRST_PAUSE", 0.0)
    with serving(Answering) as address:
        found = generate_answers(backend(address), PROMPTS, tmp_path, source="test")
    assert [(r.prompt.id, r.thinking, r.response) for r in found.traces] == [
        ("p0", "", "To Question 0: yes."),
        ("p1", "Hm.", "To Question 1: yes."),
        ("p2", "Well.", "To Question 2: yes."),
        ("p4", "One.", "Two."),
    ]
    assert {row.id for row in found.left_out} == {"p3", "p5"}
    listed = (tmp_path / "left-out.jsonl").read_text()
    assert "too long for" in listed
    assert "unreadable" in listed
    everything = "".join(path.read_text() for path in tmp_path.iterdir() if path.is_file())
    assert KEY not in everything


@pytest.mark.parametrize("status", [401, 403, 404])
def test_a_refused_key_or_model_stops_the_run(
    status: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Refusing, "status", status)
    with serving(Refusing) as address, pytest.raises(RefusalCliffError) as raised:
        generate_answers(backend(address), PROMPTS, tmp_path, source="test")
    assert "refuses to serve 'm'" in str(raised.value)
    assert KEY not in str(raised.value)
    assert raised.value.__cause__ is None
    assert raised.value.__suppress_context__


class Telling(Handler):
    """Tells the tokens when asked, as vLLM does; or refuses the question, as others do."""

    asked: ClassVar[list[bool]] = []
    refuses = False

    def reply(self, request: dict[str, Any], body: bytes) -> None:
        del body
        asks = request.get("return_token_ids", False)
        self.asked.append(asks)
        if (asks and self.refuses) or request["messages"][-1]["content"].endswith("0"):
            self.send(422, b'{"error": {"message": "unexpected field, or too long"}}')
            return
        message = {"role": "assistant", "content": "Two."}
        told: dict[str, Any] = {"index": 0, "message": message, "finish_reason": "stop"}
        usage = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
        reply: dict[str, Any] = {"id": "1", "object": "x", "choices": [told], "usage": usage}
        if asks:
            told["token_ids"], reply["prompt_token_ids"] = [14, 15], [11, 12, 13]
        self.send(200, json.dumps(reply).encode())


@pytest.mark.parametrize("refuses", [False, True])
def test_token_ids_are_asked_for_until_the_server_refuses(
    refuses: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A prompt that is refused either way (the first one) says nothing about the server."""
    monkeypatch.setattr(Telling, "refuses", refuses)
    monkeypatch.setattr(Telling, "asked", [])
    with serving(Telling) as address:
        one_by_one = backend(address, concurrency=1)
        found = generate_answers(one_by_one, PROMPTS, tmp_path, source="test")
    assert [row.id for row in found.left_out] == ["p0"]
    told = () if refuses else (11, 12, 13, 14, 15)
    assert {r.token_ids for r in found.traces} == {told}
    counts = {(told_of(r).tokens, told_of(r).prompt_tokens) for r in found.traces}
    assert counts == {(5, 3)}
    again = [True, False] if refuses else [True]
    assert Telling.asked == [True, False, *again, *[not refuses] * 4]
    rows = [json.loads(line) for line in (tmp_path / "answers.journal").read_text().splitlines()]
    assert all(("token_ids" in row) != refuses and "spans" not in row for row in rows)


class Short(Handler):
    """Has a context of 40 tokens, and says so as vLLM does."""

    def reply(self, request: dict[str, Any], body: bytes) -> None:
        del body
        asked = 9 + request.get("max_tokens", 0)
        if asked > 40:
            why = f"maximum context length is 40 tokens. However, you requested {asked} tokens."
            self.send(400, json.dumps({"error": {"message": f"This model's {why}"}}).encode())
            return
        message = {"role": "assistant", "content": "Two."}
        cut = "stop" if "max_tokens" in request else "length"
        told = {"index": 0, "message": message, "finish_reason": cut}
        self.send(200, json.dumps({"id": "1", "object": "x", "choices": [told]}).encode())


@pytest.mark.parametrize(("most", "complete"), [(31, True), (32, False), (4096, False)])
def test_an_answer_gets_what_the_context_of_the_server_leaves(
    most: int, complete: bool, tmp_path: Path
) -> None:
    with serving(Short) as address:
        short = backend(address, GenerationConfig(most))
        found = generate_answers(short, PROMPTS, tmp_path, source="test")
    assert not found.left_out
    assert [record.complete for record in found.traces] == [complete] * len(PROMPTS.prompts)


def test_a_server_that_is_down_stops_the_run(tmp_path: Path) -> None:
    address = f"http://127.0.0.1:{free_port()}/v1"
    with pytest.raises(RefusalCliffError, match=r"failed 4 requests in a row.*same command"):
        generate_answers(backend(address), PROMPTS, tmp_path, source="test")


@pytest.mark.parametrize("address", ["localhost:8000", "ftp://x/v1", "", "http:///v1"])
def test_an_address_that_is_none_is_refused(address: str) -> None:
    with pytest.raises(RefusalCliffError, match="not an http or https address"):
        backend(address)


def test_a_key_in_the_address_is_refused_without_repeating_it() -> None:
    for address in (f"http://me:{KEY}@host/v1", f"http://host/v1?key={KEY}"):
        with pytest.raises(RefusalCliffError, match="holds a secret") as raised:
            backend(address)
        assert KEY not in str(raised.value)


def test_a_folder_of_other_answers_is_refused(tmp_path: Path) -> None:
    with serving(Answering) as address:
        one = PromptSet(PROMPTS.prompts[:1])
        generate_answers(backend(address), one, tmp_path, source="test")
        with pytest.raises(RefusalCliffError, match="temperature"):
            generate_answers(
                backend(address, GenerationConfig(temperature=1.0)), one, tmp_path, source="test"
            )
        with pytest.raises(RefusalCliffError, match="prompts_sha256"):
            generate_answers(backend(address), PROMPTS, tmp_path, source="test")


class Guarding(Handler):
    """A guard behind a server: says what its route asks for."""

    def reply(self, request: dict[str, Any], body: bytes) -> None:
        del body
        assert request["temperature"] == 0.0
        if self.path.endswith("/chat/completions"):
            roles = [message["role"] for message in request["messages"]]
            said = "\n\nunsafe\nS2" if roles == ["user", "assistant"] else "?"
            choice: dict[str, Any] = {"message": {"role": "assistant", "content": said}}
        else:
            choice = {"text": "no" if request["prompt"].endswith("Answer: [/INST]") else "?"}
        choice |= {"index": 0, "finish_reason": "stop"}
        self.send(200, json.dumps({"id": "1", "object": "x", "choices": [choice]}).encode())


def test_guards_are_asked_by_conversation_or_by_text() -> None:
    answers = [Answer("Q", "A"), Answer("Q", "I cannot help with that."), Answer("Q", "", False)]
    with serving(Guarding) as address:
        chat = chosen_judge("llama-guard-3", None, address).judge(answers)
        text = chosen_judge("harmbench", None, address).judge(answers)
        none = chosen_judge("wildguard", None, address).judge(answers)
    assert [said.verdict for said in chat] == ["harmful", "harmful", "truncated"]
    assert chat[0].reason == "S2"
    assert [said.verdict for said in text] == ["complied", "refused", "truncated"]
    assert [said.verdict for said in none] == ["unscored", "unscored", "truncated"]
