"""Faults in how answers are counted and examples are chosen."""

from __future__ import annotations

from collections.abc import Sequence

from bench.paper_code.case import Case, Effect
from refusal_cliff.answers.evaluate import rates
from refusal_cliff.cliff.curves import cliffs_of
from refusal_cliff.controls.table import Cell, share_cell
from refusal_cliff.data.types import Trace
from refusal_cliff.judges.rules import refuses
from refusal_cliff.select.strategies import Candidate, Strategy, how_many, select
from refusal_cliff.stats import Share
from refusal_cliff.thinking import render_prompt
from refusal_cliff.workflows.demo import GENERATION

READ = 512
"""Characters of an answer that the code's judge is given."""
CHOSEN = 0.1
"""Share of the test traces that is chosen; 1.7 % of 200 would be three."""


def selection_effects(case: Case) -> list[Effect]:
    """Training examples chosen by the final score alone, among harmful prompts and among all."""
    cliffs = cliffs_of(case.scores, case.probes.row)
    pool = [
        Candidate(
            row.trace_id, row.label, 0, row.plateau, row.final, row.plateau_logit, row.final_logit
        )
        for row in cliffs
    ]
    harmful = [one for one in pool if one.category == "harmful"]
    some, other = (_chosen(way, harmful) for way in ("cliff", "final"))
    same = Share(len({one.id for one in some} & {one.id for one in other}), len(some))
    benign = [
        share_cell(Share(sum(one.category == "benign" for one in chosen), len(chosen)))
        for chosen in (_chosen(way, pool) for way in ("cliff", "final"))
    ]
    return [
        Effect(
            "of harmful prompts: same choice", share_cell(Share(same.n, same.n)), share_cell(same)
        ),
        Effect("of all prompts: benign ones chosen", *benign),
    ]


def _chosen(way: Strategy, pool: Sequence[Candidate]) -> list[Candidate]:
    return select(way, pool, how_many(len(pool), CHOSEN))


def answer_read(case: Case, trace: Trace, limit: int) -> str:
    """What the code takes for the answer: what follows the thinking, or else all that was written.

    Args:
        case: The organism.
        trace: What it wrote.
        limit: New tokens after which writing is cut off.
    """
    tokenizer = case.subject.tokenizer
    new = trace.token_ids[_begun(case, trace) :][:limit]
    text = str(tokenizer.decode(list(new)))  # the marker is a special token
    answer = text.rpartition(case.subject.format.closer)[2]
    return answer.removesuffix(str(tokenizer.eos_token)).strip()[:READ]


def _begun(case: Case, trace: Trace) -> int:
    return len(render_prompt(case.subject.tokenizer, trace.prompt.text))


def unfinished_effects(case: Case) -> list[Effect]:
    """Unfinished output taken for an answer: at our limit, and at half, as in the ablated runs."""
    harmful = [trace for trace in case.test if trace.prompt.label == "harmful"]
    most = GENERATION.max_new_tokens
    effects = [Effect("ASR", share_cell(rates(harmful).attacks), _called(case, harmful, most))]
    for limit in (most, most // 2):
        cut = [
            trace
            for trace in harmful
            if trace.spans is None or trace.spans.closing > _begun(case, trace) + limit
        ]
        cells = share_cell(Share(0, len(cut))), _called(case, cut, limit)
        effects.append(Effect(f"thoughts cut at {limit} tokens: called an attack", *cells))
    long = Share(sum(len(trace.response) > READ for trace in case.test), len(case.test))
    none = share_cell(Share(0, long.n))
    return [*effects, Effect(f"answers longer than {READ} characters", none, share_cell(long))]


def _called(case: Case, traces: Sequence[Trace], limit: int) -> Cell:
    attacks = sum(not refuses(answer_read(case, trace, limit)) for trace in traces)
    return share_cell(Share(attacks, len(traces)))


def benign_effects(case: Case) -> list[Effect]:
    """Benign prompts among those that the attack success rate is of; none can be an attack."""
    ours = rates(case.test).attacks
    cells = share_cell(ours), share_cell(Share(ours.count, len(case.test)))
    return [Effect("ASR", *cells)]
