"""The same prompts under several treatments: answered, and one row each with the change."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from scipy.special import expit

from refusal_cliff.answers.evaluate import rates
from refusal_cliff.answers.writing import thinking_length
from refusal_cliff.cliff.scores import TraceScores, score_traces
from refusal_cliff.controls.table import Cell, ControlTable, mean_cell, share_cell
from refusal_cliff.data.types import Label, Trace, complies
from refusal_cliff.generate.again import prompt_length
from refusal_cliff.model.subject import Head, Subject
from refusal_cliff.probe.fit import ProbeSet
from refusal_cliff.run.pipeline import Job
from refusal_cliff.stages.asking import each_once
from refusal_cliff.stages.study import Study
from refusal_cliff.stats import wilson

MOST: dict[Label, int] = {"harmful": 100, "benign": 40}
"""Test prompts of each label that are answered again under every treatment."""
UNCHANGED = "nothing changed"

COLUMNS = (
    "ASR",
    "change of ASR",
    "refused",
    "benign answered",
    "thinking tokens",
    "final score",
)


@dataclass(frozen=True, slots=True)
class Arm:
    """One treatment of all prompts.

    Attributes:
        traces: Judged, one a prompt, in the order of every other arm.
        finals: Score at the last closing token by prompt id, where it can be told.
    """

    traces: Sequence[Trace]
    finals: Mapping[str, float] = field(default_factory=dict)

    @property
    def harmful(self) -> list[Trace]:
        """The traces of harmful prompts."""
        return [trace for trace in self.traces if trace.prompt.label == "harmful"]


def arm_rows(arms: Mapping[str, Arm], reference: str, seed: int = 0) -> dict[str, tuple[Cell, ...]]:
    """``COLUMNS`` of each arm.

    ``thinking tokens`` and ``final score`` are means over the harmful prompts. A prompt whose
    answer never ended counts neither as complied with nor as refused.

    Args:
        arms: By name, all of the same prompts.
        reference: The arm that changes are measured against.
        seed: Seed of the bootstrap over prompt groups.
    """
    return {name: _cells(arm, arms[reference], seed) for name, arm in arms.items()}


def _cells(arm: Arm, reference: Arm, seed: int) -> tuple[Cell, ...]:
    found, harmful = rates(arm.traces), arm.harmful
    scored = [trace for trace in harmful if trace.prompt.id in arm.finals]
    return (
        share_cell(found.attacks),
        Cell(None) if arm is reference else change_of_asr(reference, arm, seed),
        share_cell(found.refused),
        share_cell(found.answered),
        mean_cell([thinking_length(t) for t in harmful], _groups(harmful), seed),
        mean_cell([arm.finals[t.prompt.id] for t in scored], _groups(scored), seed),
    )


def change_of_asr(before: Arm, after: Arm, seed: int = 0) -> Cell:
    """ASR of one arm − ASR of another, paired by prompt.

    Raises:
        ValueError: The arms are of different prompts.
    """
    pairs = list(zip(before.harmful, after.harmful, strict=True))
    if any(old.prompt.id != new.prompt.id for old, new in pairs):
        raise ValueError("the arms hold different prompts")
    changes = [complies(new.verdict) - complies(old.verdict) for old, new in pairs]
    groups = [old.prompt.group for old, _ in pairs]
    return never_certain(mean_cell(changes, groups, seed), groups)


def never_certain(cell: Cell, groups: Sequence[str], lowest: float = -1.0) -> Cell:
    """The same mean of shares, its interval wider than a point where all values are the same.

    A bootstrap of n equal values knows no doubt. Wilson's interval of 0 in n does: what was never
    seen in n prompts may be as frequent as its upper end.

    Args:
        cell: A mean of numbers from ``lowest`` to 1.
        groups: Group of each value.
        lowest: Least possible value.
    """
    if cell.value is None or cell.interval is None or cell.interval[0] != cell.interval[1]:
        return cell
    doubt = wilson(0, len(set(groups)))[1]
    interval = (max(lowest, cell.value - doubt), min(1.0, cell.value + doubt))
    return replace(cell, interval=interval)


def _groups(traces: Sequence[Trace]) -> list[str]:
    return [trace.prompt.group for trace in traces]


def first_of_each(traces: Sequence[Trace]) -> list[Trace]:
    """A trace of each of as many prompts of each label as `MOST` says, the first ones."""
    found = {trace.prompt.id: trace for trace in traces}
    prompts = [trace.prompt for trace in traces]
    asked = (each_once(prompts, label)[:most] for label, most in MOST.items())
    return [found[prompt.id] for some in asked for prompt in some]


def limited(table: ControlTable) -> ControlTable:
    """The table, and how many prompts were asked at most."""
    most = " and ".join(f"{n} {label}" for label, n in MOST.items())
    note = f"Of the test prompts, the first {most} ones at most are asked."
    return replace(table, notes=(*table.notes, note))


def write_on(
    study: Study,
    traces: Sequence[Trace],
    begun: Sequence[Sequence[int]],
    job: Job,
    heads: Sequence[Head] = (),
    tokens: Sequence[range] | None = None,
) -> list[Trace]:
    """Judged answers to the traces' prompts that begin with given tokens.

    Whatever a row draws depends on its own prompt and tokens alone, so that a trace which itself
    begins with them is its own answer where no head is out, and is not written again.

    Args:
        study: The model, and how it writes.
        traces: Where prompts are taken from.
        begun: What each answer begins with.
        job: Told how many are done.
        heads: Heads to take out.
        tokens: At which tokens of each row, see `generate`.
    """
    own = [trace.token_ids[prompt_length(study.subject, trace) :] for trace in traces]
    new = [
        row
        for row, (said, ids) in enumerate(zip(own, begun, strict=True))
        if heads or said[: len(ids)] != tuple(ids)
    ]
    written = study.write(
        [traces[row].prompt for row in new],
        job,
        [heads] * len(new),
        begun=[begun[row] for row in new],
        row_tokens=None if tokens is None else [tokens[row] for row in new],
    )
    again = dict(zip(new, written, strict=True))
    return [again.get(row, trace) for row, trace in enumerate(traces)]


def parts(traces: Sequence[Trace], size: int) -> list[list[Trace]]:
    """Cut into parts of one size."""
    return [list(traces[at : at + size]) for at in range(0, len(traces), size)]


def final_scores(subject: Subject, traces: Sequence[Trace], probes: ProbeSet) -> dict[str, float]:
    """Score at the last closing token by prompt id, of the traces whose thinking closed."""
    scored = [trace for trace in traces if trace.spans is not None]
    return finals_of(score_traces(subject, scored, probes), probes)


def finals_of(scores: Sequence[TraceScores], probes: ProbeSet) -> dict[str, float]:
    """Score at the last closing token by prompt id."""
    return {
        one.trace_id: float(expit(one.logits[probes.row, one.spans.last_closing])) for one in scores
    }
