"""From traces and a probe to the heads that are taken out: all measured, sets searched, proven."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from refusal_cliff.cliff.verdict import MIN_COMPLIED
from refusal_cliff.data.traces import closed, verdict_groups
from refusal_cliff.data.types import Trace
from refusal_cliff.heads.joint import (
    BEAM,
    JOINT,
    Comparison,
    HeadSet,
    JointEffects,
    compare,
    enough_together,
    select_jointly,
    strongest_of_any,
)
from refusal_cliff.heads.table import (
    DEFAULT_METHOD,
    HeadRow,
    budget,
    measure_heads,
    ranked,
    select_heads,
)
from refusal_cliff.heads.trials import sizes
from refusal_cliff.model.packing import on_packed_weights
from refusal_cliff.model.subject import Subject
from refusal_cliff.probe.fit import Probe
from refusal_cliff.progress import Progress
from refusal_cliff.stats import Interval, bootstrap_mean

TRACES, JOINT_TRACES, CANDIDATES = 60, 40, 12
"""Traces of a kind that heads are measured on, those that sets are chosen by, and the heads from
the top of every ranking that they are chosen from."""
DECIDING, LEAST_DECIDING = 30, 5
"""Fitting traces by which a joint set is proven, at most and at least."""
STRONGER = 2.0
"""What the heads are scaled by in the reverse control, which writes no weights."""


@dataclass(frozen=True, slots=True)
class FoundHeads:
    """The heads that suppress refusal, and what every head was measured to do.

    Attributes:
        chosen: The heads to take out; empty where none is proven.
        method: How they were chosen: ``JOINT``, or a ranking of ``METHODS``.
        rows: Every head.
        model: Fingerprint of the model that they were measured on.
    """

    chosen: HeadSet
    method: str
    rows: tuple[HeadRow, ...]
    model: str


@dataclass(frozen=True, slots=True)
class Reverse:
    """The reverse control: the heads made stronger instead of taken out.

    Attributes:
        scale: What their outputs are multiplied by.
        mean: Mean rise of the final score logit.
        interval: Its bootstrap interval over prompt groups.
        n: Traces.
    """

    scale: float
    mean: float
    interval: Interval
    n: int


@dataclass(frozen=True, slots=True)
class JointSearch:
    """Sets of heads chosen by what they do together: the content of ``joint.json``.

    Attributes:
        chosen: The set that is taken out; ``None`` where none is proven.
        greedy: As many heads as the largest dose, in the order in which they were added.
        beam: The best few by beam search.
        compared: By search, its sets against as many heads of the top of the ranking.
        reverse: Of the heads that are taken out.
    """

    chosen: HeadSet | None
    greedy: HeadSet
    beam: HeadSet
    compared: dict[str, list[Comparison]]
    reverse: Reverse


@on_packed_weights
def find_heads(
    subject: Subject,
    traces: Sequence[Trace],
    probe: Probe,
    *,
    most: int = TRACES,
    joint_traces: int = JOINT_TRACES,
    candidates: int = CANDIDATES,
    seed: int = 0,
    progress: Progress | None = None,
) -> FoundHeads:
    """The refusal suppression heads of a model, at most 3 % of all (paper §5).

    A set chosen by joint effect on the first traces is taken where it raises the final score beyond
    doubt on the others; else the proven heads of the ``direct`` ranking.

    Args:
        subject: The model that wrote the traces.
        traces: Judged traces, those that the probe was fitted on; never those that rates are
            measured on afterwards.
        probe: The probe whose score counts.
        most: Traces of a kind that heads are measured on.
        joint_traces: Of these, those that a set is chosen by; the traces after them prove it.
        candidates: Heads from the top of every ranking that a set is chosen from.
        seed: Seed of the bootstraps.
        progress: Called with (traces done, traces).
    """
    rows = measure_on_traces(subject, traces, probe, most=most, seed=seed, progress=progress)
    fit, size = explained(closed(traces)), budget(len(rows))
    together = None
    if len(fit) >= joint_traces + LEAST_DECIDING:
        effects = JointEffects(subject, fit[:joint_traces], probe)
        order = select_jointly(effects, strongest_of_any(rows, candidates), size)[-1]
        together = _proven_together(subject, fit[joint_traces:], probe, order, seed)
    chosen = taken_out(rows, together)
    method = DEFAULT_METHOD if together is None else JOINT
    return FoundHeads(chosen, method, tuple(rows), subject.fingerprint)


@on_packed_weights
def measure_on_traces(
    subject: Subject,
    traces: Sequence[Trace],
    probe: Probe,
    *,
    most: int = TRACES,
    seed: int = 0,
    progress: Progress | None = None,
) -> list[HeadRow]:
    """Measure every head on the first traces of each kind, half as many benign ones.

    Args:
        subject: The model that wrote the traces.
        traces: Judged traces; those that cannot be scored are passed over.
        probe: The probe whose score counts.
        most: Traces of each kind.
        seed: Seed of the bootstraps.
        progress: Called with (traces done, traces).
    """
    scored = closed(traces)
    groups = verdict_groups(scored)
    return measure_heads(
        subject,
        explained(scored)[:most],
        groups["refused"][:most],
        groups["benign"][: most // 2],
        probe,
        seed=seed,
        progress=progress,
    )


def explained(traces: Sequence[Trace]) -> list[Trace]:
    """The judged traces whose fall heads are to explain: complied ones where there are enough."""
    groups = verdict_groups(traces)
    complied, refused = groups["complied"], groups["refused"]
    return complied if len(complied) >= MIN_COMPLIED else [*complied, *refused]


def taken_out(rows: Sequence[HeadRow], together: HeadSet | None, *, proven: bool = True) -> HeadSet:
    """The heads to take out: a set that is proven, else those of the default ranking.

    Args:
        rows: All heads.
        together: A set that is proven to act together, if there is one.
        proven: As for `select_heads`.
    """
    return together or tuple(select_heads(rows, proven=proven))


@on_packed_weights
def search_sets(
    subject: Subject,
    rows: Sequence[HeadRow],
    fit: Sequence[Trace],
    held_out: Sequence[Trace],
    probe: Probe,
    *,
    fractions: Sequence[float],
    joint_traces: int = JOINT_TRACES,
    most: int = TRACES,
    candidates: int = CANDIDATES,
    proven: bool = True,
    seed: int = 0,
    progress: Progress | None = None,
) -> JointSearch:
    """Sets chosen by joint effect on fitting traces, compared with tops of the ranking on others.

    Args:
        subject: The model.
        rows: All heads, as measured.
        fit: Judged traces that the probe was fitted on.
        held_out: Judged traces of other prompts.
        probe: The probe whose score counts.
        fractions: Sizes that are compared, as shares of all heads.
        joint_traces: Fitting traces that sets are chosen by; those after them prove one.
        most: Most fitting traces to choose by, and most held-out ones to compare on.
        candidates: Heads from the top of every ranking that sets are chosen from.
        proven: Whether a set may be proven at all; the paper takes the ranking.
        seed: Seed of the bootstraps.
        progress: Called with (size done, sizes).
    """
    fit, held_out = explained(closed(fit)), explained(closed(held_out))[:most]
    wanted = [n for n in sizes(len(rows), fractions) if n]
    choosing = JointEffects(subject, fit[:most][:joint_traces], probe)
    among, few = strongest_of_any(rows, candidates), budget(len(rows))
    greedy = select_jointly(choosing, among, max([*wanted, 1]), progress=progress)[-1]
    beam = select_jointly(choosing, among, few, beam=BEAM)[-1]
    effects = JointEffects(subject, held_out, probe)
    groups = [trace.prompt.group for trace in held_out]
    top = ranked(rows)
    tried = {"greedy": [greedy[:n] for n in wanted if n <= len(greedy)], "beam": [beam]}
    compared = {
        name: [compare(effects, groups, one, tuple(top[: len(one)]), seed) for one in sets]
        for name, sets in tried.items()
    }
    deciding = fit[joint_traces:] if proven else []
    together = _proven_together(subject, deciding, probe, greedy[:few], seed)
    stronger = effects.of([taken_out(rows, together, proven=proven)], STRONGER)[:, 0]
    interval = bootstrap_mean(stronger, groups, seed=seed)
    reverse = Reverse(STRONGER, float(stronger.mean()), interval, len(groups))
    return JointSearch(together, greedy, beam, compared, reverse)


def _proven_together(
    subject: Subject, others: Sequence[Trace], probe: Probe, order: HeadSet, seed: int
) -> HeadSet | None:
    """The joint set, where it raises the score on fitting traces that it was not selected by."""
    deciding = others[:DECIDING]
    if len(deciding) < LEAST_DECIDING:
        return None
    effects = JointEffects(subject, deciding, probe)
    return enough_together(effects, [trace.prompt.group for trace in deciding], order, seed)
