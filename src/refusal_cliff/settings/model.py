"""How a setting is declared; and how a model is loaded, prompted and written with."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from numbers import Integral, Real
from typing import Any, ClassVar

from refusal_cliff.errors import RefusalCliffError
from refusal_cliff.user_text import Value, chat_argument, device


def setting(default: Any, help: str, **option: Any) -> Any:
    """A field of a class of settings: its default, and how its option is shown.

    Args:
        default: The value where a user says nothing.
        help: What it means, as ``--help`` says it.
        option: ``flag`` where the option is not called as the field; ``choices`` of a word,
            ``positive`` of a number, or ``check``, a function that refuses a wrong text; and what
            `typer.Option` takes besides.
    """
    return field(default=default, metadata={"help": help, **option})


def check_settings(settings: Any) -> None:
    """Hold a class of settings to what its fields declare, as its options are held to it.

    Raises:
        RefusalCliffError: A number is none, or not within its limits; a word is not among those to
            choose from.
    """
    for one in fields(settings):
        value: Any = getattr(settings, one.name)
        limits = one.metadata
        numeric = limits.keys() & {"min", "max", "positive"}
        if value is None and one.default is None:
            continue
        if value not in limits.get("choices", (value,)):
            wrong = f"one of: {', '.join(limits['choices'])}"
        elif numeric and not _is_number(value, whole=not isinstance(one.default, float)):
            wrong = "a number" if isinstance(one.default, float) else "a whole number"
        elif numeric and not limits.get("min", value) <= value <= limits.get("max", value):
            words = {"min": "at least", "max": "at most"}
            wrong = " and ".join(f"{words[k]} {limits[k]}" for k in words if k in limits)
        elif limits.get("positive") and not (value or 0) > 0:
            wrong = "above 0"
        else:
            continue
        raise RefusalCliffError(f"{one.name} is {value!r}. Give {wrong}.")


def _is_number(value: object, *, whole: bool) -> bool:
    kind = Integral if whole else Real
    return isinstance(value, kind) and not isinstance(value, bool) and math.isfinite(value)


DTYPES = ("float32", "bfloat16", "float16", "float64")


@dataclass(frozen=True, slots=True)
class Chat:
    """How a model is spoken to, beside its chat template's own words.

    Attributes:
        system: System prompt of every conversation; empty for none.
        arguments: Variables of the chat template, such as ``enable_thinking`` or
            ``reasoning_effort``.
    """

    system: str = ""
    arguments: Mapping[str, Value] = field(default_factory=dict)

    def written_into(self, template: str) -> str:
        """The chat template that always speaks so.

        All that a tokenizer renders then follows it: prompts, the places of markers, the end of an
        answer, and the fingerprint of the model.
        """
        if self == PLAIN:
            return template
        said = [
            f"{{%- set {name} = {_literal(value)} %}}" for name, value in self.arguments.items()
        ]
        if self.system:
            message = f"{{'role': 'system', 'content': {_literal(self.system)}}}"
            said.append(f"{{%- set messages = [{message}] + (messages | list) %}}")
        head = "".join(said)
        return template if template.startswith(head) else head + template


PLAIN = Chat()


def _literal(value: Value) -> str:
    """A value as Jinja reads it, which knows JSON's words but ``null``."""
    return "none" if value is None else json.dumps(value, ensure_ascii=False)


@dataclass(frozen=True, slots=True)
class Loading:
    """How a model is loaded and spoken to; see `load`."""

    PANEL: ClassVar[str] = "How the model is loaded and prompted"

    dtype: str = setting(
        "float32",
        "Precision of the weights: float32, bfloat16, float16 or float64.",
        choices=DTYPES,
    )
    device: str = setting("auto", "auto, cpu, cuda, cuda:1, mps.", check=device)
    device_map: str | None = setting(
        None,
        "auto: spread the blocks of a large model over all GPUs; --device is then ignored.",
        metavar="auto",
        choices=("auto", "balanced", "balanced_low_0", "sequential"),
    )
    trust_remote_code: bool = setting(False, "Run code that comes with the model.")
    system: str = setting("", "System prompt of every conversation.", metavar="TEXT")
    template_arg: tuple[str, ...] = setting(
        (),
        "Variable of the chat template, such as enable_thinking=false or reasoning_effort=high; "
        "repeatable.",
        metavar="NAME=VALUE",
        check=chat_argument,
    )

    @property
    def chat(self) -> Chat:
        """How the model is spoken to."""
        return Chat(self.system, dict(map(chat_argument, self.template_arg)))


@dataclass(frozen=True, slots=True)
class _Length:
    """How much a model writes."""

    max_new_tokens: int = setting(
        4096,
        "Most tokens of thinking and answer, or what the context leaves of them; answers that are "
        "cut off are counted separately.",
        min=1,
    )
    batch_size: int = setting(16, "Prompts answered at once.", min=1)
    thinking_budget: int | None = setting(None, "Close the thinking after this many tokens.", min=1)


@dataclass(frozen=True, slots=True)
class GenerationConfig(_Length):
    """How much a model writes, and how.

    Attributes:
        max_new_tokens: Most tokens of thinking and answer together; a prompt that leaves fewer of
            the model's context gets what it leaves.
        batch_size: Rows written at once; halved where memory runs out.
        temperature: 0 is greedy; else tokens are drawn from the softmax of logits / temperature.
        top_p: Share of the probability that draws are made from.
        top_k: Likeliest tokens that draws are made from; 0 for all.
        seed: Seed of the draws.
        thinking_budget: Most tokens of thinking; where it is spent, the thinking is closed as the
            chat template closes it, and the trace says so. ``None`` lets the model think on.
    """

    PANEL: ClassVar[str] = "How the model writes"

    temperature: float = setting(0.0, "Sampling temperature; 0 is greedy.", min=0)
    top_p: float = setting(
        1.0, "Sample from the most likely tokens with this total probability.", max=1, positive=True
    )
    top_k: int = setting(0, "Sample from this many most likely tokens; 0 for all.", min=0)
    seed: int = 0

    def __post_init__(self) -> None:
        check_settings(self)
        if self.thinking_budget is not None and self.thinking_budget >= self.max_new_tokens:
            raise RefusalCliffError(
                f"A thinking budget of {self.thinking_budget} leaves no room for an answer within "
                f"{self.max_new_tokens} new tokens. Allow more new tokens, or less thinking."
            )

    def decoding(self) -> dict[str, Any]:
        """All that answers depend on, as JSON: not how many are written at once."""
        found = asdict(self)
        del found["batch_size"]
        return found

    def __str__(self) -> str:
        if self.temperature == 0:
            return "greedy"
        told = f"drawn at temperature {self.temperature:g}, top-p {self.top_p:g}"
        return f"{told}, top-k {self.top_k}" if self.top_k else told


@dataclass(frozen=True, slots=True)
class Writing(_Length):
    """How a model is to write in an audit, see `GenerationConfig`.

    Where nobody says how tokens are drawn, the checkpoint's generation config does, by which its
    makers say how it is to be run.
    """

    PANEL: ClassVar[str] = "How the model writes"

    temperature: float | None = setting(
        None,
        "Sampling temperature; 0 is greedy.  [default: the checkpoint's generation config]",
        min=0,
        show_default=False,
    )
    top_p: float | None = setting(
        None,
        "Sample from the most likely tokens with this total probability.  [default: the same]",
        max=1,
        positive=True,
        show_default=False,
    )
    top_k: int | None = setting(
        None,
        "Sample from this many most likely tokens; 0 for all.  [default: the same]",
        min=0,
        show_default=False,
    )
    samples: int = setting(1, "Answers per prompt.", min=1)

    def of_model(self, configured: Any, seed: int) -> GenerationConfig:
        """How the model writes.

        Args:
            configured: The checkpoint's generation config, or ``None``.
            seed: Seed of the draws.
        """
        own = _drawn(configured)
        named = {name: getattr(self, name) for name in own}
        chosen = {name: own[name] if said is None else said for name, said in named.items()}
        return GenerationConfig(
            self.max_new_tokens,
            self.batch_size,
            seed=seed,
            thinking_budget=self.thinking_budget,
            **chosen,
        )


def _drawn(configured: Any) -> dict[str, Any]:
    """How a checkpoint's generation config draws tokens; greedily where it says nothing of it."""
    if not getattr(configured, "do_sample", False):
        return {"temperature": 0.0, "top_p": 1.0, "top_k": 0}
    usual = {"temperature": 1.0, "top_p": 1.0, "top_k": 0}
    said = {name: getattr(configured, name, None) for name in usual}
    numbers = {name: value for name, value in said.items() if isinstance(value, int | float)}
    return {**usual, **numbers}
