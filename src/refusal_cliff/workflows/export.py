"""From a table of heads to a folder that people can serve, with its model card."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import Field

from refusal_cliff.answers.evaluate import Rates, Share, rates
from refusal_cliff.data.traces import Prompt, Trace
from refusal_cliff.errors import RefusalCliffError
from refusal_cliff.generate import GenerationConfig
from refusal_cliff.heads.edits import check_restores, claim_export, write_adapter, write_merged
from refusal_cliff.heads.joint import JOINT
from refusal_cliff.heads.table import (
    DEFAULT_METHOD,
    MAX_FRACTION,
    METHODS,
    HeadRow,
    budget,
    read_heads,
    select_heads,
)
from refusal_cliff.io import read_as, read_json, without_folder
from refusal_cliff.judges import Judge, RulesJudge
from refusal_cliff.judges.choose import published_name
from refusal_cliff.model.subject import Head, Subject, parse_head
from refusal_cliff.stages.study import answers
from refusal_cliff.workflows.model_card import RATES, BeforeAfter, Form, model_card

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
        if prompts:
            writing = generation or GenerationConfig()
            return _on_prompts(subject, heads, prompts, writing, judge or RulesJudge())
        return None if choice.scale else _of_run(table.with_name("ablation.json"), heads)

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
    card = model_card(
        form,
        without_folder(subject.name),
        subject.fingerprint,
        rows,
        heads,
        scale=scale,
        method=method,
        measured=measure(),
    )
    return WRITERS[form](subject, heads, scale, out, card)


def measured_on(before: Sequence[Trace], after: Sequence[Trace], judge: str) -> BeforeAfter:
    """What a card says of judged traces of the same prompts without and with the ablation.

    Args:
        before: With no head out.
        after: With the heads out.
        judge: Who judged them.
    """
    source = f"Measured on {len(before)} prompts given for it, judged by {published_name(judge)}."
    return BeforeAfter(_shares(rates(before)), _shares(rates(after)), None, source)


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
    content = read_json(joint)
    names = content.get("chosen") if isinstance(content, dict) else ""
    try:
        if not (names is None or isinstance(names, list)):
            raise RefusalCliffError("'chosen' is not a list of heads.")
        return list(dict.fromkeys(parse_head(str(name)) for name in names or ()))
    except RefusalCliffError as error:
        raise RefusalCliffError(
            f"{joint} is damaged: {error} Run the audit again, or choose heads by a ranking "
            "(--method causal)."
        ) from error


def _on_prompts(
    subject: Subject,
    heads: Sequence[Head],
    prompts: Sequence[Prompt],
    generation: GenerationConfig,
    judge: Judge,
) -> BeforeAfter:
    before, after = (
        answers(subject, prompts, generation, row_heads=row_heads, judge=judge)
        for row_heads in (None, [heads] * len(prompts))
    )
    return measured_on(before, after, judge.name)


def _shares(found: Rates) -> dict[str, Share]:
    return {name: getattr(found, name) for name in RATES}


@dataclass(frozen=True, slots=True)
class _Ablation:
    """What is read of a run's ``ablation.json``."""

    heads: list[str]
    before: Rates
    after: Rates
    perplexity_before: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    perplexity_after: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    judge: str = RulesJudge.name  # runs that name none knew no other


def _of_run(path: Path, heads: Sequence[Head]) -> BeforeAfter | None:
    """What the run measured, if it took out the same heads."""
    if not path.is_file():
        return None
    found = read_as(path, _Ablation)
    if {str(head) for head in heads} != set(found.heads):
        return None
    ratio = found.perplexity_after / found.perplexity_before
    source = f"Measured on the run's held-out prompts, judged by {published_name(found.judge)}."
    return BeforeAfter(_shares(found.before), _shares(found.after), ratio, source)
