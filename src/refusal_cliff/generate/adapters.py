"""LoRA adapters on a server: loaded while it runs, asked by name, and unloaded."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from refusal_cliff.errors import RefusalCliffError
from refusal_cliff.generate.endpoint import EndpointBackend, EndpointConfig, scrubbed
from refusal_cliff.generate.http import JsonServer, Refused, Unanswered, Unreadable

_LOAD, _UNLOAD, _MODELS = "/load_lora_adapter", "/unload_lora_adapter", "/models"
_NO_SUCH_PATH = (404, 405)


@dataclass(frozen=True, slots=True)
class AdapterServer:
    """A server that can load adapters of the model that it serves, as vLLM can.

    Attributes:
        config: Where and how it is asked.
    """

    config: EndpointConfig

    def backend(self, name: str, **changes: Any) -> EndpointBackend:
        """The same server asked for a model of another name, with changes of how that writes."""
        generation = replace(self.config.generation, **changes)
        return EndpointBackend(replace(self.config, model=name, generation=generation))

    def names(self) -> set[str]:
        """What the server calls all that it serves.

        Raises:
            RefusalCliffError: It does not say.
        """
        try:
            found = self._asked(_MODELS).get("data")
        except Unanswered as error:
            raise self._error(f"does not list its models: {self._told(error)}") from None
        rows = found if isinstance(found, list) else []
        return {str(row["id"]) for row in rows if isinstance(row, Mapping) and "id" in row}

    @contextmanager
    def loaded(self, name: str, folder: Path, rank: int) -> Iterator[None]:
        """Have an adapter loaded while the block runs; one that the server serves already stays.

        Args:
            name: What the server is to call it.
            folder: The adapter; the server reads it at the same path.
            rank: Its rank, for the message.

        Raises:
            RefusalCliffError: The server does not load it; the message says why, and what to do.
        """
        ours = name not in self.names() and self._load(name, folder, rank)
        try:
            yield
        finally:
            if ours:
                with suppress(Unanswered):  # it stays loaded, which harms nothing
                    self._asked(_UNLOAD, {"lora_name": name})

    def _load(self, name: str, folder: Path, rank: int) -> bool:
        """Whether it was loaded now, and not by someone else in the meantime."""
        try:
            self._asked(_LOAD, {"lora_name": name, "lora_path": str(folder)})
        except Unreadable:  # vLLM says in plain words that it has done it
            return True
        except Unanswered as error:
            said = self._told(error)
            if "already" in said:
                return False
            if isinstance(error, Refused) and error.status in _NO_SUCH_PATH and name not in said:
                raise self._error(
                    f"loads no adapters while it runs ({said}). Start vLLM with --enable-lora and "
                    "VLLM_ALLOW_RUNTIME_LORA_UPDATING=True in its environment; or, with the "
                    "adapters that are written already, with --enable-lora --lora-modules "
                    f"$(for a in {folder.parent}/*/; do echo $(basename $a)=${{a%/}}; done)"
                ) from None
            raise self._error(
                f"does not load the adapter {folder}, of rank {rank}: {said.rstrip('.')}. If the "
                "rank is above its limit, start it with a higher --max-lora-rank; if it cannot "
                "read the folder, name one that it sees at the same path (--adapters-dir DIR); or "
                "leave --adapters-dir out, and the heads are taken out here."
            ) from None
        return True

    def _asked(self, path: str, body: Mapping[str, Any] | None = None) -> Any:
        config = self.config

        async def ask() -> dict[str, Any]:
            key, retries = config.key(), min(1, config.server.retries)
            async with JsonServer(config.base_url, key, config.server.timeout, retries) as server:
                return await server.ask(path, body)

        return asyncio.run(ask())

    def _told(self, error: Unanswered) -> str:
        return scrubbed(error, self.config.key())

    def _error(self, why: str) -> RefusalCliffError:
        return RefusalCliffError(f"{self.config.base_url} {why}")
