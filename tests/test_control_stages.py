"""Controls as stages, on a tiny random model whose verdicts are made up."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.special import expit
from tiny_chat import save_tiny

from refusal_cliff.cliff.scores import read_scores, score_traces
from refusal_cliff.controls import pruning, rollouts
from refusal_cliff.controls.arms import UNCHANGED
from refusal_cliff.controls.intervention import (
    AT_CLOSING,
    FIXED,
    FROM_CLOSING,
    HEADER,
    NEW,
)
from refusal_cliff.controls.preset import OURS
from refusal_cliff.controls.pruning import RANDOM, WHOLE, template_closing
from refusal_cliff.controls.table import Cell, ControlTable
from refusal_cliff.controls.together import FOUND, TOGETHER, TOP
from refusal_cliff.data.traces import read_traces, write_traces
from refusal_cliff.data.types import Prompt, Trace
from refusal_cliff.generate import GenerationConfig, generate
from refusal_cliff.io import read_as, read_json
from refusal_cliff.model.ablation import ablated
from refusal_cliff.model.subject import Subject, load_subject, parse_head
from refusal_cliff.probe.files import read_probes
from refusal_cliff.run.folder import Headline, RunInfo
from refusal_cliff.run.pipeline import Job, Stage, run_pipeline
from refusal_cliff.stages.control import control_file, control_stages
from refusal_cliff.stages.intervene import AblationPlan, intervene_stages
from refusal_cliff.stages.measure import measure_stages
from refusal_cliff.stages.study import PRESETS, PROBES, TEST, Study

KEY, N = "model", 30
NAMES = ("pruning", "intervention", "second-opinion", "together", "rollouts", "preset")
PLAN = AblationPlan(
    traces=12,
    fractions=(0, 0.03),
    dose_prompts=2,
    dose_benign=2,
    candidates=2,
    joint_traces=6,
    draws={"random": 0, "same-layer": 0, "promoting": 0},
)


@pytest.fixture(scope="module")
def subject(tmp_path_factory: pytest.TempPathFactory) -> Subject:
    return load_subject(str(save_tiny(tmp_path_factory.mktemp("tiny"))), device="cpu")


def made_traces(study: Study, part: str) -> list[Trace]:
    """Closed traces: of harmful prompts every second one "refused", all benign ones answered."""
    prompts = [
        Prompt(f"{part}-{label}{at}", f"{label} {at}", label)
        for label in ("harmful", "benign")
        for at in range(N)
    ]
    closing, _ = template_closing(study.subject)
    begun = [[*range(40, 48 + at % 5), *closing] for at in range(len(prompts))]
    written = generate(study.subject, prompts, study.generation, begun=begun)
    refused = [trace.prompt.label == "harmful" and at % 2 == 0 for at, trace in enumerate(written)]
    return [
        replace(trace, verdict="refused" if says else "complied")
        for trace, says in zip(written, refused, strict=True)
    ]


def made_stage(study: Study) -> Stage:
    def write(job: Job) -> Headline:
        for part in ("fit", "test"):
            traces = made_traces(study, part)
            write_traces(study.output(job, f"traces-{part}.parquet"), traces)
        return {}

    return study.stage("made", (), ("traces-fit.parquet", "traces-test.parquet"), write)


@pytest.fixture(scope="module", params=PRESETS)
def run(
    request: pytest.FixtureRequest, subject: Subject, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    folder = tmp_path_factory.mktemp(str(request.param)) / "run"
    # A random model's traces do not fall beyond doubt, so no head of it could be proven.
    definitions = replace(PRESETS[request.param], proven=False)
    study = Study(KEY, subject, 0, GenerationConfig(36, 64), definitions)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rollouts, "SAMPLED", 6)
        stages = [
            made_stage(study),
            *measure_stages(study)[2:],
            *intervene_stages(study, PLAN),
            *control_stages(study, NAMES),
        ]
        run_pipeline(folder, stages, RunInfo(command="test", seeds={"all": 0}))
    return folder


def rows_of(run: Path, name: str) -> dict[str, dict[str, Cell]]:
    table = read_as(run / control_file(KEY, name), ControlTable)
    return {row: dict(zip(table.columns, cells, strict=True)) for row, cells in table.rows.items()}


def finals(subject: Subject, run: Path, trace: Trace, where: str) -> float:
    """Final score of a trace by a pass over the whole of it, the heads found out somewhere."""
    probes = read_probes(run / KEY / "probes.safetensors", run / KEY / "probes.json", subject)
    assert trace.spans is not None
    first = {"everywhere": 0, "closing": trace.spans.thinking}[where]
    places = torch.arange(len(trace.token_ids))[None] >= first
    heads = [parse_head(name) for name in read_json(run / KEY / "ablation.json")["heads"]]
    with ablated(subject, heads, where=places):
        scores = score_traces(subject, [trace], probes)[0]
    return float(expit(scores.logits[probes.row, trace.spans.last_closing]))


def test_the_whole_thinking_is_the_trace_itself(run: Path) -> None:
    rows = rows_of(run, "pruning")
    assert len(rows) == 7
    assert (rows[WHOLE]["ASR"].value, rows[WHOLE]["ASR"].n) == (0.5, N)
    assert rows[RANDOM]["thinking tokens"].value != rows[WHOLE]["thinking tokens"].value
    scores = [s for s in read_scores(run / KEY / "scores.parquet") if s.label == "harmful"]
    expected = [expit(s.logits[-1, s.spans.last_closing]) for s in scores]
    probes = read_probes(run / KEY / "probes.safetensors", run / KEY / "probes.json")
    if probes.row == len(probes.probes) - 1:
        assert rows[WHOLE]["final score"].value == pytest.approx(np.mean(expected), abs=1e-5)


def test_heads_are_out_where_the_row_says(run: Path, subject: Subject) -> None:
    rows = rows_of(run, "intervention")
    assert set(rows) == {UNCHANGED, NEW, FIXED, FROM_CLOSING, AT_CLOSING, HEADER}
    assert rows[UNCHANGED]["ASR"].value == 0.5
    got = [rows[name]["final score"].value for name in (FIXED, FROM_CLOSING, AT_CLOSING)]
    if "paper" in run.parent.name:
        assert got[1:] == [None, None]  # a renormalised ablation has no exact rerun
        return
    traces = read_traces(run / KEY / "traces-test.parquet")
    harmful = [trace for trace in traces if trace.prompt.label == "harmful"]
    everywhere, closing = (
        np.mean([finals(subject, run, trace, where) for trace in harmful])
        for where in ("everywhere", "closing")
    )
    assert got == pytest.approx([everywhere, closing, closing], abs=1e-5)


def test_every_control_leaves_a_table(run: Path) -> None:
    second = rows_of(run, "second-opinion")
    assert second["direct"]["shared with direct"].value == 1
    together = rows_of(run, "together")
    assert {UNCHANGED} <= set(together) <= {UNCHANGED, FOUND, TOP, TOGETHER}
    assert len(together) > 1
    assert together[UNCHANGED]["ASR"].value == 0.5
    rollouts = rows_of(run, "rollouts")
    assert rollouts["ASR of one answer"]["value"].n == 6
    preset = rows_of(run, "preset")
    assert len(preset) == 6
    if "default" in run.parent.name:
        assert preset[OURS]["cliff"].value == pytest.approx(
            read_json(run / KEY / "cliff.json")["cliff"], abs=1e-6
        )


def test_without_thinking_nothing_is_pruned(run: Path, subject: Subject, tmp_path: Path) -> None:
    shutil.copytree(run / KEY, tmp_path / KEY)
    path = tmp_path / KEY / "traces-test.parquet"
    write_traces(path, [without_thinking(trace) for trace in read_traces(path)])
    study = Study(KEY, subject, 0, GenerationConfig(36, 64))
    stage = study.stage("alone", (TEST, *PROBES), (), lambda job: {})
    job = Job(stage, tmp_path, tmp_path, lambda done, total: None, {}, tmp_path / "journal")
    table = pruning.measure(study, job)
    assert (table.rows, "No test trace has thinking" in table.finding) == ({}, True)
    assert f"Left out: {N + 30}" in table.notes[0]


def without_thinking(trace: Trace) -> Trace:
    assert trace.spans is not None
    return replace(trace, spans=replace(trace.spans, prompt=trace.spans.thinking))
