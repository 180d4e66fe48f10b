"""What a user can set: one declaration of each setting, without anything heavy to import.

From a class here come the arguments of the Python functions, the options of the commands with
their help (`commands.grouped`), the file of ``--config`` and what a run folder says of itself. A
default is therefore the same object everywhere.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

from refusal_cliff.errors import RefusalCliffError
from refusal_cliff.user_text import (
    Value,
    address,
    chat_argument,
    chat_arguments,
    column_of,
    device,
    existing_file,
    json_object,
    marker_words,
    require_model_of_rubric,
)

Method = Literal["lora", "full"]
DTYPES = ("float32", "bfloat16", "float16", "float64")


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
        return Chat(self.system, chat_arguments(self.template_arg))


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
        if not (self.temperature >= 0 and 0 < self.top_p <= 1 and self.top_k >= 0):
            raise RefusalCliffError(
                f"Temperature {self.temperature}, top-p {self.top_p} and top-k {self.top_k} do not "
                "make a distribution to sample from. Give a temperature of 0 (greedy) or more, a "
                "top-p above 0 and up to 1, and a top-k of 0 (all) or more."
            )
        if self.thinking_budget is not None and not 0 < self.thinking_budget < self.max_new_tokens:
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
    """How a model is to write in an audit; what nobody says is asked of the model itself.

    Attributes:
        max_new_tokens: See `GenerationConfig`.
        batch_size: Rows written at once.
        temperature: See `GenerationConfig`; ``None`` takes the checkpoint's generation config, by
            which its makers say how it is to be run.
        top_p: The same.
        top_k: The same.
        thinking_budget: See `GenerationConfig`.
        samples: Answers to every prompt.
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


JUDGES = (
    *("rules", "llama-guard-3", "llama-guard-4", "qwen3guard", "wildguard", "harmbench", "rubric"),
)


@dataclass(frozen=True, slots=True)
class JudgeSettings:
    """A judge by its settings, before anything is loaded: what goes with a job to other processes.

    Attributes:
        name: One of `choose.NAMES`.
        model: Its weights, or its name at the endpoint; a guard's usual ones by default.
        endpoint: Its server; ``None`` runs it here.
        key: Environment variable that holds the server's key.
        error: What `judge calibrate` wrote of it; ``None`` takes what ships with the package.
    """

    PANEL: ClassVar[str] = "The judge"

    name: str = setting("rules", f"{', '.join(JUDGES)}.", flag="judge", choices=JUDGES)
    model: str | None = setting(
        None,
        "The judge's weights, or its name at --judge-endpoint.",
        flag="judge-model",
        metavar="M",
    )
    endpoint: str | None = setting(
        None,
        "Server of the judge; without it a guard runs on this machine.",
        flag="judge-endpoint",
        metavar="URL",
        check=address,
    )
    key: str = setting(
        "OPENAI_API_KEY",
        "Environment variable that holds the judge's API key.",
        flag="judge-key",
        metavar="NAME",
    )
    error: Path | None = setting(
        None,
        "Measured error of the judge: the file that judge calibrate --out writes.",
        flag="judge-error",
        metavar="FILE",
        check=existing_file,
    )

    def __post_init__(self) -> None:
        require_model_of_rubric(self.name, self.model)


BY_RULES = JudgeSettings()
"""The phrase rules: what judges where nobody named a judge."""


@dataclass(frozen=True, slots=True)
class Engine:
    """Where rows are worked on, shard by shard; see `run_shards`.

    Attributes:
        name: ``local`` is this process, or every process of a launch; both write the same.
        actors: Replicas of the model on Ray.
        shard_size: Rows of one shard.
    """

    PANEL: ClassVar[str] = "Where the work is done"

    name: str = setting(
        "local",
        "local: here, shared with the other processes of torchrun or accelerate launch; ray: many "
        "GPUs and nodes.",
        flag="engine",
        choices=("local", "ray"),
    )
    actors: int = setting(1, "Replicas of the model on the Ray cluster.", min=1)
    shard_size: int = setting(
        256, "Rows of one shard; a killed run loses at most one shard.", min=1
    )


@dataclass(frozen=True, slots=True)
class Server:
    """A server that answers instead of this machine; see `EndpointConfig`.

    Attributes:
        url: Its address; ``None`` for none.
        model: What it calls the model.
        key: Environment variable that holds its key.
        thinks: Whether a text without the end of a thought is a thought.
        concurrency: Requests at once.
        retries: Repeats of a failed request.
        timeout: Seconds for one answer.
        extra_body: A JSON object of more fields of a request.
    """

    PANEL: ClassVar[str] = "A server that answers"

    url: str | None = setting(
        None,
        "OpenAI-compatible server that answers: http://localhost:8000/v1.",
        flag="endpoint",
        metavar="URL",
        check=address,
    )
    model: str | None = setting(
        None,
        "Name of the model on the server, if it differs from --model.",
        flag="endpoint-model",
        metavar="M",
    )
    key: str = setting(
        "OPENAI_API_KEY", "Environment variable that holds the server's API key.", metavar="NAME"
    )
    thinks: bool = setting(
        False,
        "The served model always thinks: a text without the end of a thought counts as cut off.",
    )
    concurrency: int = setting(16, "Requests at the same time.", min=1)
    retries: int = setting(6, "Retries of a failed request.", min=0)
    timeout: float = setting(1800.0, "Most seconds for one answer.", min=1)
    extra_body: str = setting(
        "{}",
        'More fields of each request, such as {"chat_template_kwargs": …}.',
        metavar="JSON",
        check=json_object,
    )


@dataclass(frozen=True, slots=True)
class RepairConfig:
    """The fixed budget of one repair: ``steps`` optimiser steps of ``batch_size`` rows each.

    ``benign_share`` of the rows of every step are benign; ``max_length`` is in tokens. ``method``
    trains a LoRA adapter or all weights, of the blocks from ``first_block`` on: those below it need
    no backward pass then, and stay as they are, as embedding and head do where it is not 1.
    ``save_every`` so many steps a checkpoint is written, from which a killed training goes on (0:
    none). ``rows_at_once`` and ``recompute`` trade time for memory, and change nothing that is
    learnt but its last digits.
    """

    PANEL: ClassVar[str] = "Training"

    steps: int = setting(40, "Optimiser steps.", min=1)
    batch_size: int = setting(
        16, "Rows of one step, in all processes together.", flag="train-batch-size", min=1
    )
    lr: float = setting(2e-4, "Learning rate.", positive=True)
    lora_r: int = setting(8, "Rank of the adapter.", min=1)
    benign_share: float = setting(0.5, "Share of every step's rows that is benign.", min=0, max=1)
    seed: int = 0
    max_length: int = setting(
        4096, "Most tokens of a row; longer rows are left out and listed.", min=1
    )
    method: Method = setting(
        "lora", "lora: an adapter; full: all weights.", choices=("lora", "full")
    )
    first_block: int = setting(
        1, "First block to train, counted from 1; blocks below it need no backward pass.", min=1
    )
    save_every: int = setting(0, "Steps between checkpoints; 0 for none.", min=0)
    rows_at_once: int | None = setting(
        None,
        "Rows of a step that run at the same time; fewer need less memory, with the same result.  "
        "[default: all]",
        min=1,
        show_default=False,
    )
    recompute: bool = setting(
        False, "Compute activations again instead of keeping them: slower, less memory."
    )

    def __post_init__(self) -> None:
        if min(self.steps, self.batch_size, self.lora_r, self.max_length) < 1:
            raise RefusalCliffError(
                "steps, batch size, LoRA rank and maximal length must each be at least 1."
            )
        if not (0 <= self.benign_share < 1 and self.lr > 0):
            raise RefusalCliffError(
                "The benign share must be at least 0 and below 1, and the learning rate above 0."
            )

    @property
    def benign_per_step(self) -> int:
        """Benign rows in every step; at least one row of a step is a safety example."""
        return min(round(self.batch_size * self.benign_share), self.batch_size - 1)

    def decides(self) -> dict[str, Any]:
        """All that changes what is learnt, as JSON: not how it is run, or how often saved."""
        found = asdict(self)
        for name in ("save_every", "rows_at_once", "recompute"):
            del found[name]
        return found


LABELS = (
    *("harmful", "unsafe", "toxic", "jailbreak", "malicious", "1", "true"),
    *("benign", "safe", "harmless", "non-toxic", "nontoxic", "0", "false"),
)


@dataclass(frozen=True, slots=True)
class RowSettings:
    """How rows are read, the same in every command; see `Reading`."""

    PANEL: ClassVar[str] = "How rows are read"

    label: str | None = setting(
        None, "Label of rows that have none: harmful or benign.", choices=LABELS
    )
    column: tuple[str, ...] = setting(
        (),
        "Column of a field: id, text (the request), label, group, category, tags, thinking or "
        "response; text=Goal; repeatable.",
        metavar="FIELD=COLUMN",
        check=column_of,
    )
    split: str = setting("train", "Split of a data set that has several.")
    thinking_markers: str | None = setting(
        None,
        "Markers around the thinking in the texts, if they are not among the known ones "
        "(docs/reference/traces.md).",
        metavar="'OPEN CLOSE'",
        check=marker_words,
    )


STRATEGIES = (
    *("cliff", "final", "gated", "diverse", "rule", "judge", "longest", "random", "full"),
)


@dataclass(frozen=True, slots=True)
class Selecting:
    """Which examples are chosen, and how they are scored."""

    PANEL: ClassVar[str] = "Which examples are chosen"

    fraction: float = setting(
        0.017, "Share of the scored examples to choose.", min=0, max=1, positive=True
    )
    n: int | None = setting(None, "Number of examples to choose, instead of --fraction.", min=1)
    strategy: str = setting(
        "cliff",
        "cliff, final, gated, diverse, rule, judge, longest, random or full.",
        choices=STRATEGIES,
    )
    thinking: str = setting(
        "own",
        "own: the thinking that the model writes; data: the thinking in the data.",
        choices=("own", "data"),
    )
    target: str = setting(
        "data",
        "Answer to train on. data: the one in the data; own: a refusal that the model writes when "
        "its thinking is closed at the plateau.",
        choices=("own", "data"),
    )
