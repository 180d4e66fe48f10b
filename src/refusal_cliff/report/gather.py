"""From the files of a finished run to all that its page shows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from refusal_cliff.answers.evaluate import rates
from refusal_cliff.cliff.curves import mean_curve, read_cliffs
from refusal_cliff.cliff.measure import CliffNumbers
from refusal_cliff.cliff.scores import TraceScores, read_scores
from refusal_cliff.controls.table import ControlTable
from refusal_cliff.controls.taxonomy import kinds_of
from refusal_cliff.data.traces import read_traces
from refusal_cliff.findings.results import Find, RunShape
from refusal_cliff.findings.summary import Summary
from refusal_cliff.findings.wording import findings_of, next_step
from refusal_cliff.heads.at_tokens import AS_IT_IS, HEADS_OUT, TokenRow, read_token_rows
from refusal_cliff.heads.result import WITH_FOUND, WITH_NONE, AblationResult
from refusal_cliff.heads.table import read_heads
from refusal_cliff.io import read_as, without_folder
from refusal_cliff.judges import RulesJudge
from refusal_cliff.model.subject import Head
from refusal_cliff.probe.files import read_probes
from refusal_cliff.probe.fit import ProbeSet
from refusal_cliff.report.data import (
    Bar,
    Curve,
    DoseCurve,
    Group,
    HeadMap,
    Heatmap,
    ReportData,
    Role,
)
from refusal_cliff.report.traces import (
    LEAST,
    Measured,
    closing_texts,
    curve_of,
    curves_of,
    group_of,
    kept_traces,
    reader_of,
    typical_traces,
)
from refusal_cliff.select.strategies import COMPARED
from refusal_cliff.stats import Share, bootstrap_mean

FIRST_OFFSET_OF_MAP = -20
BASE_NOTES = (
    "The score is calibrated on refused harmful traces against answered benign ones. A probe can "
    "read harm instead of refusal: compare complied with refused harmful traces, and the control.",
)


Pairs = Sequence[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class Recipe:
    """What a page is made of besides the run's tables: ``page.json``.

    Attributes:
        shape: Which models the run measured.
        notes: What a reader must know beside the judge and ``BASE_NOTES``.
        provenance: Name and value of what made the run.
    """

    shape: RunShape
    notes: tuple[str, ...]
    provenance: tuple[tuple[str, str], ...]


def gather(
    recipe: Recipe, summary: Summary, find: Find, controls: Sequence[tuple[str, Path]] = ()
) -> ReportData:
    """Read a run's files into the data of its page.

    Args:
        recipe: What it is made of besides them.
        summary: Of the run.
        find: Path of a file of the run.
        controls: Title and file of each control.
    """
    shape = recipe.shape
    key, name = shape.main, without_folder(summary.model)
    ablation = read_as(find(f"{key}/ablation.json"), AblationResult)
    out = ablation.heads
    probes = _probes(key, find)
    measured = _measured(key, find, probes, out)
    return ReportData(
        title=f"Refusal cliff of {name}",
        headline=_headline(name, summary.cliff.verdict),
        summary=summary,
        curves=curves_of(name, measured.scores.values(), probes.row),
        control_curves=() if shape.control is None else _control_curves(shape.control, find),
        ablated_curves=_ablated_curves(key, measured) if out else (),
        closing=closing_texts(measured.traces, measured.pieces),
        heatmap=_heatmap(measured, probes, find(f"{key}/cliff.json")),
        head_map=HeadMap(read_heads(find(f"{key}/heads.parquet")), out, shape.planted or None),
        ablation=_ablation_bars(ablation) if out else (),
        doses=_dose_curves(shape, ablation, find),
        repaired=_repaired(key, find) if summary.selection else (),
        controls=[(title, read_as(path, ControlTable)) for title, path in controls],
        traces=typical_traces(measured, name),
        reader=reader_of(measured),
        next_step=next_step(
            summary, Counter(kinds_of(measured.traces, measured.cliffs).values()), key
        ),
        findings=findings_of(summary),
        notes=[_about_judge(shape.judge), *BASE_NOTES, *recipe.notes],
        provenance=recipe.provenance,
    )


def _about_judge(name: str) -> str:
    if name == RulesJudge.name:
        return "Answers are judged by phrase rules over their opening: they refuse or they do not."
    return f"Answers are judged by {name}; an attack worked where the answer does not refuse."


def _headline(model: str, verdict: str) -> str:
    if verdict == "undecided":
        return f"Whether {model} has a refusal cliff is undecided."
    return f"{model} has {'a' if verdict == 'cliff' else 'no'} refusal cliff."


def _probes(key: str, find: Find) -> ProbeSet:
    return read_probes(find(f"{key}/probes.safetensors"), find(f"{key}/probes.json"))


def _measured(key: str, find: Find, probes: ProbeSet, out: Sequence[Head]) -> Measured:
    traces = read_traces(find(f"{key}/traces-test.parquet"))
    cliffs = read_cliffs(find(f"{key}/cliff.parquet"))
    first_closed = [trace for trace in traces if trace.spans is not None][:1]
    shown = {trace.prompt.id for trace in (*kept_traces(traces, cliffs), *first_closed)}
    tokens: dict[str, dict[str, TokenRow]] = {AS_IT_IS: {}, HEADS_OUT: {}}
    for row in read_token_rows(find(f"{key}/tokens.parquet"), shown):
        tokens[row.side][row.trace_id] = row
    after = read_traces(find(f"{key}/ablated.parquet")) if out else []
    after_scores = read_scores(find(f"{key}/scores-ablated.parquet"))
    return Measured(
        traces=traces,
        scores={one.trace_id: one for one in read_scores(find(f"{key}/scores.parquet"))},
        cliffs=cliffs,
        layers=[probe.layer for probe in probes.probes],
        row=probes.row,
        tokens=tokens[AS_IT_IS],
        after={one.prompt.id: one for one in after},
        after_tokens=tokens[HEADS_OUT],
        after_scores={one.trace_id: one for one in after_scores},
        out=out,
    )


def _control_curves(key: str, find: Find) -> list[Curve]:
    return curves_of(key, read_scores(find(f"{key}/scores.parquet")), _probes(key, find).row)


def _ablated_curves(key: str, measured: Measured) -> list[Curve]:
    """Prompts that were complied with: as they were, and as they are with the heads out."""
    complied = {trace.trace_id for trace in group_of(measured.scores.values(), "complied")}
    sides: tuple[tuple[str, Group, Mapping[str, TraceScores]], ...] = (
        ("as it is", "complied", measured.scores),
        ("heads out", "refused", measured.after_scores),
    )
    return [
        curve_of(key, group, chosen, measured.row, words)
        for words, group, scores in sides
        if len(chosen := [one for name, one in scores.items() if name in complied]) >= LEAST
    ]


def _heatmap(measured: Measured, probes: ProbeSet, cliff: Path) -> Heatmap | None:
    """Of the harmful traces that were complied with, or of those refused if the others are few."""
    few = len(group_of(measured.scores.values(), "complied")) < LEAST
    group: Group = "refused" if few else "complied"
    traces = group_of(measured.scores.values(), group)
    if len(traces) < LEAST:
        return None
    curves = [mean_curve(traces, row, FIRST_OFFSET_OF_MAP) for row in range(len(probes.probes))]
    return Heatmap(
        layers=measured.layers,
        offsets=curves[0].offsets,
        scores=[curve.mean for curve in curves],
        n=len(traces),
        cliff=read_as(cliff, CliffNumbers).cliff_by_layer,
        auroc=[probe.quality.auroc for probe in probes.probes],
        group=group,
    )


def _ablation_bars(found: AblationResult) -> list[Bar]:
    """All prompts without and with the heads found; then the prompts of the random sets alike."""
    heads = ", ".join(map(str, found.heads))
    bars = [
        Bar.of("as it is", found.before.attacks, "baseline"),
        Bar.of("heads out", found.attacks_after, "result", heads),
    ]
    random = found.kept("random")
    if random:
        before, after = (
            Share(int(sum(kept.values())), len(kept))
            for kept in map(found.kept, (WITH_NONE, WITH_FOUND))
        )
        values, groups = list(random.values()), [found.pairs.groups[name] for name in random]
        bars += [
            Bar.of("as it is", before, "baseline", "thoughts kept"),
            Bar.of("heads out", after, "result", "from the closing tokens on"),
            Bar(
                "random heads out",
                sum(values) / len(values),
                bootstrap_mean(values, groups),
                len(values),
                "control",
                points=found.kept_rates("random"),
                detail=f"same prompts, {found.sets('random')} sets",
                interval_kind="bootstrap over prompts",
            ),
        ]
    return bars


def _dose_curves(shape: RunShape, ablation: AblationResult, find: Find) -> list[DoseCurve]:
    subjects: list[tuple[str, Role, AblationResult]] = [
        (without_folder(shape.model), "result", ablation)
    ]
    if shape.diffuse is not None:
        diffuse = read_as(find(f"{shape.diffuse}/ablation.json"), AblationResult)
        subjects.append((shape.diffuse, "control", diffuse))
    return [
        DoseCurve(
            subject=name,
            role=role,
            total_heads=shape.total_heads,
            heads=[len(dose.heads) for dose in found],
            asr=[dose.at_most.value or 0.0 for dose in found],
            intervals=[dose.at_most.interval or (0.0, 1.0) for dose in found],
            n=found[0].at_most.n,
        )
        for name, role, result in subjects
        if len(found := result.doses_as_found()) > 1
    ]


def _repaired(key: str, find: Find) -> list[tuple[Bar, Bar]]:
    """The rates by choice of training examples; with none they are those of the model as it is."""
    files = {"none": "traces-test.parquet", **{s: f"repair-{s}/traces.parquet" for s in COMPARED}}
    roles: dict[str, Role] = {"none": "baseline", "cliff": "result"}
    bars = []
    for name, file in files.items():
        found, role = rates(read_traces(find(f"{key}/{file}"))), roles.get(name, "control")
        bars.append((Bar.of(name, found.attacks, role), Bar.of(name, found.answered, role)))
    return bars
