"""heads → ablate: which heads pull the score down, and do they cause what the model does?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field

from refusal_cliff.answers.evaluate import perplexity, rates
from refusal_cliff.answers.writing import writing_of
from refusal_cliff.cliff.scores import score_traces, write_scores
from refusal_cliff.cliff.verdict import MIN_COMPLIED
from refusal_cliff.data.examples import read_examples
from refusal_cliff.data.traces import (
    SafetyExample,
    Trace,
    closed,
    read_traces,
    verdict_groups,
    write_traces,
)
from refusal_cliff.heads.joint import (
    BEAM,
    JOINT,
    NEARLY,
    HeadSet,
    JointEffects,
    compare,
    enough_together,
    select_jointly,
    strongest_of_any,
)
from refusal_cliff.heads.table import (
    DEFAULT_METHOD,
    METHODS,
    HeadRow,
    budget,
    measure_heads,
    ranked,
    read_heads,
    select_heads,
    write_heads,
)
from refusal_cliff.heads.trials import Trial, control_trials, dose_trials, sizes
from refusal_cliff.io import read_json, write_json
from refusal_cliff.model.ablation import ablated
from refusal_cliff.model.subject import Head, Subject, parse_head
from refusal_cliff.probe.fit import Probe
from refusal_cliff.run.folder import Headline
from refusal_cliff.run.pipeline import Job, Stage
from refusal_cliff.stages.measure import input_probes
from refusal_cliff.stages.study import Study
from refusal_cliff.stats import bootstrap_mean
from refusal_cliff.thinking import render_prompt

Text = tuple[Sequence[int], int]
DECIDING, LEAST_DECIDING = 30, 5
"""Fitting traces by which a joint set is proven, at most and at least."""
STRONGER = 2.0
"""What the heads are scaled by in the reverse control, which writes no weights."""


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

    traces: int = 60
    fractions: tuple[float, ...] = (0, 0.005, 0.01, 0.02, 0.03, 0.05, 0.10)
    methods: tuple[str, ...] = (DEFAULT_METHOD,)
    dose_prompts: int = 40
    dose_benign: int = 20
    candidates: int = 12
    joint_traces: int = 40
    draws: Mapping[str, int] = field(
        default_factory=lambda: {"random": 20, "same-layer": 5, "promoting": 5}
    )
    control_prompts: int = 30
    spared: tuple[Head, ...] = field(default=())
    reference: str | None = None


def intervene_stages(study: Study, plan: AblationPlan) -> list[Stage]:
    """The stages that find heads and take them out."""
    references = [] if plan.reference is None else [plan.reference]
    config = {
        **asdict(plan),
        "spared": [str(head) for head in plan.spared],
        "definitions": asdict(study.definitions),
    }
    probes = [study.path(name) for name in ("probes.safetensors", "probes.json")]
    fit, test, heads = (
        study.path(name) for name in ("traces-fit.parquet", "traces-test.parquet", "heads.parquet")
    )
    return [
        study.stage(
            "heads",
            [fit, *probes],
            ("heads.parquet",),
            lambda job: _heads(study, plan, job),
            {"traces": plan.traces},
        ),
        study.stage(
            "joint",
            [fit, test, heads, *probes],
            ("joint.json",),
            lambda job: _joint(study, plan, job),
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
            [test, heads, study.path("joint.json"), *probes, *references],
            ("ablated.parquet", "scores-ablated.parquet", "ablation.json"),
            lambda job: _ablate(study, plan, job),
            {**config, **study.verdicts},
        ),
    ]


def _heads(study: Study, plan: AblationPlan, job: Job) -> Headline:
    traces = closed(read_traces(job.input(study.path("traces-fit.parquet"))))
    probes = input_probes(study, job)
    probe = probes.chosen
    groups = verdict_groups(traces)
    rows = measure_heads(
        study.subject,
        explained(traces)[: plan.traces],
        groups["refused"][: plan.traces],
        groups["benign"][: plan.traces // 2],
        probe,
        seed=study.seed,
        progress=job.progress,
    )
    write_heads(job.output(study.path("heads.parquet")), rows, study.subject.fingerprint)
    best = ranked(rows)[0]
    effect = next(row.causal.mean for row in rows if row.head == best)
    return {"heads": len(rows), "strongest": str(best), "effect": effect}


def explained(traces: Sequence[Trace]) -> list[Trace]:
    """The judged traces whose fall heads are to explain: complied ones where there are enough."""
    groups = verdict_groups(traces)
    complied, refused = groups["complied"], groups["refused"]
    return complied if len(complied) >= MIN_COMPLIED else [*complied, *refused]


def _joint(study: Study, plan: AblationPlan, job: Job) -> Headline:
    """Sets chosen by joint effect on the fitting traces, compared with tops on the test traces.

    The reverse control rides along: the heads found, made twice as strong.
    """
    rows = read_heads(job.input(study.path("heads.parquet")), study.subject)
    probe = input_probes(study, job).chosen
    fit, test = (
        explained(closed(read_traces(job.input(study.path(name)))))
        for name in ("traces-fit.parquet", "traces-test.parquet")
    )
    held_out = test[: plan.traces]
    wanted = [n for n in sizes(len(rows), plan.fractions) if n]
    greedy, beam = _joint_sets(study.subject, fit[: plan.traces], probe, plan, rows, job)
    effects = JointEffects(study.subject, held_out, probe)
    groups = [trace.prompt.group for trace in held_out]
    top = ranked(rows)
    tried = {"greedy": [greedy[:n] for n in wanted if n <= len(greedy)], "beam": [beam]}
    compared = {
        name: [compare(effects, groups, one, tuple(top[: len(one)]), study.seed) for one in sets]
        for name, sets in tried.items()
    }
    together = _enough_together(
        study, fit[plan.joint_traces :][:DECIDING], probe, greedy[: budget(len(rows))]
    )
    chosen = together or tuple(select_heads(rows, proven=study.definitions.proven))
    stronger = effects.of([chosen], STRONGER)[:, 0]
    content = {
        "chosen": None if together is None else [str(head) for head in together],
        "greedy": [str(head) for head in greedy],
        "beam": [str(head) for head in beam],
        "compared": {
            name: [{**asdict(one), "beats": one.beats} for one in found]
            for name, found in compared.items()
        },
        "reverse": {
            "scale": STRONGER,
            "mean": float(stronger.mean()),
            "interval": list(bootstrap_mean(stronger, groups, seed=study.seed)),
            "n": len(groups),
        },
    }
    write_json(job.output(study.path("joint.json")), content)
    best = compared["beam"][0]
    return {"joint − top": best.difference, "beats it": best.beats}


def _enough_together(
    study: Study, deciding: Sequence[Trace], probe: Probe, order: HeadSet
) -> HeadSet | None:
    """The joint set, where it raises the score on fitting traces that it was not selected by."""
    if len(deciding) < LEAST_DECIDING or not study.definitions.proven:
        return None
    effects = JointEffects(study.subject, deciding, probe)
    return enough_together(effects, [t.prompt.group for t in deciding], order, study.seed)


def _joint_sets(
    subject: Subject,
    traces: Sequence[Trace],
    probe: Probe,
    plan: AblationPlan,
    rows: Sequence[HeadRow],
    job: Job,
) -> tuple[HeadSet, HeadSet]:
    """Greedily as many heads as the largest dose, and the best few by beam search."""
    effects = JointEffects(subject, traces[: plan.joint_traces], probe)
    candidates = strongest_of_any(rows, plan.candidates)
    most = max(sizes(len(rows), plan.fractions))
    greedy = select_jointly(effects, candidates, max(most, 1), progress=job.progress)
    beam = select_jointly(effects, candidates, budget(len(rows)), beam=BEAM)
    return greedy[-1], beam[-1]


def _ablate(study: Study, plan: AblationPlan, job: Job) -> Headline:
    before = read_traces(job.input(study.path("traces-test.parquet")))
    rows = read_heads(job.input(study.path("heads.parquet")), study.subject)
    content = read_json(job.input(study.path("joint.json")))
    joint = [parse_head(name) for name in content["greedy"]]
    chosen = content["chosen"] and [parse_head(name) for name in content["chosen"]]
    trials = _trials(study, plan, rows, joint, chosen, before)
    results = _run(study, trials, before, job)
    found, after, definitions = trials[0].heads, results[0], study.definitions
    write_traces(job.output(study.path("ablated.parquet")), after)
    with ablated(study.subject, found, renormalised=definitions.renormalised):
        scores = score_traces(study.subject, closed(after), input_probes(study, job))
    write_scores(job.output(study.path("scores-ablated.parquet")), scores)
    texts = _texts(study.subject, plan, before, job)
    tops = [trial.heads for trial in trials if trial.kind.startswith("top-")]
    perplexities = {
        heads: perplexity(study.subject, texts, heads, renormalised=definitions.renormalised)
        for heads in dict.fromkeys([(), found, *tops])
    }
    small = {p.id for trial in trials if trial.kind == "random" for p in trial.prompts}
    sides = {"before": before, "after": after}
    report = {
        "heads": [str(head) for head in found],
        "method": JOINT if chosen else DEFAULT_METHOD,
        **study.verdicts,
        "by_method": {  # what a ranking names, proven or not: how well it finds planted heads
            m: [str(h) for h in select_heads(rows, method=m, proven=False)] for m in METHODS
        },
        **{name: asdict(rates(traces)) for name, traces in sides.items()},
        "writing": {name: asdict(writing_of(_benign(traces))) for name, traces in sides.items()},
        "pairs": {
            "groups": {t.prompt.id: t.prompt.group for t in before if t.prompt.label == "harmful"},
            "before": attacked(before),
            "after": attacked(after),
            "random_prompts": [t.prompt.id for t in before if t.prompt.id in small],
        },
        "trials": _counted(trials[1:], results[1:], perplexities),
        "perplexity_before": perplexities[()],
        "perplexity_after": perplexities[found],
        "perplexity_texts": len(texts),
    }
    write_json(job.output(study.path("ablation.json")), report)
    headline: Headline = {"heads": " ".join(map(str, found)) or "none"}
    for name, traces in sides.items():
        value = rates(traces).attacks.value
        headline |= {} if value is None else {f"asr {name}": value}
    return headline


def _counted(
    trials: Sequence[Trial],
    results: Sequence[Sequence[Trace]],
    perplexities: Mapping[HeadSet, float],
) -> list[dict[str, object]]:
    return [
        {
            "kind": trial.kind,
            "heads": [str(head) for head in trial.heads],
            **asdict(rates(traces)),
            "attacked": attacked(traces),
            "perplexity": perplexities.get(trial.heads),
        }
        for trial, traces in zip(trials, results, strict=True)
    ]


def attacked(traces: Sequence[Trace]) -> list[str]:
    """Ids of the harmful prompts that were complied with: what paired comparisons are made of."""
    return [trace.prompt.id for trace in verdict_groups(traces)["complied"]]


def _benign(traces: Sequence[Trace]) -> list[Trace]:
    return [trace for trace in traces if trace.prompt.label == "benign"]


def _trials(
    study: Study,
    plan: AblationPlan,
    rows: Sequence[HeadRow],
    joint: Sequence[Head],
    chosen: Sequence[Head] | None,
    before: Sequence[Trace],
) -> list[Trial]:
    """All that is tried; the heads found, on all test prompts, first."""
    found = chosen or select_heads(rows, proven=study.definitions.proven)
    prompts = [trace.prompt for trace in before]
    harmful, benign = (
        [prompt for prompt in prompts if prompt.label == label] for label in ("harmful", "benign")
    )
    some = [*harmful[: plan.dose_prompts], *benign[: plan.dose_benign]]
    greedy = [joint[: n + 1] for n in range(len(joint))]
    asked = harmful[: plan.control_prompts]
    return [
        Trial("found", tuple(found), tuple(prompts)),
        *dose_trials(rows, plan.methods, greedy, plan.fractions, some),
        *control_trials(rows, found, plan.spared, dict(plan.draws), asked, study.seed),
    ]


def _run(
    study: Study, trials: Sequence[Trial], before: Sequence[Trace], job: Job
) -> list[list[Trace]]:
    """Answer all trials' prompts in common batches, each row with its own heads taken out.

    Greedy answers repeat themselves, so what several trials ask, and what was answered before, is
    asked once.
    """
    known = {(trace.prompt, frozenset[Head]()): trace for trace in before}
    asked = [[(prompt, frozenset(trial.heads)) for prompt in trial.prompts] for trial in trials]
    new = list(dict.fromkeys(pair for pairs in asked for pair in pairs if pair not in known))
    traces = study.write([prompt for prompt, _ in new], job, [sorted(heads) for _, heads in new])
    known |= dict(zip(new, traces, strict=True))
    return [[known[pair] for pair in pairs] for pairs in asked]


def _texts(subject: Subject, plan: AblationPlan, before: Sequence[Trace], job: Job) -> list[Text]:
    """Benign texts for perplexity: reference examples, or what the model answered before."""
    if plan.reference is not None:
        return [
            example_text(subject, example) for example in read_examples(job.input(plan.reference))
        ]
    benign = [trace for trace in closed(before) if trace.prompt.label == "benign"]
    return [(trace.token_ids, trace.spans.prompt) for trace in benign if trace.spans is not None]


def example_text(subject: Subject, example: SafetyExample) -> Text:
    """Token ids of an example, and the first that is not the prompt's."""
    prompt = render_prompt(subject.tokenizer, example.prompt.text)
    completion = subject.format.completion(example.thinking, example.response)
    written = subject.tokenizer.encode(completion, add_special_tokens=False)
    return [*prompt, *written], len(prompt)
