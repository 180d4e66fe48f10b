"""A server that loads LoRA adapters as vLLM does, by merging each into the model's weights."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from served import Handler

from refusal_cliff.data.types import Prompt
from refusal_cliff.generate.local import answer, generate
from refusal_cliff.model.loading import read_checkpoint
from refusal_cliff.model.subject import Subject, load_subject, subject_of
from refusal_cliff.settings import GenerationConfig


@dataclass
class LoraServer:
    """What the server holds, and what it was asked.

    Attributes:
        base: Folder of the model that it serves.
        max_rank: Highest rank of an adapter.
        runtime: Whether it loads adapters while it runs.
        deaf: Whether it answers without any adapter, whatever it is asked.
        models: Loaded models by name.
        asked: Paths and names, in order.
    """

    base: Path
    max_rank: int = 64
    runtime: bool = True
    deaf: bool = False
    models: dict[str, Subject] = field(default_factory=dict)
    asked: list[tuple[str, str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.models[str(self.base)] = load_subject(str(self.base), device="cpu")

    @property
    def handler(self) -> type[Handler]:
        """For `serving`."""
        held = self

        class Serving(Handler):
            def do_GET(self) -> None:
                assert self.path == "/v1/models"
                self.say(200, {"data": [{"id": name} for name in held.models]})

            def reply(self, request: dict[str, Any], body: bytes) -> None:
                path = self.path.removeprefix("/v1/")
                held.asked.append((path, request.get("lora_name") or request["model"]))
                try:
                    self.say(200, getattr(held, f"_{path.replace('/', '_')}")(request))
                except LookupError as error:
                    status = HTTPStatus(error.args[0])
                    self.say(status, {"error": {"message": error.args[1]}})

            def say(self, status: int, content: Mapping[str, Any] | str) -> None:
                whole = content if isinstance(content, str) else json.dumps(content)
                self.send(status, whole.encode())

        return Serving

    def loading(self) -> list[tuple[str, str]]:
        """Adapters that it was asked to load and to unload, in order."""
        return [(path.partition("_")[0], name) for path, name in self.asked if "lora" in path]

    def _load_lora_adapter(self, request: Mapping[str, Any]) -> str:
        name, folder = request["lora_name"], Path(request["lora_path"])
        if not self.runtime:
            raise LookupError(404, "Not Found")
        if name in self.models:
            raise LookupError(400, f"The lora adapter '{name}' has already been loaded.")
        rank = json.loads((folder / "adapter_config.json").read_text())["r"]
        if rank > self.max_rank:
            said = f"LoRA rank {rank} is greater than max_lora_rank {self.max_rank}."
            raise LookupError(400, f"Loading lora {name} failed: {said}")
        self.load(name, folder)
        return f"Success: LoRA adapter '{name}' added successfully."

    def load(self, name: str, folder: Path) -> None:
        """Have an adapter, as one that was named when the server started."""
        found = read_checkpoint(str(self.base), dtype=torch.float32, device="cpu")
        model: Any = found.model
        if not self.deaf:
            model = PeftModel.from_pretrained(model, str(folder)).merge_and_unload()
        self.models[name] = subject_of(name, model, found.tokenizer)

    def _unload_lora_adapter(self, request: Mapping[str, Any]) -> str:
        del self.models[request["lora_name"]]
        return "Success"

    def _completions(self, request: Mapping[str, Any]) -> dict[str, Any]:
        assert request["return_token_ids"] is True
        ids = answer(self._model(request), [request["prompt"]], request["max_tokens"])[0]
        return {"choices": [{"text": "", "token_ids": ids, "finish_reason": "stop"}]}

    def _chat_completions(self, request: Mapping[str, Any]) -> dict[str, Any]:
        asked = [Prompt("one", request["messages"][-1]["content"], "harmful")]
        model = self._model(request)
        trace = generate(model, asked, GenerationConfig(request["max_tokens"]))[0]
        n = len(generate(model, asked, GenerationConfig(1))[0].token_ids) - 1
        written = list(trace.token_ids[n:])
        text = model.tokenizer.decode(list(model.ending.without(written)))
        return {
            "choices": [
                {
                    "message": {"role": "assistant", "content": text},
                    "token_ids": written,
                    "finish_reason": "stop" if trace.complete else "length",
                }
            ],
            "prompt_token_ids": list(trace.token_ids[:n]),
        }

    def _model(self, request: Mapping[str, Any]) -> Subject:
        if request["model"] not in self.models:
            raise LookupError(404, f"The model {request['model']} does not exist.")
        return self.models[request["model"]]
