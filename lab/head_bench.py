"""Which ranking of heads is right? Scored on organisms whose guilty heads are known.

``default`` is the ranking that the product itself uses on a model, chosen by fitting traces and
never by the truth: the heads of joint selection first where they beat the default ranking, else
that ranking. It is the one that is scored; the others are told beside it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score

from lab.baselines import baselines, output_norms
from lab.orchard import KINDS, Planted, grow, orchard
from lab.recipe import Progress
from refusal_cliff.answers.evaluate import rates
from refusal_cliff.data.examples import write_prompts
from refusal_cliff.data.traces import closed, verdict_groups
from refusal_cliff.data.types import Trace
from refusal_cliff.generate import GenerationConfig
from refusal_cliff.heads.find import JointSearch, explained
from refusal_cliff.heads.joint import JOINT
from refusal_cliff.heads.table import (
    DEFAULT_METHOD,
    METHODS,
    HeadRow,
    budget,
    ranked,
    select_heads,
)
from refusal_cliff.io import read_as, read_json, write_json
from refusal_cliff.model.subject import Head, load_subject
from refusal_cliff.organisms import embedded_path, language, planted_heads
from refusal_cliff.probe.fit import Probe
from refusal_cliff.probe.traces import closing_states
from refusal_cliff.run.folder import Headline, RunInfo
from refusal_cliff.run.pipeline import Job, Observer, Stage, run_pipeline
from refusal_cliff.stages.intervene import AblationPlan, intervene_stages
from refusal_cliff.stages.measure import measure_stages
from refusal_cliff.stages.study import FIT_PROMPTS, HEADS, PROBES, TEST_PROMPTS, Study
from refusal_cliff.stats import bootstrap_mean

Scores: TypeAlias = NDArray[np.float64]

KEY, RESULT = "model", "rankings.json"
FIT, TEST = 80, 40
BENCH = "head-bench.json"
PLAN = AblationPlan(traces=40, joint_traces=20, fractions=(0.03, 0.05))
DEFAULT, RANDOM = "default", "random"
SHUFFLES = 200
_PROMPTS: tuple[tuple[str, language.Split, int], ...] = (
    (FIT_PROMPTS, "validation", FIT),
    (TEST_PROMPTS, "test", TEST),
)
NEEDED = tuple(f"{KEY}/{step}" for step in ("generate", "judge", "probe", "heads", "joint"))


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


def mean_quality(draws: Scores, planted: NDArray[np.bool_]) -> Quality:
    """Mean quality of several rankings, [draws, heads]: not the quality of their mean."""
    found = [asdict(quality_of(scores, planted)) for scores in draws]
    return Quality(**{name: float(np.mean([one[name] for one in found])) for name in found[0]})


def bench_heads(
    out: Path, n: int, observer: Observer | None = None, step: Progress | None = None
) -> dict[str, dict[str, list[Quality]]]:
    """Make, or continue, ``n`` planted organisms of each kind and score every ranking on each.

    Args:
        out: Folder; each organism's checkpoint and run go into one of their own.
        n: Organisms of each kind of ``KINDS``.
        observer: Told what happens in each run.
        step: Told of the training: (stage, done, total).

    Returns:
        By kind, the qualities of each ranking, one an organism.
    """
    found = [_of_organism(planted, observer, step) for planted in orchard(out, n)]
    write_json(out / BENCH, found)
    return {kind: _by_method([one for one in found if one["kind"] == kind]) for kind in KINDS}


def _by_method(found: Sequence[dict[str, Any]]) -> dict[str, list[Quality]]:
    return {
        method: [Quality(**one["methods"][method]) for one in found]
        for method in found[0]["methods"]
    }


def table_of(found: dict[str, dict[str, list[Quality]]]) -> list[dict[str, str]]:
    """Rankings by rows, the product's first, then by average precision on the hardest kind.

    Of each kind: mean average precision over its organisms with a bootstrap interval, the worst,
    and the mean share of guilty heads among the first k, k as many as were planted.
    """
    rows = {method: {"ranking": method} for method in next(iter(found.values()))}
    for kind, by_method in found.items():
        for method, qualities in by_method.items():
            rows[method] |= _cells(kind, qualities)
    hardest = found[list(found)[-1]]

    def place(method: str) -> tuple[bool, float]:
        return method == DEFAULT, float(np.mean([q.average_precision for q in hardest[method]]))

    return [rows[method] for method in sorted(rows, key=place, reverse=True)]


def _cells(kind: str, qualities: Sequence[Quality]) -> dict[str, str]:
    precisions = [quality.average_precision for quality in qualities]
    low, high = bootstrap_mean(precisions)
    found = np.mean([quality.precision for quality in qualities])
    return {
        f"{kind}: average precision": f"{np.mean(precisions):.2f} [{low:.2f}, {high:.2f}]",
        f"{kind}: worst": f"{min(precisions):.2f}",
        f"{kind}: of first k": f"{found:.2f}",
    }


def _of_organism(
    planted: Planted, observer: Observer | None, step: Progress | None
) -> dict[str, Any]:
    checkpoint = grow(planted, step)
    subject = load_subject(str(checkpoint), device="cpu")
    study = Study(KEY, subject, planted.seed, GenerationConfig(110, 128))
    stages = [*measure_stages(study), *intervene_stages(study, PLAN)]
    info = RunInfo(
        command="lab bench-heads",
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
            _score_stage(study, [Head(*head) for head in planted_heads(checkpoint)]),
        ],
        info,
        observer,
    )
    return {"kind": planted.kind, **read_json(run / KEY / RESULT)}


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
    return study.stage(
        "rankings",
        ("traces-fit.parquet", "traces-test.parquet", *PROBES, HEADS, "joint.json"),
        (RESULT,),
        lambda job: _score(study, truth, job),
        {"planted": [str(head) for head in truth]},
    )


def _score(study: Study, truth: Sequence[Head], job: Job) -> Headline:
    rows = study.heads(job)
    joint = read_as(study.input(job, "joint.json"), JointSearch)
    greedy, chosen = joint.greedy, joint.chosen or ()
    attacks = rates(study.traces(job, "test")).attacks
    fit = closed(study.traces(job, "fit"))
    planted = np.array([row.head in truth for row in rows])
    probe = study.probes(job).chosen
    scores = rankings(rows, greedy, chosen) | baseline_rankings(study, rows, fit, probe)
    qualities = {name: asdict(mean_quality(draws, planted)) for name, draws in scores.items()}
    found = chosen or select_heads(rows)
    content = {
        "planted": [str(head) for head in truth],
        "probe_layer": probe.layer,
        "attacks": asdict(attacks),
        "norm_ratio": _norm_ratio(study, truth, explained(fit)[: PLAN.traces]),
        "taken_out": [str(head) for head in found],
        "taken_out_by": JOINT if chosen else DEFAULT_METHOD,
        "guilty_taken_out": len({*found} & {*truth}),
        "above_zero": [str(row.head) for row in rows if row.causal.low > 0],
        "proven": [str(row.head) for row in rows if row.proof.proven],
        "methods": qualities,
    }
    write_json(study.output(job, RESULT), content)
    precision = qualities[DEFAULT]["average_precision"]
    headline: Headline = {"asr": attacks.value or 0.0, "default": precision}
    return headline


def rankings(
    rows: Sequence[HeadRow], greedy: Sequence[Head], chosen: Sequence[Head]
) -> dict[str, Scores]:
    """Scores of all heads by every ranking that reads the probe, [1, heads] each, as in ``rows``.

    Args:
        rows: All heads. ``direct`` ranks as the paper's score does, which is the same number
            divided by the probe's norm.
        greedy: Heads in the order in which joint selection added them; the others follow by their
            causal effect.
        chosen: Heads that the run takes out instead of its ranking's, by joint effect; may be none.
    """
    scores = {name: np.array([[of(row) for row in rows]]) for name, of in METHODS.items()}
    scores["joint"] = _by_order(rows, greedy, ranked(rows, "causal"))
    scores[DEFAULT] = _by_order(rows, chosen, ranked(rows))
    return scores


def _by_order(rows: Sequence[HeadRow], first: Sequence[Head], then: Sequence[Head]) -> Scores:
    """A ranking that begins with some heads and goes on with another ranking."""
    order = [*first, *(head for head in then if head not in first)]
    return np.array([[-float(order.index(row.head)) for row in rows]])


def baseline_rankings(
    study: Study, rows: Sequence[HeadRow], fit: Sequence[Trace], probe: Probe
) -> dict[str, Scores]:
    """What every ranking must beat, [draws, heads] each, as in ``rows``.

    Args:
        study: The model, and where its probes read.
        rows: All heads.
        fit: Closed traces that the probe was fitted and the heads were measured on.
        probe: The probe, one of every block.
    """
    groups = verdict_groups(fit)
    fitted = [*groups["refused"], *groups["benign"]]
    states = closing_states(study.subject, fitted, study.read_point)
    labels = np.repeat([1, 0], [len(groups["refused"]), len(groups["benign"])])
    of_layer = np.stack([states[trace.prompt.id][probe.layer - 1] for trace in fitted])
    traces = explained(fit)[: PLAN.traces]
    found = baselines(study.subject, traces, probe, of_layer, labels, study.seed)
    heads = [(row.layer - 1, row.index) for row in rows]
    scores = {
        name: np.array([[draw[head] for head in heads] for draw in draws], dtype=np.float64)
        for name, draws in found.items()
    }
    scores[RANDOM] = np.random.default_rng(0).random((SHUFFLES, len(rows)))
    return scores


def _norm_ratio(study: Study, truth: Sequence[Head], traces: Sequence[Trace]) -> float:
    """How much more the planted heads write than before the damage, ratio of mean norms."""
    before = load_subject(str(embedded_path("tiny-aligned")), device="cpu")
    means = [output_norms(subject, traces).mean(0) for subject in (study.subject, before)]
    after, then = (sum(norms[head.layer - 1, head.index] for head in truth) for norms in means)
    return float(after / then)
