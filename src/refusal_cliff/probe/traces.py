"""Probes fitted on judged traces: their states at the last closing token, classes, and a fit."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from refusal_cliff.data.traces import Trace, closed, verdict_groups
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
    refused, benign = groups["refused"], groups["benign"]
    states = closing_states(subject, [*refused, *benign], read_point, progress)
    fitting = _Fitting(subject, states, read_point, seed)
    return fitting.probes(refused, benign, "refused-vs-benign", "logistic")


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
    were complied with, refused traces against all that were answered.

    Args:
        subject: As for `fit_on_traces`, as are the others.
        traces: Judged traces.
        read_point: Where probes read.
        seed: Seed of split, shuffles and bootstrap.
        progress: Called with (traces done, traces).

    Raises:
        RefusalCliffError: A class is too small, or a state is not a finite number.
    """
    groups = verdict_groups(closed(traces))
    refused, benign, complied = groups["refused"], groups["benign"], groups["complied"]
    rules: list[tuple[LabelRule, Estimator, list[Trace]]] = [
        ("refused-vs-benign", "logistic", benign),
        ("refused-vs-benign", "difference-of-means", benign),
    ]
    if len({trace.prompt.group for trace in complied}) >= MIN_PER_CLASS:
        rules.append(("refused-vs-complied", "logistic", [*benign, *complied]))
    states = closing_states(subject, [*refused, *benign, *complied], read_point, progress)
    fitting = _Fitting(subject, states, read_point, seed)
    return [fitting.probes(refused, negative, rule, by) for rule, by, negative in rules]


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
    positions = [trace.spans.last_closing for trace in traces if trace.spans is not None]
    reader = PositionResiduals(positions, probed_layers(subject, read_point), subject.width)
    tap = at_read_point(reader, subject, read_point)
    capture(subject, [trace.token_ids for trace in traces], [tap], progress=progress)
    return {trace.prompt.id: reader.values[row] for row, trace in enumerate(traces)}


def probed_layers(subject: Subject, read_point: ReadPoint) -> range:
    """Probed blocks: all of them, or the one that the final norm follows."""
    last = subject.n_layers
    return range(1 if read_point == "resid_post" else last, last + 1)


class _Fitting:
    """What all probes fitted on one model's traces share.

    Args:
        subject: The model.
        states: Of all its traces.
        read_point: Where they were read.
        seed: Seed of the fits.
    """

    def __init__(self, subject: Subject, states: States, read_point: ReadPoint, seed: int) -> None:
        self._subject, self._states, self._seed = subject, states, seed
        self._read_point: ReadPoint = read_point

    def probes(
        self,
        refused: Sequence[Trace],
        negative: Sequence[Trace],
        rule: LabelRule,
        estimator: Estimator,
    ) -> ProbeSet:
        traces = [*refused, *negative]
        if not traces:
            raise RefusalCliffError(
                f"{self._subject.name} did not close its thinking in any trace, so there is "
                "nothing to probe. Allow longer answers (--max-new-tokens)."
            )
        return fit_probes(
            np.stack([self._states[trace.prompt.id] for trace in traces]),
            [1] * len(refused) + [0] * len(negative),
            [trace.prompt.group for trace in traces],
            probed_layers(self._subject, self._read_point),
            label_rule=rule,
            estimator=estimator,
            seed=self._seed,
            provenance=provenance_of(self._subject, traces, self._read_point),
        )
