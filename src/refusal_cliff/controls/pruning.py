"""Does more thinking make it worse? The thinking cut short and closed, the answer written anew."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence

from refusal_cliff.controls.arms import (
    COLUMNS,
    Arm,
    arm_rows,
    final_scores,
    first_of_each,
    limited,
    parts,
    write_on,
)
from refusal_cliff.controls.table import Cell, ControlTable, cell_text
from refusal_cliff.data.types import Trace
from refusal_cliff.generate.again import prompt_length
from refusal_cliff.model.subject import Subject
from refusal_cliff.run.pipeline import Job
from refusal_cliff.stages.study import Study

SHARES = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
"""Of the thinking's tokens that are kept; the paper's figure has the same."""
WHOLE, RANDOM = "100 % kept", "closed at a random token"


def measure(study: Study, job: Job) -> ControlTable:
    """Every share of the thinking, and a random closing, on the test prompts."""
    probes = study.probes(job)
    asked = first_of_each(study.traces(job, "test"))
    traces = [trace for trace in asked if thinking_of(trace)]
    if not traces:
        return limited(pruning_table({}, len(asked), study.seed))
    kept = {
        share_name(share): [kept_tokens(thinking_of(trace), share) for trace in traces]
        for share in SHARES
    }
    kept[RANDOM] = [random_kept(t.prompt.id, thinking_of(t), study.seed) for t in traces]
    lengths = [prompt_length(study.subject, trace) for trace in traces]
    closing, skipping = template_closing(study.subject)
    begun = [
        pruned(trace, length, tokens, closing, skipping)
        for counts in kept.values()
        for trace, length, tokens in zip(traces, lengths, counts, strict=True)
    ]
    written = write_on(study, traces * len(kept), begun, job)
    arms = {
        name: Arm(part, final_scores(study.subject, part, probes))
        for name, part in zip(kept, parts(written, len(traces)), strict=True)
    }
    return limited(pruning_table(arms, len(asked) - len(traces), study.seed))


def share_name(share: float) -> str:
    """``40 % kept``."""
    return f"{share:.0%} kept".replace("%", " %")


def kept_tokens(thinking: int, share: float) -> int:
    """Tokens of a thinking of ``thinking`` tokens that a share of it is; halves are kept."""
    return int(thinking * share + 0.5)


def random_kept(trace_id: str, thinking: int, seed: int) -> int:
    """How much is kept where the thinking is closed at random: 0 to all but one, all as likely."""
    return random.Random(f"closing:{seed}:{trace_id}").randrange(max(1, thinking))


def pruned(
    trace: Trace, prompt_length: int, kept: int, closing: Sequence[int], skipping: Sequence[int]
) -> list[int]:
    """What an output begins with that has only the first tokens of a trace's thinking.

    Args:
        trace: Closed, with thinking.
        prompt_length: Tokens of the prompt as it was given; an opener that the model wrote itself
            comes after them.
        kept: Tokens of the thinking that stay.
        closing: Tokens with which the chat template closes a thought.
        skipping: Tokens with which it goes from the prompt to an answer without thinking.

    Returns:
        Token ids after the prompt, the closing ones last.
    """
    if trace.spans is None:
        raise ValueError(f"trace {trace.prompt.id} never closed its thinking")
    if kept == 0:
        return list(skipping)
    return [*trace.token_ids[prompt_length : trace.spans.prompt + kept], *closing]


def pruning_table(arms: Mapping[str, Arm], left_out: int, seed: int = 0) -> ControlTable:
    """Compare answers after more or less of the same thinking.

    Args:
        arms: By name, ``WHOLE`` among them; empty if no trace has thinking.
        left_out: Prompts whose thinking never closed, or is empty.
        seed: Seed of the bootstrap.
    """
    rows = arm_rows(arms, WHOLE, seed) if arms else {}
    return ControlTable(
        question="Does more thinking make it worse?",
        source="the paper's thinking pruning, by tokens; forced closing as in 2606.25013",
        columns=COLUMNS,
        rows=rows,
        finding=_finding({name: row[1] for name, row in rows.items() if name != WHOLE}),
        notes=(
            "The first tokens of the model's own thinking are kept and closed with the tokens of "
            "its chat template; the answer is generated again. A model may go on thinking after "
            "that: what it then writes counts as thinking tokens. Changes are against the whole "
            "thinking, paired by prompt; intervals are Wilson's for shares and where all prompts "
            f"agree, else a bootstrap over prompts. Left out: {left_out} "
            "prompts whose thinking is empty or never closed.",
        ),
    )


def _finding(changes: Mapping[str, Cell]) -> str:
    """Which cuts change the attack success rate significantly."""
    if not changes:
        return "No test trace has thinking that could be pruned."
    ends = {name: cell.interval for name, cell in changes.items() if cell.interval}
    fewer = [name for name, (_, high) in ends.items() if high < 0]
    more = [name for name, (low, _) in ends.items() if low > 0]
    told = ", ".join(
        f"{name} ({cell_text(changes[name], alone=False)})" for name in (*fewer, *more)
    )
    if not told:
        return "No cut of the thinking changes the attack success rate significantly."
    says = {
        (True, False): "Less thinking, fewer compliances",
        (False, True): "Less thinking, more compliances",
    }.get((bool(fewer), bool(more)), "Less thinking has no consistent effect")
    return f"{says}: the attack success rate changes significantly at {told}."


def thinking_of(trace: Trace) -> int:
    """Tokens of a closed thinking; 0 where it never closed."""
    return 0 if trace.spans is None else trace.spans.thinking - trace.spans.prompt


def template_closing(subject: Subject) -> tuple[list[int], list[int]]:
    """Tokens with which the chat template closes a thought, and goes without one."""
    fmt = subject.format
    skipping = fmt.skipping or fmt.opening + fmt.closing
    texts = [fmt.closing, skipping]
    closing, skipped = subject.tokenizer(texts, add_special_tokens=False)["input_ids"]
    return closing, skipped
