"""How the rule of the verdict behaves: over organisms, seeds, the probe's scale and sample size.

    python -m bench.verdict measure OUT --model NAME|DIR … [--seed S …] [--data DIR]
    python -m bench.verdict table NAME=RUN/KEY … > table.md

``measure`` asks each model the demo's prompts (with ``--data``, a draw of those of the pretrained
organisms' audits) and runs the stages up to the cliff, and the second readings, in OUT/MODEL-SEED;
what is done is kept. ``table`` runs nothing: it reads scores of any runs (``runs/demo/tiny`` is
one), and draws traces from them.
"""

from __future__ import annotations

import argparse
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from lab.pretrained.sources import RECORDED, recorded_sources
from refusal_cliff.cliff.curves import TraceCliff, cliffs_of
from refusal_cliff.cliff.scores import read_scores
from refusal_cliff.cliff.verdict import (
    benign_rows,
    complied_rows,
    model_cliff,
    refused_rows,
    yardstick,
)
from refusal_cliff.controls.second_reading import MARGIN, OVER_THINKING, OWN, SAME_PLACE
from refusal_cliff.data.examples import write_prompts
from refusal_cliff.data.traces import read_traces
from refusal_cliff.data.types import Prompt
from refusal_cliff.errors import RefusalCliffError
from refusal_cliff.io import read_json
from refusal_cliff.model.subject import load_subject
from refusal_cliff.probe.files import read_probes
from refusal_cliff.run.folder import Headline, RunInfo
from refusal_cliff.run.pipeline import Job, Stage, run_pipeline
from refusal_cliff.stages.measure import measure_stages, second_reading_stage
from refusal_cliff.stages.study import FIT_PROMPTS, TEST_PROMPTS, Study
from refusal_cliff.workflows.audit_prompts import audit_prompts
from refusal_cliff.workflows.demo import GENERATION, DemoSizes, prompts_stage

KEY = "model"
FIT_ON, TEST_ON = {"harmful": 50, "benign": 40}, {"harmful": 100, "benign": 50}
"""Prompts of each label that a pretrained organism is asked."""
SLOPES = (0.25, 0.6, 1.0, 2.0, 4.0)
SIZES = (5, 10, 15, 20, 30, 40)
DRAWS = 200


def rows_of(folder: Path) -> list[TraceCliff]:
    """The cliffs of one model's test traces."""
    probes = read_probes(folder / "probes.safetensors", folder / "probes.json")
    return cliffs_of(read_scores(folder / "scores.parquet"), probes.row)


def scaled(rows: Sequence[TraceCliff], slope: float) -> list[TraceCliff]:
    """The rows under a probe of another slope."""
    return [
        replace(row, plateau_logit=slope * row.plateau_logit, final_logit=slope * row.final_logit)
        for row in rows
    ]


def absolute(rows: Sequence[TraceCliff], slope: float) -> float:
    """Share of benign traces that a fixed threshold calls a cliff (plateau ≥ .5, drop ≥ .3)."""
    levels = [
        1 / (1 + np.exp(-slope * np.array([row.plateau_logit, row.final_logit])))
        for row in benign_rows(rows)
    ]
    return float(np.mean([high >= 0.5 and high - low >= 0.3 for high, low in levels]))


def table(heading: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Markdown."""
    lines = [heading, ["---"] * len(heading), *rows]
    return "\n".join(f"| {' | '.join(row)} |" for row in lines)


def operating(models: dict[str, list[TraceCliff]]) -> str:
    """What the rule says of each model."""
    found = []
    for name, rows in models.items():
        said = model_cliff(rows)
        kinds = Counter(yardstick(rows).kind(row) for row in complied_rows(rows))
        loss = "–" if said.refused_loss is None else f"{max(0.0, said.refused_loss):.2f}"
        low, high = said.share_ci
        benign = "–" if said.benign_with_cliff is None else f"{said.benign_with_cliff:.0%}"
        found.append(
            [
                name,
                said.verdict,
                f"{said.share_with_cliff:.0%} [{low:.0%}, {high:.0%}] of {said.n} {said.group}",
                benign,
                loss,
                " / ".join(
                    str(len(part(rows))) for part in (complied_rows, refused_rows, benign_rows)
                ),
                ", ".join(f"{kind} {n}" for kind, n in kinds.most_common()) or "–",
            ]
        )
    heading = (
        "model",
        "verdict",
        "traces that fall",
        "benign that fall",
        "loss of refused",
        "complied / refused / benign",
        "complied traces by kind",
    )
    return table(heading, found)


def by_slope(models: dict[str, list[TraceCliff]]) -> str:
    """The verdict under other slopes, beside benign traces called a cliff by fixed thresholds."""
    found = []
    for name, rows in models.items():
        verdicts = {model_cliff(scaled(rows, slope)).verdict for slope in SLOPES}
        fixed = [f"{absolute(rows, slope):.0%}" for slope in SLOPES]
        found.append([name, " / ".join(sorted(verdicts)), *fixed])
    return table(("model", "verdict at every slope", *(f"× {s:g}" for s in SLOPES)), found)


def by_size(models: dict[str, list[TraceCliff]], seed: int = 0) -> str:
    """Verdicts over draws of n complied, n refused and 2n benign traces."""
    found = []
    for name, rows in models.items():
        cells = []
        for size in SIZES:
            said = Counter(model_cliff(part).verdict for part in _draws(rows, size, seed))
            order = ("cliff", "no cliff", "undecided")
            cells.append(" / ".join(f"{said[v] / DRAWS:.0%}" for v in order))
        found.append([name, *cells])
    return table(("cliff / no cliff / undecided", *(f"n = {size}" for size in SIZES)), found)


def _draws(rows: Sequence[TraceCliff], size: int, seed: int) -> list[list[TraceCliff]]:
    rng = np.random.default_rng(seed)
    parts = [(complied_rows(rows), size), (refused_rows(rows), size), (benign_rows(rows), 2 * size)]
    if len(parts[0][0]) < size:  # hardly complies: all harmful traces as they come
        parts = [([*parts[0][0], *parts[1][0]], 2 * size), parts[2]]
    drawn = []
    for _ in range(DRAWS):
        chosen = [
            part[at]
            for part, n in parts
            for at in rng.choice(len(part), size=min(n, len(part)), replace=False)
        ]
        drawn.append(chosen)
    return drawn


def measure(name: str, seed: int, out: Path, data: Path | None) -> None:
    """One model's test traces, their scores, cliffs and second readings, in a run folder."""
    subject = load_subject(name, device="cpu")
    if data is None:
        study, prompts = Study(KEY, subject, seed, GENERATION), prompts_stage(seed, DemoSizes())
    else:
        writing = RECORDED
        study, prompts = Study(KEY, subject, seed, writing), recorded_prompts(data, seed)
    stages = [prompts, *measure_stages(study), second_reading_stage(study)]
    info = RunInfo(
        command="bench verdict", seeds={"all": seed}, subjects={name: subject.fingerprint}
    )
    said = run_pipeline(out, stages, info).stages[f"{KEY}/cliff"].headline
    print(out.name, said, flush=True)


def recorded_prompts(
    data: Path, seed: int, fit: Mapping[str, int] = FIT_ON, test: Mapping[str, int] = TEST_ON
) -> Stage:
    """A draw of the prompts of the recorded audits, which take an hour and more."""
    found = audit_prompts(recorded_sources(data), seed)
    rng = random.Random(seed)
    parts = [
        [p for label, n in most.items() for p in _some(part, label, n, rng)]
        for part, most in ((found.fit, fit), (found.test, test))
    ]

    def write(job: Job) -> Headline:
        for name, part in zip((FIT_PROMPTS, TEST_PROMPTS), parts, strict=True):
            write_prompts(job.output(name), part)
        return {"fit": len(parts[0]), "test": len(parts[1])}

    config = {**found.files, "most": [dict(fit), dict(test)], "seed": seed}
    return Stage("prompts", (), (FIT_PROMPTS, TEST_PROMPTS), config, write)


def _some(part: Sequence[Prompt], label: str, n: int, rng: random.Random) -> list[Prompt]:
    mine = [prompt for prompt in part if prompt.label == label]
    return rng.sample(mine, min(n, len(mine)))


def by_benign(models: dict[str, list[TraceCliff]], folders: dict[str, Path]) -> str:
    """The verdict with some of the benign traces only: those of harmful words, and all others."""
    found = []
    for name, rows in models.items():
        traces = read_traces(folders[name] / "traces-test.parquet")
        hard = {t.prompt.id for t in traces if "hard-benign" in t.prompt.tags}
        cells = []
        for chosen in (hard, {t.prompt.id for t in traces} - hard):
            kept = [r for r in rows if r.label == "harmful" or r.trace_id in chosen]
            if not chosen:
                cells.append("–")
                continue
            said = model_cliff(kept)
            cells.append(f"{said.verdict}, {said.share_with_cliff:.0%} ({len(benign_rows(kept))})")
        found.append([name, *cells])
    return table(("verdict, share that falls (benign traces)", "hard benign", "others"), found)


def by_reading(folders: dict[str, Path]) -> str:
    """The second readings of each model, and what refitting the probe leaves of the share."""
    found = []
    for name, folder in folders.items():
        content = read_json(folder / "readings.json")
        said = content["readings"]
        cells = [
            f"{said[key]['verdict']}, {said[key]['share']:.0%}" if key in said else "–"
            for key in (OWN, OVER_THINKING, SAME_PLACE, MARGIN)
        ]
        refit = content["refit_share"]
        cells.append("–" if refit is None else f"[{refit[0]:.0%}, {refit[1]:.0%}]")
        for key in ("margin_at_closing", "margin_over_thinking", "beyond_margin"):
            cells.append("–" if content[key] is None else f"{content[key]:.2f}")
        early = [said[key]["early_auroc"] if key in said else None for key in (OWN, MARGIN)]
        cells.append(" / ".join("–" if value is None else f"{value:.2f}" for value in early))
        found.append([name, *cells])
    heading = ("model", OWN, OVER_THINKING, SAME_PLACE, MARGIN, "probe fitted again: share")
    more = ("r at closing", "r over thinking", "beyond the margin", "early AUROC: probe / margin")
    return table((*heading, *more), found)


def main() -> None:
    """Measure models, or print the tables of runs."""
    parser = argparse.ArgumentParser(description=__doc__)
    verbs = parser.add_subparsers(dest="verb", required=True)
    measured = verbs.add_parser("measure")
    measured.add_argument("out", type=Path)
    measured.add_argument("--model", action="append", required=True)
    measured.add_argument("--seed", action="append", type=int)
    measured.add_argument("--data", type=Path)
    verbs.add_parser("table").add_argument("runs", nargs="+", metavar="NAME=RUN/KEY")
    given = parser.parse_args()
    if given.verb == "table":
        print_tables(given.runs)
        return
    for model in given.model:
        folder = Path(model)
        label = f"{folder.name}-of-{folder.parent.name}" if folder.is_dir() else model
        for seed in given.seed or [0]:
            try:
                measure(model, seed, given.out / f"{label}-{seed}", given.data)
            except RefusalCliffError as error:  # which is a result, too
                print(f"{label}-{seed}: {error}", flush=True)


def print_tables(runs: Sequence[str]) -> None:
    """The tables of ``docs/results/verdict.md``."""
    folders = {name: Path(folder) for name, _, folder in (run.partition("=") for run in runs)}
    models = {name: rows_of(folder) for name, folder in folders.items()}
    for title, text in (
        ("What the rule says", operating(models)),
        (
            "Benign traces that fixed thresholds call a cliff, by the probe's slope",
            by_slope(models),
        ),
        ("Verdicts by number of traces", by_size(models)),
        ("Verdicts by benign source", by_benign(models, folders)),
        ("Verdicts by reading", by_reading(folders)),
    ):
        print(f"**{title}**\n\n{text}\n")


if __name__ == "__main__":
    main()
