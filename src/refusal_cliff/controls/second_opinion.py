"""A second opinion on heads: rankings by what they do to the answer, beside those by the probe."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence

import numpy as np

from refusal_cliff.controls.readings import Floats
from refusal_cliff.controls.table import Cell, ControlTable, cell_text
from refusal_cliff.controls.together import planted_of
from refusal_cliff.data.traces import closed, verdict_groups
from refusal_cliff.data.types import Trace
from refusal_cliff.heads.effects import TRACES_AT_ONCE
from refusal_cliff.heads.find import explained
from refusal_cliff.heads.joint import AnswerShifts, select_jointly
from refusal_cliff.heads.table import METHODS, HeadRow, budget
from refusal_cliff.model.subject import Head, Subject
from refusal_cliff.run.pipeline import Job
from refusal_cliff.stages.study import Study
from refusal_cliff.stats import counts_with_all, percentiles, spearman

SHIFT, CONTRAST, GROUP = "shift (Ships)", "shift, harmful less benign", "group search (Sahara)"
PROBE_METHODS = ("direct", "causal")
RESAMPLES = 500
TRACES, BENIGN, CANDIDATES = 40, 20, 12
"""Fitting traces of either kind, and heads that the group search chooses from."""


def measure(study: Study, job: Job) -> ControlTable:
    """Shifts of all heads on the fitting traces that the run measured heads on, and a group."""
    subject = study.subject
    rows = study.heads(job)
    traces = closed(study.traces(job, "fit"))
    harmful, benign = explained(traces)[:TRACES], verdict_groups(traces)["benign"][:BENIGN]
    singles = [row.head for row in rows]
    on_harmful, on_benign = (shifts(subject, some, singles) for some in (harmful, benign))
    order = np.argsort(-on_harmful.mean(0), kind="stable")[:CANDIDATES]
    effects = AnswerShifts(subject, harmful[:TRACES_AT_ONCE])
    candidates = [singles[place] for place in order]
    group = select_jointly(effects, candidates, budget(len(rows)), progress=job.progress)[-1]
    return second_opinion(
        rows,
        (on_harmful, [trace.prompt.group for trace in harmful]),
        (on_benign, [trace.prompt.group for trace in benign]),
        group,
        planted_of(subject),
        study.seed,
    )


def shifts(subject: Subject, traces: Sequence[Trace], heads: Sequence[Head]) -> Floats:
    """Shift of each head alone, [traces, heads]; a few traces at a time."""
    found = [
        AnswerShifts(subject, traces[start : start + TRACES_AT_ONCE]).of([(h,) for h in heads])
        for start in range(0, len(traces), TRACES_AT_ONCE)
    ]
    return np.concatenate(found)


def second_opinion(
    rows: Sequence[HeadRow],
    harmful: tuple[Floats, Sequence[str]],
    benign: tuple[Floats, Sequence[str]],
    group: Sequence[Head],
    planted: Collection[Head] = (),
    seed: int = 0,
) -> ControlTable:
    """Compare rankings by shift of the answer with those by the refusal direction.

    Args:
        rows: Every head as the run measured it.
        harmful: Shift of each head on each trace whose fall is explained, [traces, heads] in the
            order of ``rows``, and the group of each trace's prompt.
        benign: The same on benign traces.
        group: Heads of the group search, in the order in which they were added.
        planted: Heads that are known to be guilty; empty where nothing is known.
        seed: Seed of the bootstrap over prompt groups.
    """
    size = budget(len(rows))
    places = {head: place for place, head in enumerate(group)}
    drawn = _means(*harmful, seed)
    contrast = drawn - _means(*benign, seed)
    scores = {
        **{name: np.array([[METHODS[name](row) for row in rows]]) for name in PROBE_METHODS},
        SHIFT: drawn,
        CONTRAST: contrast,
        GROUP: -np.array([[places.get(row.head, len(group)) for row in rows]], dtype=float),
    }
    columns = _columns(rows, size, planted)
    counted = {SHIFT: len(harmful[0]), CONTRAST: len(harmful[0]) + len(benign[0])}
    cells = {
        name: tuple(
            Cell(None) if name == GROUP and "rank" in column else _cell(of, values, counted, name)
            for column, of in columns.items()
        )
        for name, values in scores.items()
    }
    tops = {name: _top(values[0], size) for name, values in scores.items()}
    return ControlTable(
        question="Do heads that move the answer agree with heads that lower the refusal score?",
        source="Ships and Sahara, 2410.13708, over the closing tokens",
        columns=tuple(columns),
        rows=cells,
        finding=_finding(rows, tops, cells),
        notes=(
            "The shift of a head is the Kullback-Leibler divergence of the first answer token's "
            "distribution with and without it over the closing tokens; it has no sign. The group "
            f"search adds the head with the largest joint shift, {size} times. Shares are of the "
            f"first {size} heads; heads after the probe's block are left out of rank correlations. "
            "Intervals: a bootstrap over the prompts that shifts are measured on; the rankings "
            "they are compared with are kept as they are.",
        ),
    )


def _means(values: Floats, groups: Sequence[str], seed: int) -> Floats:
    """Mean over traces, then that of each bootstrap draw, [1 + draws, heads]."""
    counts = counts_with_all(groups, seed, RESAMPLES)
    return counts @ values.astype(np.float64) / counts.sum(1, keepdims=True)


def _top(scores: Floats, size: int) -> list[int]:
    """Numbers of the heads ranked first."""
    return np.argsort(-scores, kind="stable")[:size].tolist()


def _columns(
    rows: Sequence[HeadRow], size: int, planted: Collection[Head]
) -> Mapping[str, Callable[[Floats], float]]:
    """What is computed of each ranking, from one score a head."""
    acting = np.array([row.acts for row in rows])
    others = {name: np.array([METHODS[name](row) for row in rows]) for name in PROBE_METHODS}
    others["causal, unsigned"] = np.abs(others["causal"])
    guilty = np.array([row.head in planted for row in rows])

    def correlation(other: Floats) -> Callable[[Floats], float]:
        return lambda scores: spearman(scores[acting], other[acting])

    def overlap(other: Floats) -> Callable[[Floats], float]:
        top = set(_top(other, size))
        return lambda scores: len(top & set(_top(scores, size))) / size

    def found(scores: Floats) -> float:
        return float(guilty[_top(scores, int(guilty.sum()))].mean())

    columns: dict[str, Callable[[Floats], float]] = {
        **{f"rank correlation with {name}": correlation(of) for name, of in others.items()},
        **{f"shared with {name}": overlap(of) for name, of in others.items()},
    }
    return {**columns, "planted found": found} if planted else columns


def _cell(
    of: Callable[[Floats], float], scores: Floats, counted: Mapping[str, int], name: str
) -> Cell:
    """A statistic of the scores, and its interval over the draws that follow them."""
    interval = percentiles(np.array([of(one) for one in scores[1:]])) if len(scores) > 1 else None
    return Cell(of(scores[0]), interval, counted.get(name))


def _finding(
    rows: Sequence[HeadRow],
    tops: Mapping[str, Sequence[int]],
    cells: Mapping[str, Sequence[Cell]],
) -> str:
    named = {name: ", ".join(str(rows[place].head) for place in top) for name, top in tops.items()}
    agreement = cells[SHIFT][0]
    return (
        f"The first heads by the shift of the answer are {named[SHIFT]}, those of the group search "
        f"{named[GROUP]}; by direct contribution {named['direct']}, by causal effect "
        f"{named['causal']}. Rank correlation of the shift with the direct contribution: "
        f"{cell_text(agreement)}."
    )
