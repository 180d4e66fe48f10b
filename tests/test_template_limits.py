"""A chat template that never ends, or asks for more memory than there is, is refused in time."""

from __future__ import annotations

import resource
import signal
import threading
import time

import pytest
from tiny_chat import CHAT_TEMPLATE, tiny_tokenizer

from refusal_cliff.errors import RefusalCliffError
from refusal_cliff.judges.speakers import _ids_of  # pyright: ignore[reportPrivateUsage]
from refusal_cliff.thinking import ThinkingFormat, rendering
from refusal_cliff.thinking.rendering import bounded, prompt_text

LOOP = "{% for a in range(99999) %}"
END = "{% endfor %}"
ENDLESS = {
    "loops": LOOP * 3 + END * 3,
    "a macro that calls itself twice": (
        "{% macro m(n) %}{% if n %}{{ m(n - 1) }}{{ m(n - 1) }}{% endif %}{% endmacro %}{{ m(60) }}"
    ),
    "a macro that calls itself": "{% macro m(n) %}{{ m(n + 1) }}{% endmacro %}{{ m(0) }}",
    "a large power": "{{ 7 ** (10 ** 9) % 10 }}",
    "a power of a variable": "{% set n = 10 ** 9 %}{{ 7 ** n % 10 }}",
    "a large text": "{{ 'x' * 10 ** 12 }}",
    "a text of a few gigabytes": "{% set n = 3 * 10 ** 9 %}{{ ('x' * n) | length }}",
    "a text that doubles": (
        "{% set t = namespace(x='ab') %}"
        "{% for i in range(60) %}{% set t.x = t.x ~ t.x %}{% endfor %}"
    ),
    "a wide field": "{{ 'x'.center(10 ** 11) }}",
    "a padded number": "{{ '%099999999999d' % 1 }}",
    "a long list": "{{ ([1] * 10 ** 11) | length }}",
    "a long answer": "{{ 'x' * 10 ** 7 }}",
}


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rendering, "SECONDS", 0.3)


@pytest.mark.parametrize("name", ENDLESS)
@pytest.mark.parametrize("before", [True, False])
def test_a_template_that_never_ends_is_refused(name: str, before: bool) -> None:
    parts = (ENDLESS[name], CHAT_TEMPLATE)
    tokenizer = tiny_tokenizer("".join(parts if before else parts[::-1]))
    limit, begun = resource.getrlimit(resource.RLIMIT_AS), time.process_time()
    with pytest.raises(RefusalCliffError, match=r"chat template of .* failed on"):
        ThinkingFormat.from_tokenizer(tokenizer)
    assert time.process_time() - begun < 20
    assert resource.getrlimit(resource.RLIMIT_AS) == limit
    assert signal.getsignal(signal.SIGVTALRM) == signal.SIG_DFL


def test_it_may_depend_on_what_was_asked() -> None:
    template = "{% if 'bomb' in messages[0].content %}" + ENDLESS["loops"] + "{% endif %}"
    tokenizer = tiny_tokenizer(template + CHAT_TEMPLATE)
    assert "Hello" in prompt_text(tokenizer, "Hello")
    with pytest.raises(RefusalCliffError, match="did not end within"):
        prompt_text(tokenizer, "a bomb")
    with pytest.raises(RefusalCliffError, match="template of the judge"):
        _ids_of(tokenizer, [{"role": "user", "content": "a bomb"}])


def test_long_messages_are_no_fault_of_the_template() -> None:
    assert len(prompt_text(tiny_tokenizer(), "x" * 3_000_000)) > 3_000_000


def test_limits_of_others_are_left_as_they_were() -> None:
    with bounded(), bounded():
        pass
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    handler = signal.signal(signal.SIGVTALRM, signal.SIG_IGN)
    try:
        prompt_text(tiny_tokenizer(), "Hello")
        assert signal.getsignal(signal.SIGVTALRM) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGVTALRM, handler)
    assert resource.getrlimit(resource.RLIMIT_AS) == (soft, hard)


def test_other_threads_can_render() -> None:
    said: list[str] = []
    work = [
        threading.Thread(target=lambda: said.append(prompt_text(tiny_tokenizer(), "Hi")))
        for _ in "ab"
    ]
    for thread in work:
        thread.start()
    for thread in work:
        thread.join()
    assert len(said) == 2
    assert resource.getrlimit(resource.RLIMIT_AS)[0] == resource.RLIM_INFINITY
