"""Whatever a server sends, however long it takes: a row with its reason, no traceback, no key."""

from __future__ import annotations

import gzip
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar, TypeAlias

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from served import Handler, free_port, serving
from test_endpoint_errors import KEY, backend
from typer.testing import CliRunner

from refusal_cliff.answers.collect import Collected, generate_answers
from refusal_cliff.cli import app
from refusal_cliff.data.examples import PromptSet
from refusal_cliff.data.said import FILTERED, told_of
from refusal_cliff.data.types import Prompt
from refusal_cliff.errors import RefusalCliffError
from refusal_cliff.generate import http

ONE = PromptSet([Prompt("p", "Question", "benign")])
MESSAGE = {"role": "assistant", "content": "Yes."}
CHOICE = {"index": 0, "message": MESSAGE, "finish_reason": "stop"}


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setattr("refusal_cliff.generate.endpoint._FIRST_PAUSE", 0.0)
    monkeypatch.setattr("refusal_cliff.generate.http._FIRST_PAUSE", 0.0)


class Sending(Handler):
    """Sends the same bytes to everyone."""

    body: ClassVar[bytes] = b""
    headers_sent: ClassVar[dict[str, str]] = {}

    def reply(self, request: dict[str, Any], body: bytes) -> None:
        del request, body
        self.send_response(200)
        for name, value in {"Content-Length": str(len(self.body)), **self.headers_sent}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(self.body)


Asking: TypeAlias = Callable[..., Collected]
"""Asks a server that sends a body to everyone: the body, a folder, and headers."""


@pytest.fixture(scope="module")
def asked() -> Iterator[Asking]:
    with serving(Sending) as address:

        def ask(body: bytes, out: Path, headers: dict[str, str] | None = None) -> Collected:
            Sending.body, Sending.headers_sent = body, headers or {}
            return generate_answers(backend(address), ONE, out, source="test")

        yield ask


NUMBERS = ("7", "-1", "true", '"7"', "[1]", '{"a": 1}', "NaN", "1e400", "9" * 400, "null", "1.5")


@pytest.mark.parametrize("number", NUMBERS)
def test_usage_of_any_type_loses_no_answer(asked: Asking, number: str, tmp_path: Path) -> None:
    choice = json.dumps(CHOICE)
    for usage in (number, f'{{"total_tokens": {number}, "prompt_tokens": {number}}}'):
        out = tmp_path / str(len(usage))
        found = asked(f'{{"choices": [{choice}], "usage": {usage}}}'.encode(), out)
        assert [record.response for record in found.traces] == ["Yes."]
        assert told_of(found.traces[0]).tokens in (None, 7)


@pytest.mark.parametrize(
    "body",
    [
        b'{"choices": 7}',
        b'{"choices": {"0": {}}}',
        b'{"choices": [7]}',
        b'{"choices": [{"message": "text"}]}',
        b'{"choices": [{"message": {"content": 7}}]}',
        b'{"choices": [{"message": {"content": NaN, "refusal": [1]}}], "x": 7}',
        b'{"error": {"message": "out of memory"}}',
        b"[]",
        b"NaN",
        b"\xff\xfe\x00",
        b"",
        b"<html>Bad gateway</html>",
        b'{"choices": [{"message": {"content": ' + b"[" * 100_000 + b"]" * 100_000 + b"}}]}",
        b'{"a":' * 500 + b"1" + b"}" * 500,
        b'{"choices": [' + b"9" * 10_000 + b"]}",
    ],
)
def test_an_answer_of_another_shape_is_a_row_left_out(
    asked: Asking, body: bytes, tmp_path: Path
) -> None:
    found = asked(body, tmp_path)
    assert len(found.traces) + len(found.left_out) == 1
    for row in found.left_out:
        assert "stayed unreadable" in row.reason
    if b"out of memory" in body:
        assert "out of memory" in found.left_out[0].reason


def test_a_filter_that_leaves_no_message_is_no_answer(asked: Asking, tmp_path: Path) -> None:
    found = asked(b'{"choices": [{"index": 0, "finish_reason": "content_filter"}]}', tmp_path)
    assert [told_of(record).status for record in found.traces] == [FILTERED]


_WORDS = """
choices message content reasoning_content reasoning refusal tool_calls finish_reason usage
total_tokens prompt_tokens prompt_token_ids token_ids type text thinking error
"""
_NAMES = st.sampled_from(_WORDS.split())
_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_NAMES, inner, max_size=4),
    max_leaves=12,
)
_CHOICES = st.fixed_dictionaries(
    {"message": st.dictionaries(_NAMES, _JSON)}, optional={"finish_reason": _JSON, "text": _JSON}
)


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    body=_JSON
    | st.fixed_dictionaries(
        {"choices": st.lists(_CHOICES | _JSON, max_size=2)}, optional={"usage": _JSON}
    )
)
def test_any_json_is_an_answer_or_a_row_left_out(asked: Asking, body: Any, tmp_path: Path) -> None:
    out = tmp_path / str(time.monotonic_ns())
    found = asked(json.dumps(body).encode(), out)
    assert len(found.traces) + len(found.left_out) == 1


@pytest.mark.parametrize(
    "address", ["http://[::1", "http://x:65536/v1", "http://x:0", "http://x:a"]
)
def test_a_bad_address_is_one_paragraph(address: str, tmp_path: Path) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_text('{"prompt": "Q", "label": "benign"}\n')
    named = ["--prompts", str(file), "--endpoint", address, "--model", "m"]
    done = CliRunner().invoke(app, ["generate", *named, "--out", str(tmp_path / "out")])
    assert done.exit_code == 1
    assert "not an http or https address" in " ".join(done.output.split())
    assert "Traceback" not in done.output
    with pytest.raises(RefusalCliffError, match="cannot be used"):
        generate_answers(backend("http://☃.☃..x/v1"), ONE, tmp_path / "out", source="test")


def test_a_key_with_a_line_end(
    asked: Asking, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for wrong in (f"{KEY}\nX-Evil: 1", f"{KEY}\x00", f"{KEY}é"):
        if "\x00" not in wrong:
            monkeypatch.setenv("OPENAI_API_KEY", wrong)
            with pytest.raises(RefusalCliffError, match="line end") as raised:
                backend("http://localhost:1/v1")
            assert KEY not in str(raised.value)
    monkeypatch.setenv("OPENAI_API_KEY", f"{KEY}\n")
    assert asked(json.dumps({"choices": [CHOICE]}).encode(), tmp_path).traces


@pytest.mark.parametrize("escaped", [False, True])
def test_a_key_sent_back_is_in_no_file(asked: Asking, escaped: bool, tmp_path: Path) -> None:
    message = {"content": f"Your key is {KEY}.", "reasoning_content": f"Bearer {KEY}?"}
    choice = {"message": message, "finish_reason": KEY, "token_ids": [1]}
    body = json.dumps({"choices": [choice], "prompt_token_ids": [2], "id": KEY})
    if escaped:
        body = body.replace("sk-", "\\u0073\\u006b-")
    found = asked(body.encode(), tmp_path)
    record = found.traces[0]
    assert (record.response, record.thinking) == ("Your key is [key].", "Bearer [key]?")
    assert record.token_ids == ()
    everything = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert KEY.encode() not in everything


def test_a_word_that_is_no_secret_is_not_taken_out(
    asked: Asking, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "Yes")
    found = asked(json.dumps({"choices": [CHOICE]}).encode(), tmp_path)
    assert found.traces[0].response == "Yes."


class Waiting(Handler):
    """Fails once with a Retry-After, then answers."""

    asked: ClassVar[int] = 0
    after: ClassVar[str] = ""

    def reply(self, request: dict[str, Any], body: bytes) -> None:
        del request, body
        type(self).asked += 1
        if self.asked > 1:
            self.send(200, json.dumps({"choices": [CHOICE]}).encode())
            return
        self.send_response(429)
        self.send_header("Retry-After", self.after)
        self.send_header("Content-Length", "0")
        self.end_headers()


@pytest.mark.parametrize(
    "after",
    ["86400", "1e400", "nan", "-5", "soon", "", "Fri, 31 Dec 9999 23:59:59 GMT", "Fri, 99 Foo 1"],
)
def test_a_retry_after_of_anything_is_bounded_and_loses_no_row(
    after: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http, "LONGEST_PAUSE", 0.2)
    monkeypatch.setattr(Waiting, "asked", 0)
    monkeypatch.setattr(Waiting, "after", after)
    begun = time.monotonic()
    with serving(Waiting) as address:
        found = generate_answers(backend(address, retries=1), ONE, tmp_path, source="test")
    assert [record.response for record in found.traces] == ["Yes."]
    assert time.monotonic() - begun < 60


class Dripping(Handler):
    """Sends a byte every now and then, and never ends."""

    def reply(self, request: dict[str, Any], body: bytes) -> None:
        del request, body
        self.send_response(200)
        self.end_headers()
        try:
            while True:
                self.wfile.write(b" ")
                time.sleep(0.1)
        except OSError:
            return


def test_a_drip_ends(tmp_path: Path) -> None:
    begun = time.monotonic()
    with serving(Dripping) as address:
        found = generate_answers(backend(address, timeout=1), ONE, tmp_path, source="test")
    assert "no whole answer within 1 seconds" in found.left_out[0].reason
    assert time.monotonic() - begun < 60


@pytest.mark.parametrize("packing", [{}, {"Content-Encoding": "gzip"}])
def test_a_body_without_end_is_given_up(
    asked: Asking, packing: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http, "MOST_BYTES", 1 << 20)
    body = b" " * (40 << 20)
    found = asked(gzip.compress(body) if packing else body, tmp_path, packing)
    assert "longer than 1 MB" in found.left_out[0].reason


def test_packed_bodies(asked: Asking, tmp_path: Path) -> None:
    body = json.dumps({"choices": [CHOICE]}).encode()
    packed = asked(gzip.compress(body), tmp_path / "a", {"Content-Encoding": "gzip"})
    assert packed.traces[0].response == "Yes."
    for name, kind in (("b", "gzip"), ("c", "br")):
        found = asked(body, tmp_path / name, {"Content-Encoding": kind})
        assert "packed" in found.left_out[0].reason


class Elsewhere(Handler):
    """Sends everyone to another address."""

    def reply(self, request: dict[str, Any], body: bytes) -> None:
        del request, body
        self.send_response(307)
        self.send_header("Location", "http://elsewhere.invalid/v1/chat/completions")
        self.send_header("Content-Length", "0")
        self.end_headers()


def test_which_step_failed_is_said(tmp_path: Path) -> None:
    def reason(address: str) -> str:
        out = tmp_path / str(time.monotonic_ns())
        return generate_answers(backend(address), ONE, out, source="test").left_out[0].reason

    with serving(Sending) as address:
        assert "TLS failed" in reason(address.replace("http:", "https:"))
    assert "its name is not known" in reason("http://nosuchhost.invalid/v1")
    assert "refuses connections" in reason(f"http://127.0.0.1:{free_port()}/v1")
    with serving(Elsewhere) as address, pytest.raises(RefusalCliffError, match=r"elsewhere\.inv"):
        reason(address)
