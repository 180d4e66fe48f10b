"""Is the probe an artefact of its position or label? Probes trained elsewhere, in one table.

Reviewers of the paper asked for probes trained at all positions, for complied harmful traces among
the negatives and for a nonlinear probe; arXiv 2606.25013 finds the outcome readable at the first
thinking token already.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

import numpy as np
from numpy.typing import NDArray
from sklearn.neural_network import MLPClassifier

from refusal_cliff.controls.readings import A_CLIFF, LEVELS, Floats, Read
from refusal_cliff.controls.table import Cell, ControlTable
from refusal_cliff.data.traces import Trace
from refusal_cliff.thinking import Spans

Place: TypeAlias = Literal[
    "last closing token",
    "thinking tokens",
    "mean of the thinking",
    "first thinking token",
    "prompt end",
    "any token",
]
Rule: TypeAlias = Literal["refused-vs-benign", "refused-vs-complied", "harmful-vs-benign"]

CLOSING: Place = "last closing token"
THINKING: Place = "thinking tokens"
PLACES: tuple[Place, ...] = get_args(Place)[:-1]
"""Where the probes of the table are trained; ``any token`` serves the control of directions."""
THINKING_TOKENS = 8
"""Tokens of one trace's thinking that a probe of thinking tokens is fitted on, evenly spaced."""
HIDDEN_UNITS = 16
MIN_TESTED = 5
"""Prompt groups of each class below which a transfer is not tested."""
SHUFFLED = "shuffled labels"
COLUMNS = ("AUROC", *LEVELS)
_CERTAIN = 1e-9
_UNUSED = -1


def positions_of(spans: Spans) -> dict[Place, list[int]]:
    """Tokens of a trace at which a probe of each place reads; those of a mean are averaged.

    Args:
        spans: Of a trace with thinking.
    """
    thinking = range(spans.prompt, spans.thinking)
    spread = np.linspace(thinking[0], thinking[-1], min(THINKING_TOKENS, len(thinking)))
    spaced = spread.round().astype(int).tolist()
    return {
        "last closing token": [spans.last_closing],
        "thinking tokens": spaced,
        "mean of the thinking": list(thinking),
        "first thinking token": [thinking[0]],
        "prompt end": [spans.prompt - 1],
        "any token": [spans.prompt - 1, *spaced, spans.last_closing],
    }


def states_of_places(states: Floats, spans: Spans) -> dict[Place, Floats]:
    """What probes of each place read of one trace, each [k, d].

    Args:
        states: [tokens, d].
        spans: Of the trace.
    """
    found: dict[Place, Floats] = {place: states[at] for place, at in positions_of(spans).items()}
    found["mean of the thinking"] = found["mean of the thinking"].mean(0, keepdims=True)
    return found


def label_of(trace: Trace, rule: Rule) -> int:
    """1, 0, or -1 for a judged trace that the rule does not use."""
    harmful = trace.prompt.label == "harmful"
    if rule == "harmful-vs-benign":
        return int(harmful)
    if trace.verdict == "refused":
        return 1 if harmful else _UNUSED
    return _UNUSED if harmful and rule == "refused-vs-benign" else 0


@dataclass(frozen=True, slots=True)
class Rows:
    """States to fit or test a probe on.

    Attributes:
        states: [n, d].
        labels: [n], 0 or 1.
        groups: Of the prompts; several rows of one trace share theirs.
    """

    states: Floats
    labels: NDArray[np.int64]
    groups: list[str]

    def has(self, n: int) -> bool:
        """Whether each class has rows of ``n`` different groups."""
        names = np.array(self.groups)
        return all(len(set(names[self.labels == value])) >= n for value in (0, 1))


def rows_of(
    traces: Sequence[Trace], states: Mapping[str, Mapping[Place, Floats]], place: Place, rule: Rule
) -> Rows:
    """The rows of one place under one label rule.

    Args:
        traces: Judged traces.
        states: By prompt id, what `states_of_places` gave.
        place: Where.
        rule: Which traces are 1 and 0.
    """
    used = [trace for trace in traces if label_of(trace, rule) != _UNUSED]
    parts = [states[trace.prompt.id][place] for trace in used]
    sizes = [len(part) for part in parts]
    return Rows(
        np.concatenate(parts) if parts else np.zeros((0, 1)),
        np.repeat(np.array([label_of(t, rule) for t in used], dtype=np.int64), sizes),
        [t.prompt.group for t, size in zip(used, sizes, strict=True) for _ in range(size)],
    )


def data_sets(traces: Sequence[Trace]) -> list[tuple[str, set[str], set[str]]]:
    """Pairs of data sets within the prompts, to fit on one and test on the other.

    Returns:
        Name, and the marks that a prompt to fit on must not have, or must have (one of the two
        sets is empty): each category held out; each tag held out, and fitted on alone.
    """
    categories = sorted({t.prompt.category for t in traces if t.prompt.category})
    tags = sorted({tag for t in traces for tag in t.prompt.tags})
    return [
        *((f"fitted without {name}, tested on it", {name}, set[str]()) for name in categories),
        *((f"fitted without {name}, tested on it", {name}, set[str]()) for name in tags),
        *((f"fitted on {name}, tested on the rest", set[str](), {name}) for name in tags),
    ]


def parted(
    traces: Sequence[Trace], without: set[str], within: set[str]
) -> tuple[list[Trace], list[Trace]]:
    """Traces to fit on and traces to test on, by their marks, see `data_sets`."""
    fit: list[Trace] = []
    test: list[Trace] = []
    for trace in traces:
        marks = {trace.prompt.category, *trace.prompt.tags}
        (fit if not marks & without and marks >= within else test).append(trace)
    return fit, test


def fit_mlp(rows: Rows, seed: int) -> Read:
    """A small nonlinear probe: one hidden layer, fixed size and regularisation.

    Its logits are freed of the classes' shares, so that 0 is the threshold of equal classes as it
    is for the linear probes; unlike theirs they are not calibrated on held-out rows.
    """
    wide = rows.states.astype(np.float64)
    centre = wide.mean(0)
    scale = float(wide.std(0).mean()) or 1.0
    model = MLPClassifier(
        (HIDDEN_UNITS,), solver="lbfgs", alpha=1.0, max_iter=1000, random_state=seed
    )
    model.fit((wide - centre) / scale, rows.labels)
    prior = np.log(rows.labels.mean() / (1 - rows.labels.mean()))

    def read(states: Floats) -> Floats:
        wide = states.astype(np.float64)
        found = np.asarray(model.predict_proba((wide - centre) / scale))[:, 1]
        shares = np.clip(found, _CERTAIN, 1 - _CERTAIN)
        return np.log(shares / (1 - shares)) - prior

    return read


def positions_table(
    rows: Mapping[str, Sequence[Cell]],
    lacks: Mapping[str, str | None],
    layer: int,
    left_out: Sequence[str],
) -> ControlTable:
    """The control as a table.

    Args:
        rows: By name of the probe, cells for ``COLUMNS``; the tool's own probe first.
        lacks: By name of the probe, what `lacking` says.
        layer: The block after which all read.
        left_out: Probes that could not be fitted or tested for want of traces of a class.
    """
    return ControlTable(
        question="Is the probe an artefact of its position or label?",
        source="reviews of the paper; first thinking token: arXiv 2606.25013",
        columns=COLUMNS,
        rows=rows,
        finding=_finding(lacks),
        notes=(
            f"All after block {layer}, fitted on the fitting half of the prompts as the tool's own "
            "probe is. AUROC: on test prompts, at the place and by the labels that the probe was "
            f"fitted for ({THINKING_TOKENS} tokens of each thinking at most). All other columns: "
            "the probe read at every token of the test traces. If a probe is read at other "
            "positions than those it was fitted on, its direction is still valid, but its "
            "threshold may be wrong; so compare complied with refused and benign. A probe of "
            "refused-vs-complied at the last closing token is fitted to be low there on complied "
            "traces: its drop says that the answer can be read, not that a refusal was withdrawn. "
            "Shuffled labels: mean AUROC over shuffles, in whichever direction each points, with "
            "the interval that holds 95 % of them; all other columns are of one of them. "
            "Intervals: bootstrap over prompt groups.",
            *((f"Too few traces of a class for: {'; '.join(left_out)}.",) if left_out else ()),
        ),
    )


def _finding(lacks: Mapping[str, str | None]) -> str:
    """How many probes show a cliff, and which are the few."""
    measured = {
        name: lack for name, lack in lacks.items() if lack is not None and SHUFFLED not in name
    }
    if not measured:
        return "No harmful prompt was complied with, so there is no drop to explain."
    shown = [name for name, lack in measured.items() if not lack]
    others = [f"{name} ({lack})" for name, lack in measured.items() if lack]
    rare = len(shown) <= len(others)
    few = shown if rare else others
    return f"{len(shown)} of {len(measured)} probes show {A_CLIFF}" + (
        f"; those that {'do' if rare else 'do not'}: {'; '.join(few)}." if few else "."
    )
