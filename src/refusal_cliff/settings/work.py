"""Which rows are read, judged, chosen and trained on, and where the work is done."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, get_args

from refusal_cliff.errors import RefusalCliffError
from refusal_cliff.settings.model import check_settings, setting
from refusal_cliff.user_text import (
    address,
    column_of,
    existing_file,
    json_object,
    marker_words,
)

Method = Literal["lora", "full"]
Strategy = Literal[
    "cliff", "final", "gated", "diverse", "rule", "judge", "longest", "random", "full"
]
STRATEGIES: tuple[Strategy, ...] = get_args(Strategy)

KNOWS_HARM = {
    "rules": False,
    **dict.fromkeys(("llama-guard-3", "llama-guard-4", "qwen3guard", "wildguard"), True),
    **dict.fromkeys(("harmbench", "rubric"), True),
}
"""Judges, and whether ``harmful`` is among their verdicts (`Judge.measures_harm`)."""
JUDGES = tuple(KNOWS_HARM)


@dataclass(frozen=True, slots=True)
class JudgeSettings:
    """A judge by its settings, before anything is loaded: what goes with a job to other processes.

    Without ``model`` a guard has its usual weights, without ``error`` what ships with the package
    counts.
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
        if self.name == "rules" and (self.model or self.endpoint):
            raise RefusalCliffError(
                "The judge rules has no weights and no server. Name the judge that --judge-model "
                "or --judge-endpoint is for (--judge), or leave both out."
            )
        if self.name == "rubric" and self.model is None:  # it has no usual one
            raise RefusalCliffError(
                "A judge with a rubric needs a model. Name it with --judge-model, and its server "
                "with --judge-endpoint."
            )

    @property
    def inputs(self) -> tuple[str | Path | None, ...]:
        """What it reads, which no output may overwrite."""
        return (self.model, self.error)


BY_RULES = JudgeSettings()
"""The phrase rules: what judges where nobody named a judge."""


@dataclass(frozen=True, slots=True)
class Engine:
    """Where rows are worked on, shard by shard; both engines write the same. See `run_shards`."""

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
    """A server that answers instead of this machine, where it has an address (``url``)."""

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
        check_settings(self)
        if self.benign_share == 1:
            raise RefusalCliffError("benign_share is 1: no row is left to learn. Give less.")

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


LABELS: dict[str, Literal["harmful", "benign"]] = {
    **dict.fromkeys(
        ("harmful", "unsafe", "toxic", "jailbreak", "malicious", "1", "true"), "harmful"
    ),
    **dict.fromkeys(
        ("benign", "safe", "harmless", "non-toxic", "nontoxic", "0", "false"), "benign"
    ),
}
"""Labels in public data, in small letters, and which of our two they mean."""


@dataclass(frozen=True, slots=True)
class RowSettings:
    """How rows are read, the same in every command; see `Reading`."""

    PANEL: ClassVar[str] = "How rows are read"

    label: str | None = setting(
        None, "Label of rows that have none: harmful or benign.", choices=tuple(LABELS)
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


POOLS = {
    "late-median": "the median over the second half of the thinking",
    "max": "the maximum over the thinking, as in the paper",
    "q90": "the 90th percentile over the thinking",
    "mean": "the mean over the thinking",
}
"""How a trace's scores become one plateau, in words; `cliff.curves` computes it."""
DEFAULT_POOL = "late-median"


@dataclass(frozen=True, slots=True)
class Selecting:
    """Which examples are chosen, and how they are scored; ``seed`` is of whatever is drawn."""

    PANEL: ClassVar[str] = "Which examples are chosen"

    fraction: float = setting(
        0.017, "Share of the scored examples to choose.", min=0, max=1, positive=True
    )
    n: int | None = setting(None, "Number of examples to choose, instead of --fraction.", min=1)
    strategy: Strategy = setting(
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
    seed: int = 0
