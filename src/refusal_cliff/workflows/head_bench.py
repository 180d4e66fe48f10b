"""Which ranking of heads is right? Scored on organisms whose guilty heads are known."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score

from refusal_cliff.answers.evaluate import rates
from refusal_cliff.cliff.scores import closed
from refusal_cliff.data.examples import write_prompts
from refusal_cliff.data.traces import Trace, read_traces
from refusal_cliff.generate import GenerationConfig
from refusal_cliff.heads.joint import JointEffects, select_jointly, strongest_of_any
from refusal_cliff.heads.rerun import closed_spans
from refusal_cliff.heads.table import METHODS, HeadRow, budget, ranked, read_heads
from refusal_cliff.io import read_json, write_json
from refusal_cliff.model.capture import head_vectors
from refusal_cliff.model.subject import Head, Subject, load_subject
from refusal_cliff.organisms import language, planted_heads
from refusal_cliff.organisms.orchard import Planted, grow, orchard
from refusal_cliff.probe.fit import Probe
from refusal_cliff.run.folder import Headline, RunInfo
from refusal_cliff.run.pipeline import Job, Observer, Stage, run_pipeline
from refusal_cliff.stages.intervene import AblationPlan, explained, intervene_stages
from refusal_cliff.stages.measure import input_probes, measure_stages
from refusal_cliff.stages.study import FIT_PROMPTS, TEST_PROMPTS, Study
from refusal_cliff.stats import bootstrap_mean

Scores: TypeAlias = NDArray[np.float64]
Step: TypeAlias = Callable[[str, int, int], None]

KEY, RESULT = "model", "rankings.json"
FIT, TEST, TRACES = 80, 40, 40
GREEDY_FRACTION, EACH = 0.05, 12
SHUFFLES = 200
_PROMPTS: tuple[tuple[str, language.Split, int], ...] = (
    (FIT_PROMPTS, "validation", FIT),
    (TEST_PROMPTS, "test", TEST),
)
NEEDED = tuple(f"{KEY}/{step}" for step in ("generate", "judge", "probe", "heads"))


@dataclass(frozen=True, slots=True)
class Quality:
    """How well a ranking finds the planted heads.

    Attributes:
        average_precision: Area under its precision-recall curve, over all heads.
        precision: Share of planted heads among its first k, k the number planted; then also the
            recall there.
        recall_at_3_percent: Share of the planted heads in its first 3 % of all heads.
        recall_at_10_percent: The same for 10 %.
    """

    average_precision: float
    precision: float
    recall_at_3_percent: float
    recall_at_10_percent: float


def quality_of(scores: Scores, planted: NDArray[np.bool_]) -> Quality:
    """Score a ranking.

    Args:
        scores: One a head; the highest is ranked first.
        planted: Whether each head was planted.
    """
    order = np.argsort(-scores, kind="stable")

    def recall(n: int) -> float:
        return float(planted[order[:n]].sum() / planted.sum())

    return Quality(
        float(average_precision_score(planted, scores)),
        recall(int(planted.sum())),
        recall(budget(len(scores), 0.03)),
        recall(budget(len(scores), 0.10)),
    )


def random_quality(planted: NDArray[np.bool_]) -> Quality:
    """Mean over random rankings."""
    rng = np.random.default_rng(0)
    drawn = [asdict(quality_of(rng.random(len(planted)), planted)) for _ in range(SHUFFLES)]
    return Quality(**{name: float(np.mean([q[name] for q in drawn])) for name in drawn[0]})


def bench_heads(
    out: Path, n: int, observer: Observer | None = None, step: Step | None = None
) -> dict[str, list[Quality]]:
    """Make, or continue, ``n`` planted organisms and score every ranking on each.

    Args:
        out: Folder; each organism's checkpoint and run go into one of their own.
        n: Organisms.
        observer: Told what happens in each run.
        step: Told of the training: (stage, done, total).

    Returns:
        The qualities of each ranking, one an organism.
    """
    found = [_of_organism(planted, observer, step) for planted in orchard(out, n)]
    write_json(out / "head-bench.json", found)
    return {
        method: [Quality(**one["methods"][method]) for one in found]
        for method in found[0]["methods"]
    }


def table_of(found: dict[str, list[Quality]]) -> list[dict[str, str]]:
    """Means over organisms, the best ranking first; of average precision, the interval too."""
    rows: list[tuple[float, dict[str, str]]] = []
    for method, qualities in found.items():
        values = {
            field.name: [getattr(quality, field.name) for quality in qualities]
            for field in fields(Quality)
        }
        means = {name: float(np.mean(of)) for name, of in values.items()}
        low, high = bootstrap_mean(values["average_precision"])
        cells = {
            "ranking": method,
            "average precision": f"{means['average_precision']:.3f} [{low:.3f}, {high:.3f}]",
            "worst": f"{min(values['average_precision']):.3f}",
            "precision = recall at k": f"{means['precision']:.3f}",
            "recall at 3 %": f"{means['recall_at_3_percent']:.3f}",
            "recall at 10 %": f"{means['recall_at_10_percent']:.3f}",
        }
        rows.append((means["average_precision"], cells))
    return [cells for _, cells in sorted(rows, key=lambda row: row[0], reverse=True)]


def _of_organism(planted: Planted, observer: Observer | None, step: Step | None) -> dict[str, Any]:
    checkpoint = grow(planted, step)
    subject = load_subject(str(checkpoint), device="cpu")
    truth = [Head(layer, index) for layer, index in planted_heads(checkpoint)]
    study = Study(KEY, subject, planted.seed, GenerationConfig(110, 128))
    stages = [*measure_stages(study), *intervene_stages(study, AblationPlan(traces=TRACES))]
    info = RunInfo(
        command="organism bench-heads",
        config={},
        seeds={"all": planted.seed},
        subjects={subject.name: subject.fingerprint},
    )
    run = planted.folder / "run"
    run_pipeline(
        run,
        [
            _prompts_stage(planted.seed),
            *(stage for stage in stages if stage.name in NEEDED),
            _score_stage(study, truth),
        ],
        info,
        observer,
    )
    return read_json(run / KEY / RESULT)


def _prompts_stage(seed: int) -> Stage:
    def write(job: Job) -> Headline:
        for name, split, n in _PROMPTS:
            harmful = language.prompts(split, "harmful", n, seed)
            benign = language.prompts(split, "benign", n, seed)
            write_prompts(job.output(name), [*harmful, *benign])
        return {"fit": 2 * FIT, "test": 2 * TEST}

    outputs = (FIT_PROMPTS, TEST_PROMPTS)
    return Stage("prompts", (), outputs, {"seed": seed, "fit": FIT, "test": TEST}, write)


def _score_stage(study: Study, truth: Sequence[Head]) -> Stage:
    """Every ranking of one organism against the truth."""
    inputs = ("traces-fit.parquet", "traces-test.parquet", "probes.safetensors", "probes.json")
    return study.stage(
        "rankings",
        [study.path(name) for name in (*inputs, "heads.parquet")],
        (RESULT,),
        lambda job: _score(study, truth, job),
        {"planted": [str(head) for head in truth], "greedy": GREEDY_FRACTION, "each": EACH},
    )


def _score(study: Study, truth: Sequence[Head], job: Job) -> Headline:
    rows = read_heads(job.input(study.path("heads.parquet")), study.subject)
    fit = closed(read_traces(job.input(study.path("traces-fit.parquet"))))
    probe = input_probes(study, job).chosen
    attacks = rates(read_traces(job.input(study.path("traces-test.parquet")))).attacks
    planted = np.array([row.head in truth for row in rows])
    scores = rankings(study.subject, rows, explained(fit)[:TRACES], probe, job.progress)
    qualities = {name: quality_of(values, planted) for name, values in scores.items()}
    qualities["random"] = random_quality(planted)
    content = {
        "planted": [str(head) for head in truth],
        "probe_layer": probe.layer,
        "attacks": asdict(attacks),
        "methods": {name: asdict(quality) for name, quality in qualities.items()},
    }
    write_json(job.output(study.path(RESULT)), content)
    best = max(qualities, key=lambda name: qualities[name].average_precision)
    headline: Headline = {"asr": attacks.value or 0.0, "best": best}
    return headline


def rankings(
    subject: Subject,
    rows: Sequence[HeadRow],
    traces: Sequence[Trace],
    probe: Probe,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Scores]:
    """Scores of all heads by every way to rank them, in the order of ``rows``.

    ``direct`` ranks as the paper's score does, which is the same number divided by the probe's
    norm. Greedy selection ranks the heads that it added, in that order, before all others.
    """
    scores = {name: np.array([of(row) for row in rows]) for name, of in METHODS.items()}
    size = budget(len(rows), GREEDY_FRACTION)
    candidates = strongest_of_any(rows, EACH)
    joint = select_jointly(
        JointEffects(subject, traces, probe), candidates, size, progress=progress
    )
    order = [*joint[-1], *(head for head in ranked(rows, "causal") if head not in joint[-1])]
    place = {head: at for at, head in enumerate(order)}
    scores["greedy"] = -np.array([float(place[row.head]) for row in rows])
    weight, attention = weight_only(subject, probe), attention_to_request(subject, traces)
    scores["weight-only"] = np.array([weight[row.head] for row in rows])
    scores["attention"] = np.array([attention[row.head] for row in rows])
    return scores


def weight_only(subject: Subject, probe: Probe) -> dict[Head, float]:
    """``‖W_O[l][:, i]ᵀ w‖``: how strongly a head could write along the probe, whatever it reads."""
    found = dict.fromkeys(subject.heads(), 0.0)
    for layer, vectors in head_vectors(subject, probe.weight, probe.layer).items():
        lengths = vectors.norm(dim=-1).tolist()
        found |= {Head(layer, index): length for index, length in enumerate(lengths)}
    return found


@torch.inference_mode()
def attention_to_request(subject: Subject, traces: Sequence[Trace]) -> dict[Head, float]:
    """Attention of each head from the last closing token to the prompt, mean over traces."""
    chosen = str(subject.model.config._attn_implementation)
    subject.model.set_attn_implementation("eager")
    total = torch.zeros(subject.n_layers, subject.n_heads)
    try:
        for trace in traces:
            spans = closed_spans(trace)
            ids = torch.tensor([trace.token_ids[: spans.closing]], device=subject.device)
            output = subject.model(ids, output_attentions=True, use_cache=False)
            for layer, weights in enumerate(output.attentions):
                total[layer] += weights[0, :, -1, : spans.prompt].sum(-1).float().cpu()
    finally:
        subject.model.set_attn_implementation(chosen)
    means = total / len(traces)
    return {head: float(means[head.layer - 1, head.index]) for head in subject.heads()}
