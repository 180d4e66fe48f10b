"""Do heads chosen by what they do together restore refusal, where the top of a ranking does not?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from refusal_cliff.controls.arms import COLUMNS, UNCHANGED, Arm, arm_rows, parts
from refusal_cliff.controls.table import ControlTable, cell_text
from refusal_cliff.data.traces import read_traces
from refusal_cliff.heads.find import JointSearch
from refusal_cliff.heads.table import budget, select_heads
from refusal_cliff.io import read_as
from refusal_cliff.model.subject import Head, Subject
from refusal_cliff.organisms import planted_heads
from refusal_cliff.run.pipeline import Job
from refusal_cliff.stages.ablated import Answers
from refusal_cliff.stages.study import Study

FOUND = "heads found out"
TOP = "top of the ranking out"
TOGETHER = "chosen together out"
PLANTED = "planted heads out"


def measure(study: Study, job: Job) -> ControlTable:
    """The test prompts answered again without other sets of heads than the run has taken out.

    The top of the ranking, proven or not, and as many heads as the paper takes out (3 % of all) by
    joint effect; for an organism, its planted heads, too.
    """
    subject = study.subject
    before = study.traces(job, "test")
    rows = study.heads(job)
    greedy = read_as(study.input(job, "joint.json"), JointSearch).greedy
    found = study.taken_out(job)
    sets: dict[str, Sequence[Head]] = {
        TOP: select_heads(rows, proven=False),
        TOGETHER: greedy[: budget(len(rows))],
        PLANTED: planted_of(subject),
    }
    tried = {name: heads for name, heads in sets.items() if heads and {*heads} != {*found}}
    prompts = [trace.prompt for trace in before]
    row_heads = [heads for heads in tried.values() for _ in prompts]
    written = Answers(study, job, rows, before).write(prompts * len(tried), row_heads)
    arms, taken_out = {UNCHANGED: Arm(before)}, dict[str, Sequence[Head]]()
    if found:
        arms[FOUND] = Arm(read_traces(study.input(job, "ablated.parquet")))
        taken_out[FOUND] = found
    for name, answered in zip(tried, parts(written, len(prompts)), strict=True):
        arms[name] = Arm(answered)
    return together_table(arms, taken_out | tried, study.seed)


def planted_of(subject: Subject) -> list[Head]:
    """The heads through which an organism was damaged; empty for any other model."""
    known = [] if subject.source is None else planted_heads(subject.source)
    return [Head(layer, index) for layer, index in known]


def together_table(
    arms: Mapping[str, Arm], heads: Mapping[str, Sequence[Head]], seed: int = 0
) -> ControlTable:
    """Compare sets of heads by what the model does without them.

    Args:
        arms: By name, ``UNCHANGED`` among them.
        heads: What is out in each other arm.
        seed: Seed of the bootstrap.
    """
    rows = {name: row[:-1] for name, row in arm_rows(arms, UNCHANGED, seed).items()}  # no scores
    rates = {name: cell_text(row[0], alone=False) for name, row in rows.items()}
    told = "; ".join(
        f"{name} ({len(heads[name])}): {rate}" for name, rate in rates.items() if name in heads
    )
    named = "; ".join(f"{name}: {' '.join(map(str, some))}" for name, some in heads.items())
    return ControlTable(
        question="Do heads chosen by what they do together restore refusal?",
        source="greedy selection by exact joint effect, like Sahara, 2410.13708",
        columns=COLUMNS[:-1],
        rows=rows,
        finding=f"ASR {rates[UNCHANGED]} as it is. {told[:1].upper()}{told[1:]}.",
        notes=(
            f"{named}. Heads are ranked and chosen on the prompts that the probe is fitted on; the "
            "rates are of the others, with the thinking generated again. Changes are paired by "
            "prompt.",
        ),
    )
