"""Measuring the controls of the probe: other directions, other positions, other labels."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch

from refusal_cliff.cliff.curves import TraceCliff, cliffs_of
from refusal_cliff.cliff.scores import TraceScores
from refusal_cliff.controls import directions, positions
from refusal_cliff.controls.positions import CLOSING, PLACES, Place, Rows, Rule
from refusal_cliff.controls.readings import (
    Floats,
    Line,
    Read,
    Reduced,
    auroc_cell,
    fit_direction,
    fit_line,
    lacking,
    levels,
)
from refusal_cliff.controls.second_reading import thinks
from refusal_cliff.controls.table import Cell, ControlTable
from refusal_cliff.data.traces import Trace, closed, read_traces, verdict_groups
from refusal_cliff.model.capture import capture
from refusal_cliff.model.final_norm import AfterFinalNorm, find_final_norm
from refusal_cliff.model.subject import Subject
from refusal_cliff.probe.direction import shuffled, standardised
from refusal_cliff.probe.fit import MIN_PER_CLASS, Probe
from refusal_cliff.run.pipeline import Job, Progress
from refusal_cliff.stages.measure import input_probes
from refusal_cliff.stages.study import Study
from refusal_cliff.stats import counts_with_all, percentiles

INPUTS = ("traces-fit.parquet", "traces-test.parquet", "probes.safetensors", "probes.json")
REFUSED: Rule = "refused-vs-benign"
ANSWERED: Rule = "refused-vs-complied"
HARMFUL: Rule = "harmful-vs-benign"
HARM_PLACES: dict[str, Place] = {
    directions.HARM: "prompt end",
    directions.HARM_ANYWHERE: "any token",
}
_LARGE = 1e3
T = TypeVar("T")


@dataclass(frozen=True)
class _Bench:
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
        return positions.rows_of(self.fit, self.states, place, rule)

    def auroc(
        self, read: Read, place: Place, rule: Rule, test: Sequence[Trace] | None = None
    ) -> Cell:
        """AUROC of a reading on test traces."""
        rows = positions.rows_of(self.test if test is None else test, self.states, place, rule)
        return auroc_cell(read(rows.states), rows.labels, rows.groups, self.study.seed)

    def traced(self, reads: Mapping[str, Read]) -> dict[str, list[TraceCliff]]:
        """Plateau and final score of the test traces under each reading."""

        def reduce(row: int, states: Floats) -> Floats:
            del row
            return np.stack([read(states) for read in reads.values()]).astype(np.float32)

        found = _reduced(self.study, self.probe.layer, self.test, reduce, self.progress)
        scores = [
            TraceScores(t.prompt.id, t.prompt.group, t.prompt.label, t.verdict, t.spans, logits)
            for t, logits in zip(self.test, found, strict=True)
            if t.spans is not None
        ]
        return {name: cliffs_of(scores, row) for row, name in enumerate(reads)}


def _bench(study: Study, job: Job) -> _Bench:
    fit, test = (
        [trace for trace in closed(read_traces(job.input(study.path(name)))) if thinks(trace)]
        for name in INPUTS[:2]
    )
    probe = input_probes(study, job).chosen
    traces = [*fit, *test]

    def reduce(row: int, states: Floats) -> dict[Place, Floats]:
        spans = traces[row].spans
        assert spans is not None  # closed
        return positions.states_of_places(states, spans)

    found = _reduced(study, probe.layer, traces, reduce, job.progress)
    states = {trace.prompt.id: values for trace, values in zip(traces, found, strict=True)}
    return _Bench(study, probe, fit, test, states, job.progress)


def _reduced(
    study: Study,
    layer: int,
    traces: Sequence[Trace],
    reduce: Callable[[int, Floats], T],
    progress: Progress,
) -> list[T]:
    """What a function makes of the states of each trace at the study's read point."""
    reader = Reduced(layer, reduce)
    tap = AfterFinalNorm(reader, study.subject) if study.read_point == "final_norm" else reader
    capture(study.subject, [trace.token_ids for trace in traces], [tap], progress=progress)
    return [reader.values[row] for row in range(len(traces))]


def directions_control(study: Study, job: Job) -> ControlTable:
    """Refusal, harmfulness and first answer tokens as directions, and the score without each."""
    bench = _bench(study, job)
    rows = bench.fitting(CLOSING, REFUSED)
    harm = {name: _harmfulness(bench, place) for name, place in HARM_PLACES.items()}
    drawn = _drawn(bench, {name: strength for name, (_, strength) in harm.items()})
    others = {name: line.weight for name, (line, _) in harm.items()}
    others |= {name: drawn[name][0] for name in (directions.MEANS, directions.TOKENS)}
    reads: dict[str, Read] = {directions.REFUSAL: bench.own}
    reads |= {name: line for name, (line, _) in harm.items()}
    for name in (directions.MEANS, directions.TOKENS):
        reads[name] = directions.recalibrated(others[name], rows.states, rows.labels)
    for name, vector in others.items():
        left = directions.without(bench.probe.weight.astype(np.float64), vector)
        reads[directions.WITHOUT + name] = directions.recalibrated(left, rows.states, rows.labels)
    for name, vector in others.items():
        states = directions.projected_out(rows.states, vector)
        line = fit_line(states, rows.labels, rows.groups, study.seed)
        reads[directions.ANEW + name] = Line(directions.without(line.weight, vector), line.bias)
    traced = bench.traced(reads)
    harmful = [trace for trace in bench.test if trace.prompt.label == "harmful"]
    table = {
        name: (
            _cosine(bench, drawn, name),
            bench.auroc(read, HARM_PLACES[name], HARMFUL)
            if name in HARM_PLACES
            else bench.auroc(read, CLOSING, REFUSED),
            bench.auroc(read, CLOSING, ANSWERED, harmful),
            *levels(traced[name], study.seed),
        )
        for name, read in reads.items()
    }
    lacks = {name: lacking(rows, study.seed) for name, rows in traced.items()}
    return directions.directions_table(table, lacks, bench.probe.layer, _how(study))


def _harmfulness(bench: _Bench, place: Place) -> tuple[Line, float]:
    """A harmfulness probe, and its strength."""
    rows = bench.fitting(place, HARMFUL)
    line, found = fit_direction(rows.states, rows.labels, rows.groups, bench.study.seed)
    return line, found.strength


def _drawn(bench: _Bench, strengths: Mapping[str, float]) -> dict[str, Floats]:
    """Each direction of the fitting traces and of draws of them, the same draws for all."""
    groups = [trace.prompt.group for trace in bench.fit]
    counts = counts_with_all(groups, bench.study.seed, directions.DRAWS)

    def of(rule: Rule, place: Place = CLOSING) -> Any:
        """How often each row of `fitting` counts in each draw."""
        used = [positions.label_of(trace, rule) >= 0 for trace in bench.fit]
        sizes = [len(bench.states[trace.prompt.id][place]) for trace in bench.fit]
        return np.repeat(counts[:, used], np.array(sizes)[used], axis=1)

    refusal = bench.fitting(CLOSING, REFUSED)
    answered = [t for t in bench.fit if positions.label_of(t, ANSWERED) >= 0]
    words = first_token_rows(bench.study.subject, answered, bench.study.read_point == "resid_post")
    logistic, means = directions.logistic_directions, directions.mean_differences
    found = {
        directions.REFUSAL: logistic(
            refusal.states, refusal.labels, of(REFUSED), bench.probe.strength
        ),
        directions.MEANS: means(refusal.states, refusal.labels, of(REFUSED)),
        directions.TOKENS: means(words, bench.fitting(CLOSING, ANSWERED).labels, of(ANSWERED)),
    }
    for name, strength in strengths.items():
        rows = bench.fitting(HARM_PLACES[name], HARMFUL)
        counted = of(HARMFUL, HARM_PLACES[name])
        found[name] = logistic(rows.states, rows.labels, counted, strength)
    return found


def _cosine(bench: _Bench, drawn: Mapping[str, Floats], name: str) -> Cell:
    """Cosine of a direction with the probe's own, or of the probe with its fit on all rows."""
    if name == directions.REFUSAL:
        own = bench.probe.weight.astype(np.float64)
        return Cell(float(directions.cosine(own, drawn[name][0])), None, len(bench.fit))
    if name not in drawn:
        return Cell(None)
    return directions.cosine_cell(drawn[directions.REFUSAL], drawn[name], len(bench.fit))


@torch.inference_mode()
def first_token_rows(subject: Subject, traces: Sequence[Trace], before_norm: bool) -> Floats:
    """Unembedding of each trace's first response token, [traces, d], as the read point sees it.

    A logit is ``u · norm(h)``; of a root-mean-square norm, ``norm(h) = gain ⊙ h`` times one number
    a token, so before the norm the direction is ``gain ⊙ u``. The gain is read off the norm's
    output for an input of ±1 of large scale, which any norm over features returns as ``± gain``.
    """
    ids = [trace.token_ids[trace.spans.closing] for trace in traces if trace.spans is not None]
    unembedding: Any = subject.model.get_output_embeddings()
    rows = unembedding.weight[torch.tensor(ids, device=unembedding.weight.device)].float().cpu()
    if before_norm:
        rows = rows * _gain(subject)
    return rows.numpy()


def _gain(subject: Subject) -> torch.Tensor:
    norm: Any = find_final_norm(subject)
    like = next(norm.parameters())
    signs = torch.ones(subject.width, device=like.device, dtype=like.dtype)
    signs[1::2] = -1
    ends = [norm(sign * _LARGE * signs[None])[0] for sign in (1, -1)]
    return ((ends[0] - ends[1]) / 2 * signs).float().cpu()


def _how(study: Study) -> str:
    mean = "mean unembedding row of refused minus complied traces' first response tokens"
    if study.read_point == "final_norm":
        return mean + ", as the probe reads after the final norm"
    return mean + ", times the gain of the final norm, before which the probe reads"


def positions_control(study: Study, job: Job) -> ControlTable:
    """Probes trained at other places and by other labels, in one table."""
    bench = _bench(study, job)
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
        reads[name] = bench.own if own else _fit(rows, study.seed)
        aurocs[name] = bench.auroc(reads[name], place, rule)
    for name, read, cell in (_shuffled(bench), _nonlinear(bench)):
        reads[name], aurocs[name] = read, cell
    for name, without, within in positions.data_sets([*bench.fit, *bench.test]):
        fit = positions.parted(bench.fit, without, within)[0]
        tested[name] = positions.parted(bench.test, without, within)[1]
        rows = positions.rows_of(fit, bench.states, CLOSING, REFUSED)
        held_out = positions.rows_of(tested[name], bench.states, CLOSING, REFUSED)
        if rows.has(MIN_PER_CLASS) and held_out.has(positions.MIN_TESTED):
            reads[name] = _fit(rows, study.seed)
            aurocs[name] = bench.auroc(reads[name], CLOSING, REFUSED, tested[name])
        else:
            left_out.append(name)
    traced = {name: _only(rows, tested.get(name)) for name, rows in bench.traced(reads).items()}
    table = {name: (aurocs[name], *levels(rows, study.seed)) for name, rows in traced.items()}
    lacks = {name: lacking(rows, study.seed) for name, rows in traced.items()}
    return positions.positions_table(table, lacks, bench.probe.layer, left_out)


def _trained(bench: _Bench) -> list[tuple[str, Place, Rule]]:
    """Name, place and label rule of each linear probe; the tool's own first.

    Without enough complied harmful traces, refused-vs-complied is refused-vs-benign.
    """
    complied = verdict_groups(bench.fit)["complied"]
    enough = len({trace.prompt.group for trace in complied}) >= MIN_PER_CLASS
    rules: tuple[Rule, ...] = (REFUSED, ANSWERED) if enough else (REFUSED,)
    pairs: list[tuple[Place, Rule]] = [(place, rule) for place in PLACES for rule in rules]
    pairs.insert(len(rules), (CLOSING, HARMFUL))
    return [(f"{place}, {rule}", place, rule) for place, rule in pairs]


def _fit(rows: Rows, seed: int) -> Line:
    return fit_line(rows.states, rows.labels, rows.groups, seed)


def _shuffled(bench: _Bench) -> tuple[str, Read, Cell]:
    """A probe of shuffled labels; AUROC is a mean over many, whichever way round they point."""
    rows, seed = bench.fitting(CLOSING, REFUSED), bench.study.seed
    test = positions.rows_of(bench.test, bench.states, CLOSING, REFUSED)
    drawn = np.random.default_rng(seed).permutation(rows.labels)
    read = fit_line(rows.states, drawn, rows.groups, seed)
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
    cell = Cell(values.either_way, percentiles(either), len(either))
    return f"{CLOSING}, {positions.SHUFFLED}", read, cell


def _nonlinear(bench: _Bench) -> tuple[str, Read, Cell]:
    read = positions.fit_mlp(bench.fitting(CLOSING, REFUSED), bench.study.seed)
    name = f"{CLOSING}, {REFUSED}, MLP of {positions.HIDDEN_UNITS} units"
    return name, read, bench.auroc(read, CLOSING, REFUSED)


def _only(rows: Sequence[TraceCliff], traces: Collection[Trace] | None) -> list[TraceCliff]:
    """Those of the traces, or all."""
    if traces is None:
        return list(rows)
    ids = {trace.prompt.id for trace in traces}
    return [row for row in rows if row.trace_id in ids]
