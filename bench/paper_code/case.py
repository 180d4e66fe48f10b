"""One organism as a run of controls left it, and how an effect is written down."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from refusal_cliff.cliff.curves import TraceCliff, cliffs_of
from refusal_cliff.cliff.scores import TraceScores, read_scores
from refusal_cliff.cliff.verdict import measured_rows
from refusal_cliff.controls.table import Cell, mean_cell
from refusal_cliff.data.traces import closed, read_traces, verdict_groups
from refusal_cliff.data.types import Trace
from refusal_cliff.heads.effects import direct_contributions
from refusal_cliff.heads.find import explained
from refusal_cliff.heads.table import budget
from refusal_cliff.model.capture import ProbeScores, capture
from refusal_cliff.model.final_norm import AfterFinalNorm
from refusal_cliff.model.subject import Head, Subject, load_subject
from refusal_cliff.probe.files import read_probes
from refusal_cliff.probe.fit import Probe, ProbeSet
from refusal_cliff.probe.quality import Floats
from refusal_cliff.probe.traces import fit_on_traces
from refusal_cliff.stages.study import PRESETS, Study
from refusal_cliff.stats import spearman
from refusal_cliff.workflows.demo import GENERATION


@dataclass(frozen=True)
class Effect:
    """One number as we measure it, and with a fault of the paper's code.

    Attributes:
        measure: What the number is.
        ours: Without the fault.
        theirs: With it.
    """

    measure: str
    ours: Cell
    theirs: Cell


@dataclass(frozen=True)
class Case:
    """An organism: its traces of both parts, and the probes that were fitted on the first.

    Attributes:
        subject: The organism.
        fit: Judged traces that probes and heads are found on.
        test: Judged traces of other prompts.
        probes: Ours, of the residual stream.
        scores: Scores of the closed test traces by them.
        seed: Of every bootstrap.
    """

    subject: Subject
    fit: Sequence[Trace]
    test: Sequence[Trace]
    probes: ProbeSet
    scores: Sequence[TraceScores]
    seed: int = 0

    @cached_property
    def study(self) -> Study:
        """Read after the final norm, as the paper does; all else is ours."""
        read_point = PRESETS["paper"].read_point
        definitions = replace(PRESETS["default"], read_point=read_point)
        return Study(self.subject.name, self.subject, self.seed, GENERATION, definitions)

    @cached_property
    def after(self) -> ProbeSet:
        """Our fit of a probe after the final norm."""
        return fit_on_traces(
            self.subject, self.fit, read_point=self.study.read_point, seed=self.seed
        )

    @cached_property
    def contributions(self) -> Floats:
        """What each head adds to our probe's logit, [traces explained, layers, heads]."""
        return contributions(self, explained(closed(self.fit)))

    @cached_property
    def heads(self) -> list[Head]:
        """The strongest 3 % by direct contribution."""
        return strongest(self, self.contributions.mean(0))

    def classes(self) -> list[Trace]:
        """Refused harmful and answered benign test traces: what a probe must tell apart."""
        groups = verdict_groups(closed(self.test))
        return [*groups["refused"], *groups["benign"]]


def load_case(run: Path, name: str) -> Case:
    """An organism of a run of `python -m lab controls`."""
    folder, subject = run / name, load_subject(name, device="cpu")
    fit, test = (read_traces(folder / f"traces-{part}.parquet") for part in ("fit", "test"))
    probes = read_probes(folder / "probes.safetensors", folder / "probes.json", subject)
    return Case(subject, fit, test, probes, read_scores(folder / "scores.parquet"))


def contributions(case: Case, traces: Sequence[Trace], probe: Probe | None = None) -> Floats:
    """What each head adds to a probe's logit, [traces, layers, heads]; ours unless said."""
    return direct_contributions(case.subject, traces, probe or case.probes.chosen).closing


def strongest(case: Case, mean: Floats) -> list[Head]:
    """The 3 % of heads that add least, from [layers, heads]."""
    order = sorted(case.subject.heads(), key=lambda head: mean[head.layer - 1, head.index])
    return order[: budget(len(order))]


def ranking_effects(case: Case, mean: Floats) -> list[Effect]:
    """How another mean contribution, [layers, heads], ranks heads."""
    ours = case.heads
    shared = len(set(ours) & set(strongest(case, mean))) / len(ours)
    alike = spearman(case.contributions.mean(0).ravel(), mean.ravel())
    return [
        Effect("share of our 3 % of heads", _one(len(ours)), Cell(shared, None, len(ours))),
        Effect("rank correlation with our ranking", _one(mean.size), Cell(alike, None, mean.size)),
    ]


def _one(n: int) -> Cell:
    return Cell(1, None, n)


def verdict_rows(scores: Sequence[TraceScores], row: int = 0) -> list[TraceCliff]:
    """Plateau and final of the traces that a verdict is on."""
    return measured_rows(cliffs_of(scores, row))[1]


def level_effects(
    ours: Sequence[TraceScores],
    theirs: Sequence[TraceScores],
    rows: tuple[int, int] = (0, 0),
    seed: int = 0,
) -> list[Effect]:
    """Plateau and final of both readings of the same traces."""
    pair = [verdict_rows(ours, rows[0]), verdict_rows(theirs, rows[1])]
    cells = [
        [
            mean_cell([getattr(row, name) for row in found], [row.group for row in found], seed)
            for found in pair
        ]
        for name in ("plateau", "final")
    ]
    return [Effect(name, *found) for name, found in zip(("plateau", "final"), cells, strict=True)]


def scored_after(case: Case, probes: Sequence[tuple[Floats, float]]) -> list[list[TraceScores]]:
    """The closed test traces under each of some probes after the final norm, in one pass."""
    traces, layer = closed(case.test), case.subject.n_layers
    readers = [ProbeScores({layer: probe}, len(traces)) for probe in probes]
    taps = [AfterFinalNorm(reader, case.subject) for reader in readers]
    capture(case.subject, [trace.token_ids for trace in traces], taps)
    return [
        [replace(old, logits=new) for old, new in zip(case.scores, reader.logits, strict=True)]
        for reader in readers
    ]
