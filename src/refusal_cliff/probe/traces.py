"""Probes fitted on judged traces: their states at the last closing token, classes, and a fit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from refusal_cliff.data.traces import closed, verdict_groups
from refusal_cliff.data.types import Trace, closed_spans
from refusal_cliff.errors import RefusalCliffError
from refusal_cliff.model.capture import PositionResiduals, capture
from refusal_cliff.model.final_norm import at_read_point
from refusal_cliff.model.subject import Subject
from refusal_cliff.probe.direction import Estimator
from refusal_cliff.probe.fit import (
    MIN_PER_CLASS,
    LabelRule,
    ProbeSet,
    ReadPoint,
    fit_probes,
    provenance_of,
)
from refusal_cliff.progress import Progress

States = dict[str, NDArray[np.float32]]
"""By prompt id, [probed layers, d]."""
Rule = tuple[LabelRule, Estimator, tuple[str, ...]]
"""Name of the rule, how the direction is found, and the negative classes of `verdict_groups`."""
_MAIN: Rule = ("refused-vs-benign", "logistic", ("benign",))


def fit_on_traces(
    subject: Subject,
    traces: Sequence[Trace],
    *,
    read_point: ReadPoint = "resid_post",
    seed: int = 0,
    progress: Progress | None = None,
) -> ProbeSet:
    """The probes of a model: refused harmful traces against answered benign ones (paper §3.1).

    Args:
        subject: The model that wrote the traces.
        traces: Judged traces, at least ``MIN_PER_CLASS`` of different prompts in either class;
            those that cannot be scored are passed over, see `closed`.
        read_point: Where probes read: ``final_norm`` as in the paper, at the last block alone.
        seed: Seed of split, shuffles and bootstrap.
        progress: Called with (traces done, traces).

    Raises:
        RefusalCliffError: A class is too small, or a state is not a finite number.
    """
    groups = verdict_groups(closed(traces))
    every = [*groups["refused"], *groups["benign"]]
    return _fitted(subject, groups, every, [_MAIN], read_point, seed, progress)[0]


def fit_by_rules(
    subject: Subject,
    traces: Sequence[Trace],
    *,
    read_point: ReadPoint = "resid_post",
    seed: int = 0,
    progress: Progress | None = None,
) -> list[ProbeSet]:
    """The probes of `fit_on_traces`, then others that should agree, in one pass over the model.

    The others are the difference of means of the same classes and, where enough harmful prompts
    were complied with, refused traces against all that were answered. Arguments and errors are
    those of `fit_on_traces`.
    """
    groups = verdict_groups(closed(traces))
    rules = [_MAIN, ("refused-vs-benign", "difference-of-means", ("benign",))]
    if len({trace.prompt.group for trace in groups["complied"]}) >= MIN_PER_CLASS:
        rules.append(("refused-vs-complied", "logistic", ("benign", "complied")))
    every = [*groups["refused"], *groups["benign"], *groups["complied"]]
    return _fitted(subject, groups, every, rules, read_point, seed, progress)


def closing_states(
    subject: Subject,
    traces: Sequence[Trace],
    read_point: ReadPoint = "resid_post",
    progress: Progress | None = None,
) -> States:
    """States at the last closing token by prompt id, each [probed layers, d], as probes read them.

    Args:
        subject: The model that wrote the traces.
        traces: Closed traces, see `closed`.
        read_point: Where probes read.
        progress: Called with (traces done, traces).
    """
    positions = [closed_spans(trace).last_closing for trace in traces]
    reader = PositionResiduals(positions, probed_layers(subject, read_point), subject.width)
    tap = at_read_point(reader, subject, read_point)
    capture(subject, [trace.token_ids for trace in traces], [tap], progress=progress)
    return {trace.prompt.id: reader.values[row] for row, trace in enumerate(traces)}


def probed_layers(subject: Subject, read_point: ReadPoint) -> range:
    """Probed blocks: all of them, or the one that the final norm follows."""
    last = subject.n_layers
    return range(1 if read_point == "resid_post" else last, last + 1)


def _fitted(
    subject: Subject,
    groups: Mapping[str, Sequence[Trace]],
    every: Sequence[Trace],
    rules: Sequence[Rule],
    read_point: ReadPoint,
    seed: int,
    progress: Progress | None,
) -> list[ProbeSet]:
    """The probes of each rule, from the states of every trace, among them all that rules use."""
    states = closing_states(subject, every, read_point, progress)
    found = []
    for rule, estimator, negative in rules:
        refused, others = groups["refused"], [t for name in negative for t in groups[name]]
        traces = [*refused, *others]
        if not traces:
            raise RefusalCliffError(
                f"None of the traces of {subject.name} can be probed: a probe reads where the "
                "thinking closed, and a harmful request was refused or a benign one answered. "
                "Allow longer answers (max_new_tokens), or give more prompts of either kind."
            )
        found.append(
            fit_probes(
                np.stack([states[trace.prompt.id] for trace in traces]),
                [1] * len(refused) + [0] * len(others),
                [trace.prompt.group for trace in traces],
                probed_layers(subject, read_point),
                label_rule=rule,
                estimator=estimator,
                seed=seed,
                provenance=provenance_of(subject, traces, read_point),
            )
        )
    return found
