"""What a chat template writes around a user's message and around a past thought.

A template is a program that comes with a model, and may never end: it is run within limits.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from itertools import takewhile
from pathlib import Path
from typing import Any, cast

from transformers import PreTrainedTokenizerBase

from refusal_cliff.errors import RefusalCliffError

SECONDS = 10.0
"""Processor time; an ordinary template takes milliseconds."""
MEMORY = 1 << 30
"""Bytes beyond what the process has."""
_OWN_SIZE = Path("/proc/self/statm")


class _OutOfTimeError(BaseException):
    """No ``Exception``: Jinja swallows those while it folds constants."""


_one_at_a_time = threading.RLock()


@contextmanager
def bounded() -> Iterator[None]:
    """Run the body within limits of processor time and memory.

    Processor time is limited in the main thread of a POSIX system, where Python takes signals;
    memory on Linux. Models are loaded there, and every template is rendered when its model is.

    Raises:
        TimeoutError: It took too long.
        MemoryError: It asked for too much memory.
    """
    with _one_at_a_time, _limited_memory(), _limited_time():
        yield


@contextmanager
def _limited_time() -> Iterator[None]:
    """Processor time, not the clock: a busy machine is no fault of the template."""
    if threading.current_thread() is not threading.main_thread() or not hasattr(
        signal, "setitimer"
    ):
        yield
        return

    def stop(number: int, frame: Any) -> None:
        raise _OutOfTimeError

    former = signal.signal(signal.SIGVTALRM, stop)
    try:
        signal.setitimer(signal.ITIMER_VIRTUAL, SECONDS, SECONDS)
        yield
    except _OutOfTimeError:
        raise TimeoutError(f"it did not end within {SECONDS:.0f} seconds") from None
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, former)


@contextmanager
def _limited_memory() -> Iterator[None]:
    """Address space: one short template can ask for more text than any machine can hold."""
    if not _OWN_SIZE.exists():
        yield
        return
    import resource  # POSIX only

    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    size = int(_OWN_SIZE.read_text().split()[0]) * resource.getpagesize()
    limits = [limit for limit in (soft, hard) if limit != resource.RLIM_INFINITY]
    resource.setrlimit(resource.RLIMIT_AS, (min([size + MEMORY, *limits]), hard))
    try:
        yield
    finally:
        with suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


REASONING_FIELDS = ("reasoning_content", "thinking", "reasoning")
_PLACEHOLDERS = ("Hello", "Good morning!")
_PROBE = "Where is 4711?"
"""Shows whether a chat template takes a message in the form in which it is given."""
_THINKING = {"enable_thinking": True, "thinking": True}
_THOUGHT, _ANSWER = "Considered.", "Answered."
_MOST_ADDED = 1_000_000
"""Characters that a template may write around a message."""
_Messages = Sequence[Mapping[str, object]]


def render_prompt(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Token ids of one user message up to where the model starts to write.

    The chat template is rendered to text and tokenised once, without a second BOS.

    Raises:
        RefusalCliffError: The tokenizer has no chat template, the template fails or leaves the
            message out, or the text holds half a surrogate pair.
    """
    return list(tokenizer(prompt_text(tokenizer, text), add_special_tokens=False)["input_ids"])


def prompt_text(tokenizer: PreTrainedTokenizerBase, text: str) -> str:
    """One user message as the chat template writes it, thinking asked for where it can be.

    Raises:
        RefusalCliffError: As for :func:`render_prompt`.
    """
    refuse_surrogates(text, "The prompt")
    return conversation_text(tokenizer, [{"role": "user", "content": text}], _THINKING)


def conversation_text(
    tokenizer: PreTrainedTokenizerBase,
    conversation: Sequence[Mapping[str, str]],
    variables: Mapping[str, bool],
) -> str:
    """A conversation as the chat template writes it, to where the model speaks.

    Templates of vision models take a message only as a list of parts; some of them fail on a text,
    others leave it out.

    Args:
        tokenizer: The tokenizer with its chat template.
        conversation: Messages with ``role`` and ``content``.
        variables: Told to the template.

    Raises:
        RefusalCliffError: There is no chat template, or it fails, or leaves a message out.
    """
    probes = [{**message, "content": f"{_PROBE} {n}"} for n, message in enumerate(conversation)]
    failures: list[RefusalCliffError] = []
    for probing, told in zip(_forms(probes), _forms(conversation), strict=True):
        try:
            whole = _render(tokenizer, probing, variables)
        except RefusalCliffError as error:
            failures.append(error)
            continue
        if all(probe["content"] in whole for probe in probes):
            return _render(tokenizer, told, variables)
    if failures:
        raise failures[0]
    raise RefusalCliffError(
        f"The chat template of {_name(tokenizer)} leaves the user's message out of the prompt. "
        "Give the tokenizer the chat template that the model was trained with."
    )


def template_tail(tokenizer: PreTrainedTokenizerBase) -> str:
    """What the template writes after the user's text: the common end of two prompts.

    Raises:
        RefusalCliffError: As for :func:`render_prompt`.
    """
    one, other = (prompt_text(tokenizer, text)[::-1] for text in _PLACEHOLDERS)
    common = takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False))
    return "".join(character for character, _ in common)[::-1]


def past_thought(tokenizer: PreTrainedTokenizerBase) -> tuple[str, str] | None:
    """What the template writes before and after the thought of an answered message.

    Returns:
        The text from the end of the prompt to the thought, and from the thought to the answer;
        ``None`` if the template drops thoughts or does not continue its own prompt with them.
    """
    thought = dict.fromkeys(REASONING_FIELDS, _THOUGHT)
    asked = [{"role": "user", "content": _PLACEHOLDERS[0]}]
    answered = [*asked, {"role": "assistant", "content": _ANSWER, **thought}]
    try:
        prompt = _render(tokenizer, asked)
        whole = _render(tokenizer, answered, add_generation_prompt=False)
    except RefusalCliffError:
        return None
    before, found, rest = whole.partition(_THOUGHT)
    between, answer, _ = rest.partition(_ANSWER)
    if not (found and answer and before.startswith(prompt)):
        return None
    return before[len(prompt) :], between


def after_answer(tokenizer: PreTrainedTokenizerBase, *, goes_on: bool) -> str | None:
    """What the template writes after the text of an answer.

    Args:
        tokenizer: The tokenizer with its chat template.
        goes_on: Whether the user speaks again; what is returned then ends where that text begins.

    Returns:
        ``None`` where the template fails on an answered message, or leaves the answer out.
    """
    question, again = _PLACEHOLDERS
    told = [{"role": "user", "content": question}, {"role": "assistant", "content": _ANSWER}]
    told += [{"role": "user", "content": again}] if goes_on else []
    for form in _forms(told):
        try:
            whole = _render(tokenizer, form, add_generation_prompt=False)
        except RefusalCliffError:
            continue
        _, answered, rest = whole.rpartition(_ANSWER)
        if answered:
            return rest.partition(again)[0] if goes_on else rest
    return None


def refuse_surrogates(text: str, what: str) -> None:
    """Refuse what no tokenizer can encode, instead of silently changing what is measured.

    Raises:
        RefusalCliffError: The text holds half a surrogate pair.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        around = ascii(text[max(0, error.start - 10) : error.end + 10])
        raise RefusalCliffError(
            f"{what} holds half a surrogate pair at character {error.start} ({around}), which is "
            "not a character and has no token. Remove it, or write U+FFFD in its place."
        ) from error


def _forms(conversation: Sequence[Mapping[str, str]]) -> tuple[_Messages, _Messages]:
    """The messages with their content as a text, and as a list of parts."""
    parts = [{**m, "content": [{"type": "text", "text": m["content"]}]} for m in conversation]
    return conversation, parts


def _name(tokenizer: PreTrainedTokenizerBase) -> str:
    return str(tokenizer.name_or_path or "this model")


def _render(
    tokenizer: PreTrainedTokenizerBase,
    messages: _Messages,
    variables: Mapping[str, bool] = _THINKING,
    *,
    add_generation_prompt: bool = True,
) -> str:
    if not tokenizer.chat_template:
        raise RefusalCliffError(
            f"The tokenizer of {_name(tokenizer)} has no chat template, so the prompt cannot be "
            "written as the model expects it. Set tokenizer.chat_template, or use the "
            "instruction-tuned version of the model."
        )
    try:
        with bounded():
            rendered = str(
                tokenizer.apply_chat_template(
                    cast("Any", [dict(message) for message in messages]),
                    tokenize=False,
                    add_generation_prompt=add_generation_prompt,
                    **cast("Any", variables),
                )
            )
        if len(rendered) > _MOST_ADDED + 2 * len(str(messages)):
            raise ValueError(f"it wrote {len(rendered):,} characters")
    except Exception as error:
        said = str(error) or type(error).__name__  # MemoryError says nothing
        raise RefusalCliffError(
            f"The chat template of {_name(tokenizer)} failed on a single user message: {said}. "
            "Repair the template, or use another tokenizer."
        ) from error
    return rendered
