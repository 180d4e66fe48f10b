"""heads → ablate: which heads pull the score down, and do they cause what the model does?"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field

from refusal_cliff.cliff import MIN_TRACES
from refusal_cliff.errors import RefusalCliffError
from refusal_cliff.evaluate import perplexity, rates
from refusal_cliff.examples import read_examples
from refusal_cliff.heads import (
    METHODS,
    HeadRow,
    measure_heads,
    ranked,
    read_heads,
    select_heads,
    write_heads,
)
from refusal_cliff.io import write_json
from refusal_cliff.models import Head, Subject
from refusal_cliff.pipeline import Job, Stage
from refusal_cliff.run_folder import Headline
from refusal_cliff.scores import closed
from refusal_cliff.stages.measure import input_probes, verdict_groups
from refusal_cliff.stages.study import Study
from refusal_cliff.thinking import render_prompt
from refusal_cliff.traces import Prompt, SafetyExample, Trace, read_traces, write_traces

Text = tuple[Sequence[int], int]


@dataclass(frozen=True, slots=True)
class AblationPlan:
    """How much to try.

    Attributes:
        traces: Traces of each kind that heads are measured on.
        doses: Numbers of heads taken out, one after another, by each ranking of ``methods``.
        methods: Rankings of which doses are tried.
        dose_prompts: Harmful prompts of each dose.
        random_sets: Random sets of heads, as many heads as were found.
        random_prompts: Harmful prompts of each random set.
        spared: Heads never in a random set, beside those found: the planted ones.
        reference: File of benign examples for perplexity; ``None`` takes the model's own answers.
    """

    traces: int = 60
    doses: tuple[int, ...] = ()
    methods: tuple[str, ...] = ("causal",)
    dose_prompts: int = 40
    random_sets: int = 20
    random_prompts: int = 30
    spared: tuple[Head, ...] = field(default=())
    reference: str | None = None


def intervene_stages(study: Study, plan: AblationPlan) -> list[Stage]:
    """The stages that find heads and take them out."""
    references = [] if plan.reference is None else [plan.reference]
    config = {**asdict(plan), "spared": [str(head) for head in plan.spared]}
    return [
        study.stage(
            "heads",
            [study.path(f) for f in ("traces-fit.parquet", "probes.safetensors", "probes.json")],
            ("heads.parquet",),
            lambda job: _heads(study, plan, job),
            {"traces": plan.traces},
        ),
        study.stage(
            "ablate",
            [study.path("traces-test.parquet"), study.path("heads.parquet"), *references],
            ("ablated.parquet", "ablation.json"),
            lambda job: _ablate(study, plan, job),
            config,
        ),
    ]


def _heads(study: Study, plan: AblationPlan, job: Job) -> Headline:
    traces = closed(read_traces(job.input(study.path("traces-fit.parquet"))))
    probes = input_probes(study, job)
    if probes.read_point != "resid_post":
        raise RefusalCliffError(
            "Heads add to the residual stream, so they are measured with a probe that reads it, "
            f"not one at {probes.read_point}. Run this stage with read point resid_post."
        )
    probe = probes.chosen
    groups = verdict_groups(traces)
    complied, refused = groups["complied"], groups["refused"]
    rows = measure_heads(
        study.subject,
        (complied if len(complied) >= MIN_TRACES else [*complied, *refused])[: plan.traces],
        refused[: plan.traces],
        groups["benign"][: plan.traces // 2],
        probe,
        seed=study.seed,
        progress=job.progress,
    )
    write_heads(job.output(study.path("heads.parquet")), rows)
    best = ranked(rows)[0]
    effect = next(row.causal for row in rows if row.head == best)
    return {"heads": len(rows), "strongest": str(best), "effect": effect}


@dataclass(frozen=True, slots=True)
class _Trial:
    """A set of heads to take out while answering some prompts."""

    kind: str
    heads: tuple[Head, ...]
    prompts: tuple[Prompt, ...]


def _ablate(study: Study, plan: AblationPlan, job: Job) -> Headline:
    before = read_traces(job.input(study.path("traces-test.parquet")))
    rows = read_heads(job.input(study.path("heads.parquet")))
    found = tuple(select_heads(rows))
    prompts = [trace.prompt for trace in before]
    harmful = [prompt for prompt in prompts if prompt.label == "harmful"]
    trials = [
        _Trial("found", found, tuple(prompts)),
        *_doses(plan, rows, harmful),
        *_random_sets(study, plan, found, harmful),
    ]
    results = _run(study, trials, before, job)
    after = results[0]
    write_traces(job.output(study.path("ablated.parquet")), after)
    texts = _texts(study.subject, plan, before, job)
    counted = [
        {
            "kind": trial.kind,
            "heads": [str(head) for head in trial.heads],
            "attacks": asdict(rates(traces).attacks),
        }
        for trial, traces in zip(trials[1:], results[1:], strict=True)
    ]
    small = {prompt.id for prompt in harmful[: plan.random_prompts]}
    content = {
        "heads": [str(head) for head in found],
        "by_method": {m: [str(h) for h in select_heads(rows, method=m)] for m in METHODS},
        "before": asdict(rates(before)),
        "before_random_prompts": asdict(
            rates([trace for trace in before if trace.prompt.id in small]).attacks
        ),
        "after": asdict(rates(after)),
        "trials": counted,
        "perplexity_before": perplexity(study.subject, texts),
        "perplexity_after": perplexity(study.subject, texts, found),
        "perplexity_texts": len(texts),
    }
    write_json(job.output(study.path("ablation.json")), content)
    headline: Headline = {"heads": " ".join(map(str, found)) or "none"}
    for name, traces in (("asr before", before), ("asr after", after)):
        value = rates(traces).attacks.value
        headline |= {} if value is None else {name: value}
    return headline


def _doses(plan: AblationPlan, rows: Sequence[HeadRow], harmful: Sequence[Prompt]) -> list[_Trial]:
    prompts = tuple(harmful[: plan.dose_prompts])
    return [
        _Trial(f"top-{method}", tuple(ranked(rows, method)[:dose]), prompts)
        for method in plan.methods
        for dose in plan.doses
    ]


def _random_sets(
    study: Study, plan: AblationPlan, found: Sequence[Head], harmful: Sequence[Prompt]
) -> list[_Trial]:
    if not found:
        return []
    rng = random.Random(f"random-heads:{study.seed}")
    others = [h for h in study.subject.heads() if h not in found and h not in plan.spared]
    prompts = tuple(harmful[: plan.random_prompts])
    return [
        _Trial("random", tuple(sorted(rng.sample(others, len(found)))), prompts)
        for _ in range(plan.random_sets)
    ]


def _run(
    study: Study, trials: Sequence[_Trial], before: Sequence[Trace], job: Job
) -> list[list[Trace]]:
    """Answer all trials' prompts in common batches, each row with its own heads taken out.

    Greedy answers repeat themselves, so what several trials ask, and what was answered before, is
    asked once.
    """
    known = {(trace.prompt, frozenset[Head]()): trace for trace in before}
    asked = [[(prompt, frozenset(trial.heads)) for prompt in trial.prompts] for trial in trials]
    new = list(dict.fromkeys(pair for pairs in asked for pair in pairs if pair not in known))
    traces = study.write(
        [prompt for prompt, _ in new], job.progress, [sorted(heads) for _, heads in new]
    )
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
