"""A model behind any OpenAI-compatible server: vLLM, SGLang, llama.cpp, ``transformers serve``."""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any, TypeAlias, TypeGuard
from urllib.parse import urlsplit

from refusal_cliff.data.records import LeftOut, Record, shortened
from refusal_cliff.data.traces import Prompt
from refusal_cliff.errors import RefusalCliffError
from refusal_cliff.generate.backend import Finished
from refusal_cliff.thinking.written import read_message

KEY_VARIABLE = "OPENAI_API_KEY"
Asked: TypeAlias = str | Sequence[Mapping[str, str]]
"""A conversation; or a text to go on from, without the chat template."""

_ASK_IDS = "return_token_ids"
"""vLLM's extra parameter; it tells ``prompt_token_ids`` and each choice's ``token_ids``."""
_UNREADABLE_TRIES = 4
_FIRST_PAUSE = 0.5
_LEAST_FAILURES = 4


@dataclass(frozen=True, slots=True)
class EndpointConfig:
    """Where to ask and how.

    The key comes from the environment alone (``key_variable``), so that it is in no file.

    Attributes:
        base_url: Such as ``http://localhost:8000/v1``.
        model: The name that the server knows the model by.
        max_new_tokens: Most tokens of thinking and answer together.
        temperature: 0 is greedy.
        top_p: Share of the probability that draws are made from.
        seed: Every prompt gets a seed of its own made from it, where the server draws.
        thinks: The model always thinks: a text without the end of a thought is no answer.
        concurrency: Requests under way at once.
        retries: How often a request that failed (connection, 408, 409, 429, 5xx) is sent again,
            with growing pauses.
        timeout: Seconds to wait for one answer.
        extra: More fields of the request, such as ``{"chat_template_kwargs": …}``.
        key_variable: The environment variable that holds the key, if the server wants one.
    """

    base_url: str
    model: str
    max_new_tokens: int = 4096
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    thinks: bool = False
    concurrency: int = 16
    retries: int = 6
    timeout: float = 1800.0
    extra: Mapping[str, Any] = field(default_factory=dict)
    key_variable: str = KEY_VARIABLE

    def __post_init__(self) -> None:
        parts = urlsplit(self.base_url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise RefusalCliffError(
                "The endpoint is not an http or https address. Write it like "
                "http://localhost:8000/v1."
            )
        if parts.username or parts.password or parts.query:
            raise RefusalCliffError(
                f"The address of the endpoint {parts.hostname} holds a secret or a query, which "
                f"would end up in files. Put the key into the environment ({self.key_variable})."
            )


@dataclass(frozen=True, slots=True)
class Tokens:
    """What a server tells of the tokens of one answer.

    Attributes:
        total: How many prompt and answer have.
        prompt: How many the prompt has.
        ids: All of them, prompt first; empty if the server does not tell.
    """

    total: int | None = None
    prompt: int | None = None
    ids: tuple[int, ...] = ()


class EndpointBackend:
    """Asks an endpoint, many prompts at once.

    Raises:
        RefusalCliffError: The package ``openai`` is not installed.
    """

    def __init__(self, config: EndpointConfig) -> None:
        self._config = config
        self._openai = _openai()
        self._asks_ids = True

    def description(self) -> dict[str, Any]:
        """Address, model and decoding; not the key, and not how hard the server is asked."""
        config = self._config
        return {
            "backend": "endpoint",
            "base_url": config.base_url,
            "model": config.model,
            "max_new_tokens": config.max_new_tokens,
            "temperature": config.temperature,
            "top_p": config.top_p,
            "seed": config.seed,
            "thinks": config.thinks,
            "extra": dict(config.extra),
        }

    def answer(self, prompts: Sequence[Prompt], finished: Finished) -> None:
        """Ask every prompt once.

        A prompt that the server refuses, or whose answer stays unreadable, is left out with the
        reason. Where the key or the model is refused, or as many requests in a row fail as are
        under way at once, nothing more is asked.
        """
        asyncio.run(self._answer_all(prompts, finished))

    def say(self, requests: Sequence[Asked]) -> list[str | LeftOut]:
        """The bare text that the model says to each conversation or text, or why there is none.

        Raises:
            RefusalCliffError: As for `answer`.
        """
        said: dict[str, str | LeftOut] = {}

        def keep(name: str, choice: Any, tokens: Tokens) -> None:
            del tokens
            said[name] = choice if isinstance(choice, LeftOut) else _text_of(choice) or ""

        names = [str(index) for index in range(len(requests))]
        jobs = iter(zip(names, requests, strict=True))
        asyncio.run(self._ask_all(jobs, keep))
        return [said[name] for name in names]

    async def _answer_all(self, prompts: Sequence[Prompt], finished: Finished) -> None:
        by_id = {prompt.id: prompt for prompt in prompts}

        def keep(name: str, choice: Any, tokens: Tokens) -> None:
            if isinstance(choice, LeftOut):
                finished(choice)
            else:
                finished(self._record(by_id[name], choice, tokens))

        jobs = ((p.id, [{"role": "user", "content": p.text}]) for p in prompts)
        await self._ask_all(jobs, keep)

    def _record(self, prompt: Prompt, choice: Any, tokens: Tokens) -> Record:
        message = choice.message
        extra = message.model_extra or {}
        reasoning = extra.get("reasoning_content") or extra.get("reasoning")
        found = read_message(
            message.content,
            reasoning if isinstance(reasoning, str) else None,
            thinks=self._config.thinks,
        )
        return Record(
            prompt,
            found.thinking,
            found.response,
            closed=found.closed,
            complete=choice.finish_reason == "stop",
            written=found.written,
            finish=str(choice.finish_reason or ""),
            token_ids=tokens.ids,
            tokens=tokens.total,
            prompt_tokens=tokens.prompt,
        )

    async def _ask_all(
        self,
        jobs: Iterator[tuple[str, Asked]],
        keep: Callable[[str, Any, Tokens], None],
    ) -> None:
        """A few workers take one job after the other."""
        health = _Health(max(_LEAST_FAILURES, self._config.concurrency))
        key = os.environ.get(self._config.key_variable) or "none"
        async with self._openai.AsyncOpenAI(
            base_url=self._config.base_url,
            api_key=key,
            max_retries=self._config.retries,
            timeout=self._config.timeout,
        ) as client:

            async def work() -> None:
                for name, asked in jobs:
                    keep(name, *await self._ask(client, name, asked, health))

            await _together([work() for _ in range(self._config.concurrency)])

    async def _ask(
        self, client: Any, name: str, asked: Asked, health: _Health
    ) -> tuple[Any, Tokens]:
        """The server's first choice, or why there is none; and what it told of the tokens."""
        errors, reason = self._openai, ""
        for attempt in range(_UNREADABLE_TRIES):
            try:
                answer = await self._answer_of(client, self._request(name, asked))
                choice = answer.choices[0]
                if not isinstance(_text_of(choice), str | None):
                    raise TypeError("the message's content is not a text")
            except (
                errors.AuthenticationError,
                errors.PermissionDeniedError,
                errors.NotFoundError,
            ) as error:
                raise self._refused(error) from None
            except (
                errors.APIConnectionError,
                errors.InternalServerError,
                errors.RateLimitError,
            ) as error:
                health.failed(self._scrubbed(error), self._config.base_url)
                return LeftOut(name, None, f"the server failed: {self._scrubbed(error)}"), Tokens()
            except errors.APIStatusError as error:
                why = f"the server refused it: {self._scrubbed(error)}"
                return LeftOut(name, None, why), Tokens()
            except (ValueError, TypeError, AttributeError, IndexError, errors.APIError) as error:
                reason = self._scrubbed(error)
                await asyncio.sleep(_FIRST_PAUSE * 2**attempt)
            else:
                health.succeeded()
                return choice, _tokens_of(answer, choice)
        return LeftOut(name, None, f"the server's answer stayed unreadable: {reason}"), Tokens()

    async def _answer_of(self, client: Any, request: dict[str, Any]) -> Any:
        """The server's answer to a request, with the tokens themselves where it tells them.

        vLLM does when asked; a server that refuses to be asked is not asked again.
        """
        api = client.completions if "prompt" in request else client.chat.completions
        if "prompt" in request or not self._asks_ids:
            return await api.create(**request)
        asking = {**request, "extra_body": {_ASK_IDS: True, **request["extra_body"]}}
        try:
            return await api.create(**asking)
        except (self._openai.BadRequestError, self._openai.UnprocessableEntityError):
            answer = await api.create(**request)
            self._asks_ids = False
            return answer

    def _request(self, name: str, asked: Asked) -> dict[str, Any]:
        config = self._config
        request: dict[str, Any] = {
            "model": config.model,
            "max_tokens": config.max_new_tokens,
            "temperature": config.temperature,
            "extra_body": dict(config.extra),
        }
        if isinstance(asked, str):
            request["prompt"] = asked
        else:
            request["messages"] = [dict(message) for message in asked]
        if config.temperature > 0:
            request["top_p"] = config.top_p
            request["seed"] = _seed_of(config.seed, name)
        return request

    def _refused(self, error: Exception) -> RefusalCliffError:
        return RefusalCliffError(
            f"{self._config.base_url} refuses to serve {self._config.model!r}: "
            f"{self._scrubbed(error)} Check the address, the name of the model and the key in the "
            f"environment ({self._config.key_variable}); finished rows are kept."
        )

    def _scrubbed(self, error: Exception) -> str:
        """What went wrong, without the key: servers repeat it in their answers."""
        text = str(error) or type(error).__name__
        key = os.environ.get(self._config.key_variable)
        return shortened(text.replace(key, "[key]") if key else text)


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


def _text_of(choice: Any) -> Any:
    """What a choice of a chat or of a plain completion says."""
    message = getattr(choice, "message", None)
    return choice.text if message is None else message.content


def _tokens_of(answer: Any, choice: Any) -> Tokens:
    prompt, written = (
        (part.model_extra or {}).get(name)
        for part, name in ((answer, "prompt_token_ids"), (choice, "token_ids"))
    )
    if _are_ids(prompt) and _are_ids(written):
        return Tokens(len(prompt) + len(written), len(prompt), (*prompt, *written))
    usage = getattr(answer, "usage", None)
    return Tokens() if usage is None else Tokens(usage.total_tokens, usage.prompt_tokens)


def _are_ids(value: Any) -> TypeGuard[list[int]]:
    return bool(value) and isinstance(value, list) and all(type(token) is int for token in value)


def _seed_of(seed: int, name: str) -> int:
    """A seed of 31 bits for one prompt."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{name}".encode()).digest()[:4]) >> 1


def _openai() -> ModuleType:
    try:
        import openai
    except ImportError as error:
        raise RefusalCliffError(
            "Endpoints are asked through the package openai, which is not installed. Install it "
            "with: pip install 'refusal-cliff[api]'"
        ) from error
    return openai
