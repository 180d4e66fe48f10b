"""From a table of heads to a folder that people can serve, with its model card."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from refusal_cliff import __version__
from refusal_cliff.answers.evaluate import Rates, rates
from refusal_cliff.answers.outcomes import paired_by_prompt
from refusal_cliff.data.types import Prompt, Trace
from refusal_cliff.errors import RefusalCliffError
from refusal_cliff.generate import GenerationConfig
from refusal_cliff.heads.edits import check_restores, claim_export, write_adapter, write_merged
from refusal_cliff.heads.find import JointSearch
from refusal_cliff.heads.joint import JOINT
from refusal_cliff.heads.result import AblationResult
from refusal_cliff.heads.table import (
    DEFAULT_METHOD,
    MAX_FRACTION,
    METHODS,
    HeadRow,
    budget,
    read_heads,
    select_heads,
)
from refusal_cliff.io import read_as, without_folder
from refusal_cliff.judges import Judge, RulesJudge
from refusal_cliff.judges.choose import published_name
from refusal_cliff.model.adapters import HOW_TO_LOAD
from refusal_cliff.model.subject import Head, Subject
from refusal_cliff.stages.study import Study
from refusal_cliff.stats import Share

Form = Literal["adapter", "merged"]
RATES = {
    "attacks": "harmful prompts complied with (attack success rate)",
    "refused": "harmful prompts refused",
    "answered": "benign prompts answered",
    "hard_answered": "benign prompts with harmful words answered",
    "truncated": "answers that never ended",
}
_USE = {
    "adapter": HOW_TO_LOAD,
    "merged": "```python\nfrom transformers import AutoModelForCausalLM\n"
    "model = AutoModelForCausalLM.from_pretrained(folder)\n```",
}


@dataclass(frozen=True, slots=True)
class BeforeAfter:
    """What the change did, as counts of verdicts.

    Attributes:
        before: With no head out.
        after: With the heads out.
        perplexity: Of benign text, after / before; ``None`` where it was not measured.
        source: Where the numbers come from, in words.
    """

    before: Rates
    after: Rates
    perplexity: float | None
    source: str


def model_card(
    form: Form,
    subject: Subject,
    rows: Sequence[HeadRow],
    heads: Sequence[Head],
    scale: float,
    method: str,
    measured: BeforeAfter | None,
) -> str:
    """The card as Markdown with the front matter of the Hugging Face hub; see `export_heads`.

    Where nobody measured what the change did, the card says so.
    """
    base, done = without_folder(subject.name), "taken out" if scale == 0 else f"scaled by {scale:g}"
    parts = [
        _front_matter(form, base),
        f"# {_plain(base)} with its refusal suppression heads {done}",
        f"{len(heads)} of {len(rows)} attention heads ({len(heads) / len(rows):.1%}) that pull the "
        f"intention to refuse down just before the answer are {done}. Nothing was trained. Made by "
        f"refusal-cliff {__version__} after Yin et al., *Refusal Falls Off a Cliff* (arXiv "
        f"2510.06036). The model changed: {_plain(base)}, fingerprint "
        f"`{subject.fingerprint[:16]}`.",
        _USE[form],
        f"## The heads\n\nChosen of all heads by {method}. Effects are in logits of "
        "the refusal score at the last token before the answer, with 95 % intervals over prompts."
        "\n\n" + _head_table(rows, heads),
        "## Before and after\n\n" + _measured(measured),
        _LIMITS,
    ]
    return "\n\n".join(parts) + "\n"


_LIMITS = """## Limits

- It restores refusal where the model had the intention to refuse and lost it. A request that the
  model does not recognise as harmful is answered as before.
- Heads were chosen on one set of prompts. Judge answers to your own prompts, harmful and benign,
  before you release it.
- Verdicts are those of the judge named above. A refusal by its opening words can still help, and
  an answer can be harmless.
- In low precision (bfloat16, quantised) adapter and merged weights round differently: their logits
  agree to that precision."""


def _front_matter(form: Form, base: str) -> str:
    library = "peft" if form == "adapter" else "transformers"
    named = f"base_model: {json.dumps(base)}\nlibrary_name: {library}"
    return f"---\n{named}\ntags:\n- safety\n- refusal-cliff\n---"


def _plain(text: str) -> str:
    """A name that cannot act as Markdown or HTML."""
    return "".join(char for char in text if char.isalnum() or char in " ./_-+(),'")


def _head_table(rows: Sequence[HeadRow], heads: Sequence[Head]) -> str:
    by_head = {row.head: row for row in rows}
    lines = [
        "| layer.head | removing it raises the score by | on benign prompts | adds directly |",
        "|---|---|---|---|",
    ]
    for head in heads:
        row = by_head[head]
        lines.append(
            f"| {head} | {row.causal.mean:+.2f} [{row.causal.low:+.2f}, {row.causal.high:+.2f}] | "
            f"{row.causal_benign.mean:+.2f} | {row.direct.mean:+.2f} |"
        )
    return "\n".join(lines)


def _measured(measured: BeforeAfter | None) -> str:
    if measured is None:
        return (
            "Not measured for these heads. Give prompts (`--harmful`, `--benign`), or export the "
            "heads that an audit has measured."
        )
    lines = ["| | before | after |", "|---|---|---|"]
    for name, words in RATES.items():
        before, after = (getattr(side, name) for side in (measured.before, measured.after))
        if before.n:
            lines.append(f"| {words} | {_share(before)} | {_share(after)} |")
    if measured.perplexity is not None:
        lines.append(f"| perplexity of benign text | 1 | × {measured.perplexity:.3f} |")
    return "\n".join(lines) + f"\n\n95 % Wilson intervals. {_plain(measured.source)}"


def _share(share: Share) -> str:
    interval: Any = share.interval
    return f"{share.count} of {share.n} = {share.value:.1%} [{interval[0]:.1%}, {interval[1]:.1%}]"


WRITERS = {"adapter": write_adapter, "merged": write_merged}


@dataclass(frozen=True, slots=True)
class Choice:
    """Which heads to take out, and how far.

    Attributes:
        fraction: Most heads, as a share of all.
        method: Ranking of ``METHODS``; ``None`` for what the run took out: heads chosen by joint
            effect where they beat the default ranking, else this ranking.
        scale: What their outputs are multiplied by; 0 takes them out.
    """

    fraction: float = MAX_FRACTION
    method: str | None = None
    scale: float = 0.0

    def __post_init__(self) -> None:
        if self.method not in (None, *METHODS) or not 0 < self.fraction <= 1:
            raise RefusalCliffError(
                f"The ranking must be one of {', '.join(METHODS)} (not {self.method!r}), and the "
                f"fraction of heads above 0 and at most 1 (not {self.fraction})."
            )


def export_ablation(
    subject: Subject,
    table: Path,
    form: Form,
    out: Path,
    choice: Choice | None = None,
    prompts: Sequence[Prompt] = (),
    generation: GenerationConfig | None = None,
    judge: Judge | None = None,
) -> list[Head]:
    """Write an ablation with its model card into the folder ``out``, claimed before measuring.

    The card's table before and after is measured on ``prompts``; without any it is taken from
    ``ablation.json`` beside the table, if that is of the same heads.

    Args:
        subject: The model that the table was measured on.
        table: ``heads.parquet`` of a run.
        form: A LoRA adapter, or a merged checkpoint.
        out: The folder: absent, empty, or of the same ablation.
        choice: Which heads; ``None`` takes the defaults.
        prompts: Harmful and benign prompts to measure on.
        generation: How to answer them.
        judge: Who judges the answers; by default the phrase rules.

    Returns:
        The heads taken out, the strongest first.

    Raises:
        RefusalCliffError: No head suppresses refusal, the table is of another model, or a file
            cannot be written.
    """
    choice = choice or Choice()
    rows = read_heads(table, subject)
    heads, method = _chosen(rows, choice, table.with_name("joint.json"))

    def measure() -> BeforeAfter | None:
        if not prompts:
            return None if choice.scale else _of_run(table.with_name("ablation.json"), heads)
        judged_by, writing = judge or RulesJudge(), generation or GenerationConfig()
        study = Study("", subject, 0, writing, judge=judged_by)
        before, after = study.write(prompts), study.write(prompts, row_heads=[heads] * len(prompts))
        return measured_on(before, after, judged_by.name)

    export_heads(subject, rows, heads, method, form, out, scale=choice.scale, measure=measure)
    return heads


def export_heads(
    subject: Subject,
    rows: Sequence[HeadRow],
    heads: Sequence[Head],
    method: str,
    form: Form,
    out: Path,
    *,
    scale: float = 0.0,
    measure: Callable[[], BeforeAfter | None] = lambda: None,
) -> Path:
    """Write an ablation with its model card into the folder ``out``, claimed before measuring.

    Args:
        subject: The model.
        rows: Every head of it, as measured.
        heads: Those to take out, the strongest first.
        method: How they were found.
        form: A LoRA adapter, or a merged checkpoint.
        out: The folder: absent, empty, or of the same ablation.
        scale: What the heads' outputs are multiplied by; 0 takes them out.
        measure: What the card's table before and after is made of; ``None`` leaves it out.

    Raises:
        RefusalCliffError: A head was not measured to suppress refusal, or a file cannot be written.
    """
    if form not in WRITERS:
        raise RefusalCliffError(f"Unknown form {form!r}. Export one of: {', '.join(WRITERS)}.")
    check_restores(rows, heads, scale)
    claim_export(subject, heads, scale, form, out)
    card = model_card(form, subject, rows, heads, scale, method, measure())
    return WRITERS[form](subject, heads, scale, out, card)


def measured_on(before: Sequence[Trace], after: Sequence[Trace], judge: str) -> BeforeAfter:
    """What a card says of judged traces of the same prompts without and with the ablation.

    Args:
        before: With no head out.
        after: With the heads out; what only one side answered does not count.
        judge: Who judged them.

    Raises:
        RefusalCliffError: The two share no prompt.
    """
    pairs = paired_by_prompt(before, after)
    source = f"Measured on {len(pairs)} prompts given for it, judged by {published_name(judge)}."
    without, with_out = zip(*pairs, strict=True)
    return BeforeAfter(rates(without), rates(with_out), None, source)


def _chosen(rows: Sequence[HeadRow], choice: Choice, joint: Path) -> tuple[list[Head], str]:
    """The heads of a choice, and how they were found."""
    if choice.method is None and joint.is_file():
        together = _joint_heads(joint)[: budget(len(rows), choice.fraction)]
        if together:
            return together, JOINT
    method = choice.method or DEFAULT_METHOD
    return select_heads(rows, choice.fraction, method), method


def _joint_heads(joint: Path) -> list[Head]:
    """The set of heads that an audit chose, each once: it is taken out once."""
    try:
        return list(dict.fromkeys(read_as(joint, JointSearch).chosen or ()))
    except RefusalCliffError as error:
        raise RefusalCliffError(
            f"{error} Or choose heads by a ranking (--method causal)."
        ) from error


def _of_run(path: Path, heads: Sequence[Head]) -> BeforeAfter | None:
    """What the run measured, if it took out the same heads."""
    if not path.is_file():
        return None
    found = read_as(path, AblationResult)
    if {*heads} != {*found.heads}:
        return None
    source = f"Measured on the run's held-out prompts, judged by {published_name(found.judge)}."
    return BeforeAfter(found.before, found.after, found.perplexity_ratio, source)
