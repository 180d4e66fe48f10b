"""A model behind any OpenAI-compatible server: vLLM, SGLang, llama.cpp, ``transformers serve``."""

from __future__ import annotations

import asyncio
import hashlib
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias, TypeGuard

from refusal_cliff.data.messages import finish_of
from refusal_cliff.data.said import is_filtered, read_parts, said_in, told_of
from refusal_cliff.data.types import LeftOut, Prompt, Trace, shortened
from refusal_cliff.errors import RefusalCliffError
from refusal_cliff.generate.backend import Finished
from refusal_cliff.generate.http import Failed, JsonServer, Refused, Unreadable
from refusal_cliff.settings import GenerationConfig, Server
from refusal_cliff.thinking.formats import KNOWN, Markers
from refusal_cliff.user_text import address

GREEDY = GenerationConfig()


@dataclass(frozen=True, slots=True)
class Begun:
    """Token ids to go on from: of a prompt, and of what was written so far."""

    ids: tuple[int, ...]


Asked: TypeAlias = str | Begun | Sequence[Mapping[str, str]]
"""A conversation; or a text or tokens to go on from, without the chat template."""

Choice: TypeAlias = dict[str, Any]
"""One of the answers in what a server sends, with what is told of the tokens beside it."""

_CHAT = "/chat/completions"
_CONTEXT = re.compile("context|max_tokens|max_new_tokens")
"""What servers name that refuse prompt and most tokens together as longer than the context."""
_ASK_IDS, _PROMPT_IDS, _IDS = "return_token_ids", "prompt_token_ids", "token_ids"
"""vLLM's extra parameter, and what it then tells of the prompt and of each choice."""
_USAGE = "usage"
_STOPPING = (401, 403, 404)
"""Statuses after which nobody else needs to be asked: the key or the model is refused."""
_MOST_TOKENS = 2**31
_LEAST_KEY = 8
"""Shorter keys are no secrets but words such as ``none``, which answers hold too."""
_NO_KEY = "[key]"
_UNREADABLE_TRIES = 4
_FIRST_PAUSE = 0.5
_LEAST_FAILURES = 4


@dataclass(frozen=True, slots=True)
class EndpointConfig:
    """Which model to ask, where and how.

    The key comes from the environment alone (``server.key``), so that it is in no file.

    Attributes:
        model: The name that the server knows the model by.
        server: Where it is, and how hard it may be asked.
        generation: How much the model writes, and how; no server is given a thinking budget. Every
            prompt gets a seed of its own made from the seed, where the server draws.
        system: System prompt of every conversation.
        extra: All further fields of the request, such as ``{"chat_template_kwargs": …}`` or
            ``{"top_k": …}``: those of ``server`` and ``generation`` are put here by who makes it.
        markers: What stands around a thought inside the text of an answer, see `read_message`.
    """

    model: str
    server: Server
    generation: GenerationConfig = GREEDY
    system: str = ""
    extra: Mapping[str, Any] = field(default_factory=dict)
    markers: tuple[Markers, ...] = KNOWN

    def __post_init__(self) -> None:
        parts = address(self.base_url)
        if parts.username or parts.password or parts.query:
            raise RefusalCliffError(
                f"The address of the endpoint {parts.hostname} holds a secret or a query, which "
                "would be written into files. Put the key into the environment "
                f"({self.server.key})."
            )

    @property
    def base_url(self) -> str:
        """Such as ``http://localhost:8000/v1``."""
        return self.server.url or ""

    def key(self) -> str | None:
        """The key in the environment, without blanks at its ends; ``None`` without one.

        Raises:
            RefusalCliffError: It cannot be sent.
        """
        key = os.environ.get(self.server.key, "").strip()
        if not (key.isascii() and key.isprintable()):
            raise RefusalCliffError(
                f"The key in the environment ({self.server.key}) holds a line end or another "
                "character that cannot be sent. Set it again, to the key alone."
            )
        return key or None


class EndpointBackend:
    """Asks an endpoint, many prompts at once.

    Attributes:
        config: Where and how.
        name: What the server calls the model.

    Raises:
        RefusalCliffError: The key cannot be sent.
    """

    def __init__(self, config: EndpointConfig) -> None:
        self.config, self.name = config, config.model
        self._key = config.key()
        self._asks_ids = True

    def description(self) -> dict[str, Any]:
        """Address, model and decoding; not the key, and not how hard the server is asked."""
        config = self.config
        return {
            "backend": "endpoint",
            "base_url": config.base_url,
            "model": config.model,
            "max_new_tokens": config.generation.max_new_tokens,
            "temperature": config.generation.temperature,
            "top_p": config.generation.top_p,
            "seed": config.generation.seed,
            "thinks": config.server.thinks,
            "extra": dict(config.extra),
            **({"system": config.system} if config.system else {}),
            **({} if config.markers == KNOWN else {"markers": [m.opener for m in config.markers]}),
        }

    def answer(self, prompts: Sequence[Prompt], finished: Finished) -> None:
        """Ask every prompt once.

        A prompt that the server refuses, or whose answer stays unreadable, is left out with the
        reason. Where the key or the model is refused, or as many requests in a row fail as are
        under way at once, nothing more is asked.
        """
        by_id = {prompt.id: prompt for prompt in prompts}

        def keep(name: str, choice: Choice | LeftOut) -> None:
            finished(choice if isinstance(choice, LeftOut) else self._trace(by_id[name], choice))

        jobs = ((p.id, [{"role": "user", "content": p.text}]) for p in prompts)
        asyncio.run(self._ask_all(jobs, keep))

    def say(self, requests: Sequence[Asked]) -> list[str | LeftOut]:
        """The bare text that the model says to each conversation or text, or why there is none.

        Raises:
            RefusalCliffError: As for `answer`.
        """
        said: dict[str, str | LeftOut] = {}

        def keep(name: str, choice: Choice | LeftOut) -> None:
            said[name] = choice if isinstance(choice, LeftOut) else _text_of(choice)

        names = [str(index) for index in range(len(requests))]
        jobs = iter(zip(names, requests, strict=True))
        asyncio.run(self._ask_all(jobs, keep))
        return [said[name] for name in names]

    def continued(
        self,
        begun: Mapping[str, Sequence[int]],
        finished: Callable[[str, list[int] | LeftOut], None],
    ) -> None:
        """Let the model go on from token ids, in the tokens that the server tells.

        Args:
            begun: By name, the tokens so far, those of the prompt first.
            finished: Takes a name with the new tokens, or with the reason why there are none.

        Raises:
            RefusalCliffError: As for `answer`.
        """

        def keep(name: str, choice: Choice | LeftOut) -> None:
            written = choice if isinstance(choice, LeftOut) else choice.get(_IDS)
            if not (isinstance(written, LeftOut) or _are_ids(written)):
                written = LeftOut(name, None, "the server does not tell the tokens of its answers")
            finished(name, written)

        jobs = ((name, Begun(tuple(ids))) for name, ids in begun.items())
        asyncio.run(self._ask_all(jobs, keep))

    def _trace(self, prompt: Prompt, choice: Choice) -> Trace:
        message = choice.get("message")
        message = {"content": choice.get("text")} if message is None else message
        said = said_in(
            prompt,
            message,
            finish_of(choice, None),
            thinks=self.config.server.thinks,
            markers=self.config.markers,
        )
        ids, total, of_prompt = _tokens_of(choice)
        told = replace(told_of(said), tokens=total, prompt_tokens=of_prompt)
        return replace(said, token_ids=ids, told=told)

    async def _ask_all(
        self, jobs: Iterator[tuple[str, Asked]], keep: Callable[[str, Choice | LeftOut], None]
    ) -> None:
        """A few workers take one job after the other."""
        config = self.config
        health = _Health(max(_LEAST_FAILURES, config.server.concurrency))
        async with JsonServer(
            config.base_url, self._key, config.server.timeout, config.server.retries
        ) as server:

            async def work() -> None:
                for name, asked in jobs:
                    keep(name, await self._ask(server, name, asked, health))

            await _together([work() for _ in range(config.server.concurrency)])

    async def _ask(
        self, server: JsonServer, name: str, asked: Asked, health: _Health
    ) -> Choice | LeftOut:
        """The server's first choice, or why there is none."""
        reason = ""
        for attempt in range(_UNREADABLE_TRIES):
            try:
                choice = _choice_of(await self._answer_of(server, self._request(name, asked)))
            except Failed as error:
                why = scrubbed(error, self._key)
                health.failed(why, self.config.base_url)
                return LeftOut(name, None, f"the server failed: {why}")
            except Refused as error:
                if error.status in _STOPPING or error.status < 400:
                    raise self._refused(error) from None
                why = f"the server refused it: {scrubbed(error, self._key)}"
                return LeftOut(name, None, why)
            except (Unreadable, TypeError, RecursionError) as error:
                reason = scrubbed(error, self._key)
                await asyncio.sleep(_FIRST_PAUSE * 2**attempt)
            else:
                health.succeeded()
                return choice
        return LeftOut(name, None, f"the server's answer stayed unreadable: {reason}")

    async def _answer_of(self, server: JsonServer, request: dict[str, Any]) -> dict[str, Any]:
        """The server's answer to a request; one as long as its context leaves, if that is less."""
        try:
            return await self._told(server, request)
        except Refused as error:
            # Completions end after 16 tokens where no limit is given, conversations at the context.
            if "prompt" in request or error.status != 400 or not _CONTEXT.search(str(error)):
                raise
        unlimited = {name: value for name, value in request.items() if name != "max_tokens"}
        return await self._told(server, unlimited)

    async def _told(self, server: JsonServer, request: dict[str, Any]) -> dict[str, Any]:
        """The server's answer, with the tokens themselves where it tells them.

        vLLM does when asked; a server that refuses to be asked is not asked again.
        """
        if "prompt" in request:
            return self._without_key(await server.ask("/completions", request))
        if self._asks_ids:
            try:
                return self._without_key(await server.ask(_CHAT, {_ASK_IDS: True, **request}))
            except Refused as error:
                if error.status not in (400, 422):
                    raise
        answer = await server.ask(_CHAT, request)
        self._asks_ids = False
        return self._without_key(answer)

    def _without_key(self, answer: dict[str, Any]) -> dict[str, Any]:
        """An answer in which the key is no more, nor in tokens: servers repeat what they got."""
        if self._key is None or len(self._key) < _LEAST_KEY:
            return answer
        found = _replaced(answer, self._key)
        return found if found == answer else {**found, _PROMPT_IDS: None}

    def _request(self, name: str, asked: Asked) -> dict[str, Any]:
        config = self.config
        request: dict[str, Any] = {
            "model": config.model,
            "max_tokens": config.generation.max_new_tokens,
            "temperature": config.generation.temperature,
        }
        if isinstance(asked, str):
            request["prompt"] = asked
        elif isinstance(asked, Begun):
            request |= {"prompt": list(asked.ids), _ASK_IDS: True}
        else:
            system = [{"role": "system", "content": config.system}] if config.system else []
            request["messages"] = [*system, *(dict(message) for message in asked)]
        if config.generation.temperature > 0:
            request["top_p"] = config.generation.top_p
            request["seed"] = _seed_of(config.generation.seed, name)
        return {**request, **config.extra}

    def _refused(self, error: Exception) -> RefusalCliffError:
        return RefusalCliffError(
            f"{self.config.base_url} refuses to serve {self.config.model!r}: "
            f"{scrubbed(error, self._key)} Check the address, the name of the model and the key in "
            f"the environment ({self.config.server.key}); finished rows are kept."
        )


def scrubbed(error: Exception, key: str | None) -> str:
    """What went wrong, without the key: servers repeat it in their answers."""
    text = str(error) or type(error).__name__
    return shortened(text.replace(key, _NO_KEY) if key else text)


class _Health:
    """Stops a run whose server is down, instead of failing row after row."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._in_a_row = 0

    def succeeded(self) -> None:
        self._in_a_row = 0

    def failed(self, reason: str, base_url: str) -> None:
        self._in_a_row += 1
        if self._in_a_row >= self._most:
            raise RefusalCliffError(
                f"{base_url} has failed {self._in_a_row} requests in a row: {reason} Finished rows "
                "are kept: start the server again, then run the same command."
            )


async def _together(works: Sequence[Any]) -> None:
    """All at once; the first error ends the others."""
    tasks = [asyncio.ensure_future(work) for work in works]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _choice_of(answer: Mapping[str, Any]) -> Choice:
    """The first choice of an answer, of which the parts that are read have the types they must.

    Raises:
        TypeError: There is none, or it is something else; the message says what the server said.
    """
    choices = answer.get("choices")
    choice = choices[0] if isinstance(choices, list) and choices else None
    if not isinstance(choice, dict):
        told = answer.get("error", answer.get("message", ""))
        raise TypeError(f"it holds no choice {told or ''}".rstrip())
    choice = {**choice, **{name: answer.get(name) for name in (_PROMPT_IDS, _USAGE)}}
    if isinstance(choice.get("text"), str) and choice.get("message") is None:
        return choice
    message = choice.get("message")
    if message is None and is_filtered(finish_of(choice, None)):
        return {**choice, "message": {}}
    if not isinstance(message, dict):
        raise TypeError("its choice holds no message")
    read_parts(message.get("content"))
    return choice


def _text_of(choice: Choice) -> str:
    """What a choice of a chat or of a plain completion says."""
    message = choice.get("message")
    return choice["text"] if message is None else read_parts(message.get("content")).text or ""


def _replaced(value: Any, key: str) -> Any:
    """A JSON value with something in the key's place, wherever it stands."""
    if isinstance(value, str):
        return value.replace(key, _NO_KEY)
    if isinstance(value, list):
        return [_replaced(item, key) for item in value]
    if isinstance(value, dict):
        return {_replaced(name, key): _replaced(item, key) for name, item in value.items()}
    return value


def _tokens_of(choice: Choice) -> tuple[tuple[int, ...], int | None, int | None]:
    """All tokens, prompt first, where the server tells them; how many they and the prompt's are."""
    prompt, written = choice[_PROMPT_IDS], choice.get(_IDS)
    if _are_ids(prompt) and _are_ids(written):
        return (*prompt, *written), len(prompt) + len(written), len(prompt)
    told = choice[_USAGE] if isinstance(choice[_USAGE], dict) else {}
    return (), _count(told.get("total_tokens")), _count(told.get("prompt_tokens"))


def _count(value: Any) -> int | None:
    """A number of tokens that can be one; what a server says may be anything."""
    return value if type(value) is int and 0 <= value < _MOST_TOKENS else None


def _are_ids(value: Any) -> TypeGuard[list[int]]:
    return bool(value) and isinstance(value, list) and all(_count(id_) is not None for id_ in value)


def _seed_of(seed: int, name: str) -> int:
    """A seed of 31 bits for one prompt."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{name}".encode()).digest()[:4]) >> 1
