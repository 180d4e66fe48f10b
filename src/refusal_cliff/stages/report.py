"""report: all of a run as ``summary.json`` and ``report.html``, and what makes them anew."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from refusal_cliff import __version__
from refusal_cliff.errors import RefusalCliffError
from refusal_cliff.findings.results import Find, RunShape, summarise
from refusal_cliff.findings.summary import FORMAT, Summary, read_summary, write_summary
from refusal_cliff.io import read_as, write_as
from refusal_cliff.model.subject import Subject
from refusal_cliff.report.data import ReportData
from refusal_cliff.report.gather import Pairs, Recipe, gather
from refusal_cliff.report.page import write_page
from refusal_cliff.run.folder import MANIFEST, Headline, machine, versions
from refusal_cliff.run.pipeline import Job, Stage
from refusal_cliff.select.strategies import COMPARED
from refusal_cliff.stages.control import CONTROLS, control_file
from refusal_cliff.stages.measure import TOKENS
from refusal_cliff.stages.study import Study

SUMMARY, PAGE, RECIPE = "summary.json", "report.html", "page.json"
_OF_EACH = (
    *("rates.json", "probes.json", "probes.safetensors", "probe-rules.json"),
    *("scores.parquet", "cliff.parquet", "cliff.json", "traces-test.parquet"),
)
_OF_MAIN = (
    *("readings.json", "coherence.json", TOKENS, "ablated.parquet"),
    *("heads.parquet", "joint.json", "scores-ablated.parquet"),
)


def report_stage(
    shape: RunShape, study: Study, command: str, notes: Sequence[str], asked: Pairs
) -> Stage:
    """The last stage of a run.

    Args:
        shape: Which models the run measured.
        study: The main one.
        command: The command line that asked for the run; empty where there was none.
        notes: What a reader must know.
        asked: What else the run was asked; what it ran on is added.
    """
    writes = study.generation
    told = (
        *([("command", command)] if command else []),
        ("seed", str(study.seed)),
        ("decoding", f"{writes}, at most {writes.max_new_tokens:,} tokens"),
        *asked,
        *_about_model(shape.model, study.subject),
    )
    return Stage(
        "report",
        tuple(_inputs(shape)),
        (SUMMARY, PAGE, RECIPE),
        {
            **asdict(shape),
            "planted": [str(head) for head in shape.planted],
            "controls": list(shape.controls),
            "notes": list(notes),
            "provenance": [list(pair) for pair in told],
            "version": __version__,
            "format": FORMAT,
        },
        partial(_report, Recipe(shape, tuple(notes), told)),
    )


def page_of_run(folder: Path) -> ReportData:
    """All that the page of a finished run shows, read from its tables anew; no model is loaded.

    Raises:
        RefusalCliffError: It is no finished run, or one of a version that wrote no ``page.json``.
    """
    if not (folder / MANIFEST).is_file():
        raise RefusalCliffError(
            f"{folder} is not a run folder: it has no {MANIFEST}. Give the folder that audit or "
            "demo wrote."
        )
    path = folder / RECIPE
    if not path.is_file():
        raise RefusalCliffError(
            f"{folder} has no {RECIPE}: the run is not finished, or an earlier version made it, or "
            "its command makes no page. Run the same audit or demo again: finished stages are kept."
        )
    recipe = read_as(path, Recipe)
    return _gathered(recipe, read_summary(folder / SUMMARY), lambda name: folder / name)


def _about_model(name: str, subject: Subject) -> Pairs:
    dtype, found = str(subject.model.dtype).removeprefix("torch."), subject.format
    opened = "the prompt" if found.opened_by_prompt else "the model"
    thinking = f"{found.opener!r} … {found.closer!r}; {opened} opens it"
    if not found.thinks:
        thinking = "no markers found: a model without thinking"
    return (
        ("model", f"{name}, fingerprint {subject.fingerprint}"),
        ("precision", f"{dtype}, on {subject.device}"),
        ("thinking format", thinking),
    )


def _about_machine() -> Pairs:
    on = machine()
    packages = ", ".join(f"{name} {version}" for name, version in versions().items())
    return (
        ("finished", datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")),
        ("machine", f"{on['system']}, {on['cpus']} CPUs"),
        ("versions", f"refusal-cliff {__version__}, Python {on['python']}, {packages}"),
    )


def _inputs(shape: RunShape) -> list[str]:
    keys = [key for key in (shape.main, shape.control, shape.diffuse) if key is not None]
    files = [f"{key}/{name}" for key in keys for name in _OF_EACH]
    files += [f"{shape.main}/{name}" for name in _OF_MAIN]
    files += [f"{key}/ablation.json" for key in (shape.main, shape.diffuse) if key is not None]
    if shape.steps:
        files.append(f"{shape.main}/selection.json")
        files += [f"{shape.main}/repair-{strategy}/traces.parquet" for strategy in COMPARED]
    return [*files, *(control_file(shape.main, name) for name in shape.controls)]


def _report(asked: Recipe, job: Job) -> Headline:
    summary = summarise(asked.shape, job.input, job.seconds)
    judge = ("judge", summary.judge.about_judge)
    told = (*asked.provenance, judge, *_about_machine())
    recipe = Recipe(asked.shape, asked.notes, told)
    write_summary(job.output(SUMMARY), summary)
    write_page(job.output(PAGE), _gathered(recipe, summary, job.input))
    write_as(job.output(RECIPE), recipe)
    return {"verdict": summary.cliff.verdict}


def _gathered(recipe: Recipe, summary: Summary, find: Find) -> ReportData:
    key = recipe.shape.main
    tables = [(CONTROLS[n].title, find(control_file(key, n))) for n in recipe.shape.controls]
    return gather(recipe, summary, find, tables)
