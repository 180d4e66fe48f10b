"""heads → ablate: which heads pull the score down, and do they cause what the model does?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial

from refusal_cliff.answers.evaluate import answered_texts, example_text
from refusal_cliff.cliff.scores import scores_in_parts, write_scores
from refusal_cliff.data.examples import read_examples
from refusal_cliff.data.traces import closed, write_traces
from refusal_cliff.data.types import LABELS, Prompt
from refusal_cliff.heads.find import (
    CANDIDATES,
    DECIDING,
    JOINT_TRACES,
    LEAST_DECIDING,
    TRACES,
    JointSearch,
    measure_on_traces,
    search_sets,
    taken_out,
)
from refusal_cliff.heads.joint import JOINT, NEARLY, HeadSet
from refusal_cliff.heads.result import FOUND
from refusal_cliff.heads.table import (
    DEFAULT_METHOD,
    METHODS,
    HeadRow,
    ranked,
    select_heads,
    write_heads,
)
from refusal_cliff.heads.trials import Trial, control_trials, dose_trials, take_out
from refusal_cliff.io import read_as, write_as
from refusal_cliff.model.ablation import ablated
from refusal_cliff.model.subject import Head
from refusal_cliff.run.folder import Headline
from refusal_cliff.run.pipeline import Job, Stage
from refusal_cliff.stages.ablated import Answers, written_of
from refusal_cliff.stages.asking import each_once
from refusal_cliff.stages.study import ABLATION, FIT, HEADS, PROBES, TEST, Study


@dataclass(frozen=True, slots=True)
class AblationPlan:
    """How much to try.

    Attributes:
        traces: Traces of each kind that heads are measured on.
        fractions: Shares of all heads taken out, by each ranking of ``methods`` and jointly.
        methods: Rankings of which doses are tried.
        dose_prompts: Harmful prompts of each dose.
        dose_benign: Benign prompts of each dose.
        candidates: Heads from the top of every ranking that joint selection chooses from.
        joint_traces: Traces that it chooses by.
        draws: Sets of heads of each kind of control, as many heads as were found.
        control_prompts: Harmful prompts of each control set.
        spared: Heads never in a control set, beside those found: the planted ones.
        reference: File of benign examples for perplexity; ``None`` takes the model's own answers.
    """

    traces: int = TRACES
    fractions: tuple[float, ...] = (0, 0.005, 0.01, 0.02, 0.03, 0.05, 0.10)
    methods: tuple[str, ...] = (DEFAULT_METHOD,)
    dose_prompts: int = 40
    dose_benign: int = 20
    candidates: int = CANDIDATES
    joint_traces: int = JOINT_TRACES
    draws: Mapping[str, int] = field(
        default_factory=lambda: {"random": 20, "same-layer": 5, "promoting": 5}
    )
    control_prompts: int = 30
    spared: tuple[Head, ...] = field(default=())
    reference: str | None = None

    def trials(
        self,
        rows: Sequence[HeadRow],
        found: Sequence[Head],
        joint: HeadSet,
        prompts: Sequence[Prompt],
        seed: int,
        *,
        everywhere: bool = False,
    ) -> list[Trial]:
        """All that is tried; the heads found, on all prompts, first.

        Args:
            rows: All heads.
            found: The heads found.
            joint: Heads in the order in which joint selection added them.
            prompts: The test prompts.
            seed: Seed of the draws of control sets.
            everywhere: Whether doses have the heads out while kept thoughts are read, too.
        """
        harmful, benign = (each_once(prompts, label) for label in LABELS)
        some = [*harmful[: self.dose_prompts], *benign[: self.dose_benign]]
        greedy = [joint[: n + 1] for n in range(len(joint))]
        asked = harmful[: self.control_prompts]
        return [
            Trial(FOUND, tuple(found), tuple(prompts), anew=True),
            *dose_trials(rows, self.methods, greedy, self.fractions, some, everywhere=everywhere),
            *control_trials(rows, found, self.spared, dict(self.draws), asked, seed),
        ]


def intervene_stages(study: Study, plan: AblationPlan) -> list[Stage]:
    """The stages that find heads and take them out."""
    return [
        study.stage(
            "heads",
            (FIT, *PROBES),
            (HEADS,),
            partial(_heads, study, plan),
            {"traces": plan.traces},
        ),
        study.stage(
            "joint",
            (FIT, TEST, HEADS, *PROBES),
            ("joint.json",),
            partial(_joint, study, plan),
            {
                "traces": plan.traces,
                "fractions": plan.fractions,
                "candidates": plan.candidates,
                "joint_traces": plan.joint_traces,
                "proven": study.definitions.proven,
                "chosen": ["joint", DECIDING, LEAST_DECIDING, NEARLY],
            },
        ),
        study.stage(
            "ablate",
            (TEST, HEADS, "joint.json", *PROBES),
            ("ablated.parquet", "scores-ablated.parquet", ABLATION),
            partial(_ablate, study, plan),
            {
                **asdict(plan),
                "spared": [str(head) for head in plan.spared],
                "unjudged": "attacks",  # runs that do not say it counted them as none
                "definitions": asdict(study.definitions),
                **study.verdicts,
                **study.elsewhere.ablating(),
            },
            shared=() if plan.reference is None else (plan.reference,),
        ),
    ]


def _heads(study: Study, plan: AblationPlan, job: Job) -> Headline:
    rows = measure_on_traces(
        study.subject,
        study.traces(job, "fit"),
        study.probes(job).chosen,
        most=plan.traces,
        seed=study.seed,
        progress=job.progress,
    )
    write_heads(study.output(job, "heads.parquet"), rows, study.subject.fingerprint)
    best = ranked(rows)[0]
    effect = next(row.causal.mean for row in rows if row.head == best)
    return {"heads": len(rows), "strongest": str(best), "effect": effect}


def _joint(study: Study, plan: AblationPlan, job: Job) -> Headline:
    fit, test = (study.traces(job, part) for part in ("fit", "test"))
    found = search_sets(
        study.subject,
        study.heads(job),
        fit,
        test,
        study.probes(job).chosen,
        fractions=plan.fractions,
        joint_traces=plan.joint_traces,
        most=plan.traces,
        candidates=plan.candidates,
        proven=study.definitions.proven,
        seed=study.seed,
        progress=job.progress,
    )
    write_as(study.output(job, "joint.json"), found)
    best = found.compared["beam"][0]
    return {"joint − top": best.difference, "beats it": best.beats}


def _ablate(study: Study, plan: AblationPlan, job: Job) -> Headline:
    before = study.traces(job, "test")
    rows = study.heads(job)
    searched = read_as(study.input(job, "joint.json"), JointSearch)
    found = taken_out(rows, searched.chosen, proven=study.definitions.proven)
    renormalised = study.definitions.renormalised
    answers = Answers(study, job, rows, before)
    if plan.reference is None:
        texts = answered_texts(before)
    else:
        examples = read_examples(job.input(plan.reference))
        texts = [example_text(study.subject, example) for example in examples]
    ablation = take_out(
        study.subject,
        plan.trials(
            rows,
            found,
            searched.greedy,
            [trace.prompt for trace in before],
            study.seed,
            everywhere=study.elsewhere.adapters is not None,
        ),
        before,
        answers,
        texts,
        renormalised=renormalised,
        progress=job.progress,
    )
    write_traces(study.output(job, "ablated.parquet"), ablation.after)
    with ablated(study.subject, found, renormalised=renormalised):
        scores = scores_in_parts(
            study.subject, closed(ablation.after), study.probes(job), job.progress
        )
        write_scores(study.output(job, "scores-ablated.parquet"), scores)
    result = ablation.result(
        method=JOINT if searched.chosen else DEFAULT_METHOD,
        judge=study.judge.name,
        by_method={m: tuple(select_heads(rows, method=m, proven=False)) for m in METHODS},
        written={"before": written_of(study.subject, before), **answers.written},
        served=answers.served,
    )
    write_as(study.output(job, "ablation.json"), result)
    tokens = sum(one.tokens for one in answers.written.values())
    headline: Headline = {"heads": " ".join(map(str, found)) or "none", "tokens": tokens}
    if answers.served:
        headline |= {"served": sum(one.answers for one in answers.served.values())}
    for name, share in (("before", result.before.attacks), ("after", result.attacks_after)):
        headline |= {} if share.value is None else {f"asr {name}": share.value}
    return headline
