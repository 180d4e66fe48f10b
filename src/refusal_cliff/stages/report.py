"""report: all of a run as ``summary.json`` and ``report.html``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

from refusal_cliff import __version__
from refusal_cliff.findings.results import RunShape, summarise
from refusal_cliff.findings.summary import FORMAT, write_summary
from refusal_cliff.model.subject import Subject
from refusal_cliff.report.gather import gather
from refusal_cliff.report.page import write_page
from refusal_cliff.run.folder import Headline
from refusal_cliff.run.pipeline import Job, Stage
from refusal_cliff.stages.control import CONTROLS, control_file
from refusal_cliff.stages.mend import STRATEGIES

SUMMARY, PAGE = "summary.json", "report.html"
_MEASURED = ("rates.json", "probes.json", "probes.safetensors", "probe-rules.json")
_SCORED = ("scores.parquet", "cliff.parquet", "cliff.json", "traces-test.parquet")


def report_stage(
    shape: RunShape,
    subject: Subject,
    *,
    notes: Sequence[str],
    provenance: Sequence[tuple[str, str]],
) -> Stage:
    """The last stage of a run."""
    planted = [str(head) for head in shape.planted]
    return Stage(
        "report",
        tuple(_inputs(shape)),
        (SUMMARY, PAGE),
        {
            **asdict(shape),
            "planted": planted,
            "controls": list(shape.controls),
            "notes": list(notes),
            "provenance": [list(pair) for pair in provenance],
            "version": __version__,
            "format": FORMAT,
        },
        lambda job: _report(shape, subject, notes, provenance, job),
    )


def _inputs(shape: RunShape) -> list[str]:
    keys = [key for key in (shape.main, shape.control, shape.diffuse) if key is not None]
    files = [f"{key}/{name}" for key in keys for name in (*_MEASURED, *_SCORED)]
    files += [
        f"{shape.main}/{name}"
        for name in (
            *("readings.json", "coherence.json"),
            *("heads.parquet", "joint.json", "scores-ablated.parquet"),
        )
    ]
    files += [f"{key}/ablation.json" for key in (shape.main, shape.diffuse) if key is not None]
    if shape.steps:
        files.append(f"{shape.main}/selection.json")
        files += [f"{shape.main}/repair-{strategy}/traces.parquet" for strategy in STRATEGIES]
    return [*files, *(control_file(shape.main, name) for name in shape.controls)]


def _report(
    shape: RunShape,
    subject: Subject,
    notes: Sequence[str],
    provenance: Sequence[tuple[str, str]],
    job: Job,
) -> Headline:
    summary = summarise(shape, job.input, job.seconds)
    controls = [
        (CONTROLS[name].title, job.input(control_file(shape.main, name))) for name in shape.controls
    ]
    data = gather(
        shape, summary, job.input, subject, notes=notes, provenance=provenance, controls=controls
    )
    write_summary(job.output(SUMMARY), summary)
    write_page(job.output(PAGE), data)
    return {"verdict": summary.cliff.verdict}
