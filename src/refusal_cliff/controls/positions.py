"""Is the probe an artefact of its position or label? Probes trained elsewhere, in one table.

Reviewers of the paper asked for probes trained at all positions, for complied harmful traces among
the negatives and for a nonlinear probe; arXiv 2606.25013 finds the outcome readable at the first
thinking token already.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from sklearn.neural_network import MLPClassifier

from refusal_cliff.cliff.curves import TraceCliff, cliffs_of
from refusal_cliff.cliff.scores import scores_of
from refusal_cliff.controls.readings import (
    A_CLIFF,
    CLOSING,
    LEVELS,
    PLACES,
    THINKING_TOKENS,
    Floats,
    Line,
    Place,
    Read,
    Rows,
    Rule,
    auroc_cell,
    fit_line,
    lacking,
    levels,
    reduced,
    rows_of,
    states_by_place,
    thinks,
)
from refusal_cliff.controls.table import Cell, ControlTable
from refusal_cliff.data.traces import closed, verdict_groups
from refusal_cliff.data.types import Trace
from refusal_cliff.probe.direction import shuffled, standardised
from refusal_cliff.probe.fit import MIN_PER_CLASS, Probe
from refusal_cliff.progress import Progress
from refusal_cliff.run.pipeline import Job
from refusal_cliff.stages.study import Study
from refusal_cliff.stats import percentiles

REFUSED: Rule = "refused-vs-benign"
ANSWERED: Rule = "refused-vs-complied"
HARMFUL: Rule = "harmful-vs-benign"
HIDDEN_UNITS = 16
MIN_TESTED = 5
"""Prompt groups of each class below which a transfer is not tested."""
SHUFFLED = "shuffled labels"
COLUMNS = ("AUROC", *LEVELS)
_CERTAIN = 1e-9


@dataclass(frozen=True)
class Bench:
    """The traces of one model, and what probes of each place read of them after one block."""

    study: Study
    probe: Probe
    fit: list[Trace]
    test: list[Trace]
    states: Mapping[str, Mapping[Place, Floats]]
    progress: Progress

    @property
    def own(self) -> Line:
        """The tool's own probe."""
        return Line(self.probe.weight, self.probe.bias)

    def fitting(self, place: Place, rule: Rule) -> Rows:
        """Rows of the fitting traces."""
        return rows_of(self.fit, self.states, place, rule)

    def auroc(
        self, read: Read, place: Place, rule: Rule, test: Sequence[Trace] | None = None
    ) -> Cell:
        """AUROC of a reading on test traces."""
        rows = rows_of(self.test if test is None else test, self.states, place, rule)
        return auroc_cell(read, rows, self.study.seed)

    def traced(self, reads: Mapping[str, Read]) -> dict[str, list[TraceCliff]]:
        """Plateau and final score of the test traces under each reading."""
        found = reduced(
            self.study.subject,
            self.test,
            self.probe.layer,
            self.study.read_point,
            lambda _, states: np.stack([read(states) for read in reads.values()]).astype("float32"),
            self.progress,
        )
        scores = scores_of(self.test, found)
        return {name: cliffs_of(scores, row) for row, name in enumerate(reads)}


def bench_of(study: Study, job: Job) -> Bench:
    """The traces that probes are fitted and tested on, and their states."""
    fit, test = (
        [trace for trace in closed(study.traces(job, part)) if thinks(trace)]
        for part in ("fit", "test")
    )
    probe = study.probes(job).chosen
    at = (probe.layer, study.read_point)
    states = states_by_place(study.subject, [*fit, *test], *at, job.progress)
    return Bench(study, probe, fit, test, states, job.progress)


def measure(study: Study, job: Job) -> ControlTable:
    """Probes trained at other places and by other labels, in one table."""
    bench = bench_of(study, job)
    reads: dict[str, Read] = {}
    aurocs: dict[str, Cell] = {}
    tested: dict[str, list[Trace]] = {}
    left_out: list[str] = []
    for name, place, rule in _trained(bench):
        rows = bench.fitting(place, rule)
        if not rows.has(MIN_PER_CLASS):
            left_out.append(name)
            continue
        own = place == CLOSING and rule == REFUSED
        reads[name] = bench.own if own else fit_line(rows, study.seed)
        aurocs[name] = bench.auroc(reads[name], place, rule)
    name = f"{CLOSING}, {SHUFFLED}"
    reads[name], aurocs[name] = _shuffled(bench)
    name = f"{CLOSING}, {REFUSED}, MLP of {HIDDEN_UNITS} units"
    reads[name] = fit_mlp(bench.fitting(CLOSING, REFUSED), study.seed)
    aurocs[name] = bench.auroc(reads[name], CLOSING, REFUSED)
    for name, without, within in data_sets([*bench.fit, *bench.test]):
        fit = parted(bench.fit, without, within)[0]
        tested[name] = parted(bench.test, without, within)[1]
        rows = rows_of(fit, bench.states, CLOSING, REFUSED)
        held_out = rows_of(tested[name], bench.states, CLOSING, REFUSED)
        if rows.has(MIN_PER_CLASS) and held_out.has(MIN_TESTED):
            reads[name] = fit_line(rows, study.seed)
            aurocs[name] = bench.auroc(reads[name], CLOSING, REFUSED, tested[name])
        else:
            left_out.append(name)
    traced = {name: _only(rows, tested.get(name)) for name, rows in bench.traced(reads).items()}
    table = {name: (aurocs[name], *levels(rows, study.seed)) for name, rows in traced.items()}
    lacks = {name: lacking(rows, study.seed) for name, rows in traced.items()}
    return positions_table(table, lacks, bench.probe.layer, left_out)


def _trained(bench: Bench) -> list[tuple[str, Place, Rule]]:
    """Name, place and label rule of each linear probe; the tool's own first.

    Without enough complied harmful traces, refused-vs-complied is refused-vs-benign.
    """
    complied = verdict_groups(bench.fit)["complied"]
    enough = len({trace.prompt.group for trace in complied}) >= MIN_PER_CLASS
    rules: tuple[Rule, ...] = (REFUSED, ANSWERED) if enough else (REFUSED,)
    pairs: list[tuple[Place, Rule]] = [(place, rule) for place in PLACES for rule in rules]
    pairs.insert(len(rules), (CLOSING, HARMFUL))
    return [(f"{place}, {rule}", place, rule) for place, rule in pairs]


def _shuffled(bench: Bench) -> tuple[Read, Cell]:
    """A probe of shuffled labels; AUROC is a mean over many, whichever way round they point."""
    rows, seed = bench.fitting(CLOSING, REFUSED), bench.study.seed
    test = rows_of(bench.test, bench.states, CLOSING, REFUSED)
    drawn = np.random.default_rng(seed).permutation(rows.labels)
    read = fit_line(replace(rows, labels=drawn), seed)
    standard = standardised(rows.states)
    values = shuffled(
        standard.coordinates,
        rows.labels,
        standard.of(test.states),
        test.labels,
        "logistic",
        bench.probe.strength,
        seed,
    )
    either = np.maximum(values.of_true, 1 - values.of_true)
    return read, Cell(values.either_way, percentiles(either), len(either))


def _only(rows: Sequence[TraceCliff], traces: Collection[Trace] | None) -> list[TraceCliff]:
    """Those of the traces, or all."""
    if traces is None:
        return list(rows)
    ids = {trace.prompt.id for trace in traces}
    return [row for row in rows if row.trace_id in ids]


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
    rows: Mapping[str, tuple[Cell, ...]],
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
