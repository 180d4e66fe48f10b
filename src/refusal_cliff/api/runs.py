"""Finished runs, opened in Python without loading their models, alone or beside each other."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from refusal_cliff.answers.evaluate import rate_changes, rates
from refusal_cliff.api.answers import Traces
from refusal_cliff.api.results import Cliff, Heads, Probes, Scores
from refusal_cliff.cliff.measure import read_measured
from refusal_cliff.cliff.scores import read_scores
from refusal_cliff.controls.table import Cell, ControlTable, share_cell
from refusal_cliff.controls.taxonomy import KINDS, Kind, kinds_of
from refusal_cliff.data.traces import read_traces
from refusal_cliff.errors import RefusalCliffError
from refusal_cliff.findings.summary import Summary, read_summary
from refusal_cliff.findings.wording import findings_of
from refusal_cliff.folders import DESCRIPTIONS
from refusal_cliff.heads.result import AblationResult
from refusal_cliff.heads.table import heads_and_model
from refusal_cliff.io import read_as
from refusal_cliff.probe.files import read_probes
from refusal_cliff.probe.fit import Probe

NEEDED = ("probes.json", "cliff.json")
"""Files that tell the folder of a model in a run."""


@dataclass(frozen=True)
class Run:
    """A finished run, read without loading its model.

    Attributes:
        folder: The run folder.
        model: Folder in it of the model under study.
    """

    folder: Path
    model: str

    @cached_property
    def summary(self) -> Summary:
        """The findings as data, see docs/reference/summary.md."""
        return read_summary(self.folder / "summary.json")

    @cached_property
    def probes(self) -> Probes:
        """The probes, fitted on the first half of the prompts."""
        return Probes.of(read_probes(self._path("probes.safetensors"), self._path("probes.json")))

    @property
    def name(self) -> str:
        """What the model is called; its folder in the run where its probes do not say it."""
        origin = self.probes.provenance
        return self.model if origin is None else origin.model

    @cached_property
    def traces(self) -> Traces:
        """Judged traces of the test prompts."""
        return Traces(tuple(read_traces(self._path("traces-test.parquet"))))

    @cached_property
    def ablated(self) -> Traces:
        """Judged traces of the same prompts without the heads found."""
        return Traces(tuple(read_traces(self._path("ablated.parquet"))))

    @cached_property
    def scores(self) -> Scores:
        """Scores of the test traces."""
        found = read_scores(self._path("scores.parquet"))
        return Scores(tuple(found), self.probes, self.name)

    @cached_property
    def cliff(self) -> Cliff:
        """The verdict as the run made it."""
        measured = read_measured(self._path("cliff.parquet"), self._path("cliff.json"))
        return Cliff(self.name, measured, tuple(self.scores.curves))

    @cached_property
    def heads(self) -> Heads:
        """The heads that the run took out, and every head's measures."""
        found = read_as(self._path("ablation.json"), AblationResult)
        rows, model = heads_and_model(self._path("heads.parquet"))
        return Heads(found.heads, found.method, tuple(rows), model)

    def has(self, name: str) -> bool:
        """Whether the run has come so far that a file of the model is there."""
        return (self.folder / self.model / name).is_file()

    def _path(self, name: str) -> Path:
        path = self.folder / self.model / name
        if not path.is_file():
            raise RefusalCliffError(
                f"The run {self.folder} has no {self.model}/{name}: this step was not run, or the "
                "run has not reached it yet. Run the same command again to finish it."
            )
        return path

    def __repr__(self) -> str:
        if not (self.folder / "summary.json").is_file():
            return f"Run {self.folder} of {self.model}, not finished"
        lines = [f"{one.question} {one.answer}" for one in findings_of(self.summary)]
        return "\n".join([f"Run {self.folder} of {self.model}", *lines])


def open_run(folder: Path | str, model: str | None = None) -> Run:
    """Open what ``audit``, ``demo`` or another command wrote.

    Args:
        folder: The run folder.
        model: Folder in it of one model; may be left out where the run has one, or a main one.

    Raises:
        RefusalCliffError: It is no run folder, or which model is meant is not clear.
    """
    root = Path(folder)
    found = sorted(
        child.name
        for child in (root.iterdir() if root.is_dir() else ())
        if all((child / name).is_file() for name in NEEDED)
    )
    if model is None and len(found) > 1 and (root / "summary.json").is_file():
        model = read_summary(root / "summary.json").model
    if model is None and len(found) == 1:
        model = found[0]
    if model not in found:
        known = f"It has: {', '.join(found)}." if found else "Give the folder of a run."
        raise RefusalCliffError(f"{root} has no measured model {model or ''!r}. {known}")
    return Run(root, str(model))


MANIFEST = DESCRIPTIONS["audit"]
ABLATION = "ablation.json"
OURS = "a comparison of runs"
RATES = {
    "attacks": "attack success rate",
    "refused": "harmful prompts refused",
    "answered": "benign prompts answered",
    "truncated": "answers that never ended",
}


@dataclass(frozen=True, slots=True)
class RunComparison:
    """Tables of several runs.

    Attributes:
        names: What the runs are called, in the order given; every name is another.
        tables: By title.
    """

    names: tuple[str, ...]
    tables: Mapping[str, ControlTable]


def opened(folder: Path) -> Run:
    """A finished run: its folder, or of one with several models that of one of them.

    Raises:
        RefusalCliffError: It is neither.
    """
    if (folder / MANIFEST).is_file() or not (folder.parent / MANIFEST).is_file():
        return open_run(folder)
    return open_run(folder.parent, folder.name)


def compare_runs(runs: Sequence[Run]) -> RunComparison:
    """Put finished runs beside each other; all are held against the first.

    Args:
        runs: Opened runs of models, such as a base model, what was made of it, and its repair.

    Raises:
        RefusalCliffError: There are fewer than two, or one is not finished.
    """
    if len(runs) < 2:
        raise RefusalCliffError("A comparison needs at least two runs. Give their folders.")
    named = _named(runs)
    tables = {
        "What each model does": _each(named),
        "What changed on the same prompts": _changes(named),
        "What became of each harmful prompt": _moves(named),
        "How far the refusal direction turned": _turns(named),
    }
    return RunComparison(tuple(named), {t: found for t, found in tables.items() if found.rows})


def _named(runs: Sequence[Run]) -> dict[str, Run]:
    """The runs by the names of their models; of a name that is there twice, with the folder."""
    counts = Counter(run.name for run in runs)
    return {
        run.name
        if counts[run.name] == 1
        else f"{run.name} ({place}: {run.folder.name}/{run.model})": run
        for place, run in enumerate(runs, 1)
    }


def _each(named: Mapping[str, Run]) -> ControlTable:
    rows = {}
    for name, run in named.items():
        found, cliff = rates(run.traces), run.cliff.found
        rows[name] = (
            share_cell(found.attacks),
            share_cell(found.answered),
            share_cell(found.truncated),
            Cell(cliff.plateau),
            Cell(cliff.final),
            Cell(cliff.share_with_cliff, cliff.share_ci, cliff.n),
            share_cell(rates(run.ablated).attacks) if run.has(ABLATION) else Cell(None),
        )
    verdicts = "; ".join(f"{name}: {run.cliff.found.verdict}" for name, run in named.items())
    heads = "; ".join(
        f"{name}: {', '.join(map(str, run.heads.chosen)) or 'none'}"
        for name, run in named.items()
        if run.has(ABLATION)
    )
    return ControlTable(
        question="What does each model do, and what does it intend?",
        source=OURS,
        columns=(
            *("attack success", "benign answered", "truncated", "plateau", "final"),
            *("traces that fall", "attack success without the heads"),
        ),
        rows=rows,
        finding=f"{verdicts}.",
        notes=(f"Heads taken out: {heads or 'none'}. Each run has a probe of its own.",),
    )


def _changes(named: Mapping[str, Run]) -> ControlTable:
    """Paired differences of rates against the first run."""
    (first, before), *others = named.items()
    rows: dict[str, tuple[Cell, ...]] = {}
    alone = []
    for name, run in others:
        try:
            changes = rate_changes(before.traces, run.traces)
        except RefusalCliffError:  # they share no prompt
            alone.append(name)
            continue
        rows |= {
            f"{name}: {RATES[c.rate]}": (
                Cell(c.before, None, c.n),
                Cell(c.after, None, c.n),
                Cell(c.difference, c.interval, c.n),
                Cell(c.p, None, c.n),
            )
            for c in changes
            if c.rate in RATES
        }
    left = f"No prompt in common with {first}, so not compared: {', '.join(alone)}."
    ends = {name: cells[2].interval or (0.0, 0.0) for name, cells in rows.items()}
    sure = [name for name, (low, high) in ends.items() if low > 0 or high < 0]
    return ControlTable(
        question=f"What changed against {first}?",
        source=OURS,
        columns=("before", "after", "difference", "p"),
        rows=rows,
        finding=f"Beyond chance: {'; '.join(sure) or 'nothing'}.",
        notes=(
            f"Paired by prompt; {first} is the model before. p is McNemar's exact test.",
            *([left] if alone else []),
        ),
    )


def _moves(named: Mapping[str, Run]) -> ControlTable:
    """How many prompts went from one kind to another, on those that both runs asked."""
    (first, before), *others = named.items()
    old = _kinds(before)
    rows = {}
    for name, run in others:
        new = _kinds(run)
        pairs = Counter((old[prompt], new[prompt]) for prompt in old if prompt in new)
        for kind in KINDS:
            n = sum(count for (was, _), count in pairs.items() if was == kind)
            if n:
                rows[f"{name}: {kind} before"] = tuple(
                    Cell(pairs[kind, now] / n, None, n) for now in KINDS
                )
    return ControlTable(
        question=f"What became of prompts that were of one kind in {first}?",
        source=OURS,
        columns=KINDS,
        rows=rows,
        finding="Each row is shared out among what its prompts are now.",
        notes=("Answers are matched by the text of their prompt, several to one by their order.",),
    )


def _kinds(run: Run) -> dict[tuple[str, int], Kind]:
    """What became of each answer to a harmful prompt, by its text and the number of the answer."""
    kinds = kinds_of(run.traces, run.cliff.measured.rows)
    found: dict[tuple[str, int], Kind] = {}
    numbers: Counter[str] = Counter()
    for trace in run.traces:
        if trace.prompt.id in kinds:
            numbers[trace.prompt.text] += 1
            found[trace.prompt.text, numbers[trace.prompt.text]] = kinds[trace.prompt.id]
    return found


def _turns(named: Mapping[str, Run]) -> ControlTable:
    """Cosine of every layer's refusal direction with that of the first run."""
    (first, before), *others = named.items()
    old = {probe.layer: probe for probe in before.probes.probes}
    found = {
        name: {
            probe.layer: _cosine(old[probe.layer], probe)
            for probe in run.probes.probes
            if probe.layer in old and probe.weight.shape == old[probe.layer].weight.shape
        }
        for name, run in others
    }
    other = [name for name, cosines in found.items() if not cosines]
    kept = {name: cosines for name, cosines in found.items() if cosines}
    layers = sorted({layer for cosines in kept.values() for layer in cosines})
    left = f"Of another width than {first}, so not compared: {', '.join(other)}."
    return ControlTable(
        question=f"How far did the refusal direction turn from that of {first}?",
        source=OURS,
        columns=tuple(kept),
        rows={
            f"layer {layer}": tuple(Cell(cosines.get(layer)) for cosines in kept.values())
            for layer in layers
        },
        finding="; ".join(
            f"{name}: cosine {min(cosines.values()):.2f} to {max(cosines.values()):.2f}"
            for name, cosines in kept.items()
        ),
        notes=(
            "1 is the same direction, 0 a right angle; of the probes as they are used.",
            *([left] if other else []),
        ),
    )


def _cosine(one: Probe, other: Probe) -> float:
    lengths = np.linalg.norm(one.weight) * np.linalg.norm(other.weight)
    return float(one.weight @ other.weight / lengths)
