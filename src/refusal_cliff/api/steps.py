"""The steps of the method on a model, its traces and its probes: no run folder, no settings file.

Each calls the function that the stage of a run calls, and gives its result a table and a chart.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import get_args

from refusal_cliff.answers.evaluate import rate_changes
from refusal_cliff.api.answers import Changes, RateTable, Traces
from refusal_cliff.api.given import all_of, on_model, own_randomness, prompts_of, traces_of
from refusal_cliff.api.results import Cliff, Heads, Probes, Scores, Selection
from refusal_cliff.cliff import measure, scores
from refusal_cliff.data.traces import closed
from refusal_cliff.data.types import Prompt, SafetyExample, Trace
from refusal_cliff.errors import RefusalCliffError
from refusal_cliff.generate import GenerationConfig, generate
from refusal_cliff.heads import find
from refusal_cliff.heads.at_tokens import Pieces
from refusal_cliff.heads.find import FoundHeads
from refusal_cliff.judges import Judge, RulesJudge, interface
from refusal_cliff.model.subject import Subject
from refusal_cliff.organisms import language
from refusal_cliff.probe.files import check_probes_fit
from refusal_cliff.probe.fit import ProbeSet, ReadPoint
from refusal_cliff.probe.traces import fit_on_traces
from refusal_cliff.progress import Progress
from refusal_cliff.repair.training import load_repaired, repair
from refusal_cliff.report.traces import closing_texts
from refusal_cliff.select import candidates, strategies
from refusal_cliff.select.contamination import clean_pool
from refusal_cliff.select.strategies import FRACTION, Strategy, how_many
from refusal_cliff.settings import DEFAULT_POOL, POOLS, RepairConfig
from refusal_cliff.stages.study import counter
from refusal_cliff.workflows.export import Form, export_heads, measured_on


def organism_prompts(split: language.Split, n: int, seed: int = 0) -> list[Prompt]:
    """Harmful and benign prompts that the embedded organisms understand.

    Args:
        split: ``validation`` to fit on, ``test`` to measure on, ``pool`` to select from; no two
            share a request.
        n: Prompts of each label.
        seed: Seed of the draw.

    Raises:
        RefusalCliffError: There is no such split, or ``n`` is not at least 1.
    """
    if split not in ("validation", "test", "pool"):
        raise RefusalCliffError(f"There is no split {split!r}. Give validation, test or pool.")
    return language.both_labels(split, _at_least_one(n), seed)


def organism_examples(n: int, seed: int = 0) -> tuple[list[SafetyExample], list[SafetyExample]]:
    """Safety examples to select from, and benign ones to mix in, for the embedded organisms.

    Args:
        n: Examples of each kind.
        seed: Seed of the draw.

    Raises:
        RefusalCliffError: ``n`` is not at least 1.
    """
    n = _at_least_one(n)
    return language.safety_pool(n, seed), language.examples("pool", "benign", n, seed)


@on_model
def generate_traces(
    model: Subject,
    prompts: Iterable[Prompt],
    config: GenerationConfig | None = None,
    *,
    progress: Progress | None = None,
) -> Traces:
    """Let a model think and answer; the traces are not judged yet.

    Args:
        model: See `load_model`.
        prompts: What to ask; each has an id of its own, by which draws differ.
        config: How much to write, and how; by default greedily.
        progress: Called with (traces done, traces).

    Raises:
        RefusalCliffError: Two prompts have one id, a prompt fills the model's context, or an answer
            does not fit in memory.
    """
    prompts = prompts_of(prompts)
    told = counter(progress, len(prompts))
    return Traces(tuple(generate(model, prompts, config or GenerationConfig(), progress=told)))


def judge_traces(traces: Iterable[Trace], by: Judge | None = None) -> Traces:
    """Say of each answer what it does: refuse, comply, harm.

    Args:
        traces: What a model wrote.
        by: Who judges, see `load_judge`; by default the phrase rules.

    Raises:
        RefusalCliffError: No answer can be judged, for example because a server is down.
    """
    if isinstance(by, str):
        raise RefusalCliffError(f"by is {by!r}, a name. Give the judge: load_judge({by!r}).")
    given = all_of(Trace, traces, "what generate_traces returns")
    return Traces(tuple(interface.judge_traces(given, by or RulesJudge())))


def ask(
    model: Subject,
    prompts: Iterable[Prompt],
    config: GenerationConfig | None = None,
    by: Judge | None = None,
    *,
    progress: Progress | None = None,
) -> Traces:
    """`generate_traces`, then `judge_traces`.

    Args:
        model: The model.
        prompts: What to ask.
        config: How much to write, and how.
        by: Who judges; by default the phrase rules.
        progress: Called with (traces done, traces).

    Raises:
        RefusalCliffError: A prompt does not fit the model, or no answer can be judged.
    """
    return judge_traces(generate_traces(model, prompts, config, progress=progress), by)


def rates(traces: Iterable[Trace]) -> RateTable:
    """Attack success rate, refusals, benign answers: shares with Wilson intervals.

    Args:
        traces: Judged traces. Truncated answers stay in every share, unscored ones in none.
    """
    return RateTable.of(all_of(Trace, traces, "what ask returns"))


def compare(before: Iterable[Trace], after: Iterable[Trace]) -> Changes:
    """How rates changed over the prompts that both sides answered, paired prompt by prompt.

    Args:
        before: Judged traces.
        after: Judged traces of the same prompts: of a changed model, or with heads taken out.

    Raises:
        RefusalCliffError: The two share no prompt, or one is not judged.
    """
    return Changes(tuple(rate_changes(traces_of(before), traces_of(after))))


@on_model
def fit_probes(
    model: Subject,
    traces: Iterable[Trace],
    *,
    read_point: ReadPoint = "resid_post",
    seed: int = 0,
    progress: Progress | None = None,
) -> Probes:
    """Fit a linear probe a layer: refused harmful traces against answered benign ones (paper §3.1).

    Args:
        model: The model that wrote the traces.
        traces: Judged traces, at least 12 of different prompts in either class; never those that
            are scored afterwards.
        read_point: Where probes read; ``final_norm`` as in the paper, at the last block alone.
        seed: Seed of split, shuffles and bootstrap.
        progress: Called with (traces done, traces).

    Raises:
        RefusalCliffError: A class is too small, a state is not a finite number, or the traces are
            not judged.
    """
    if read_point not in get_args(ReadPoint):
        known = " or ".join(get_args(ReadPoint))
        raise RefusalCliffError(f"There is no read point {read_point!r}. Give {known}.")
    traces = traces_of(traces)
    found = fit_on_traces(model, traces, read_point=read_point, seed=seed, progress=progress)
    return Probes.of(found)


@on_model
def score_traces(
    model: Subject,
    traces: Iterable[Trace],
    probes: ProbeSet,
    *,
    same_space: bool = False,
    progress: Progress | None = None,
) -> Scores:
    """Refusal score of every token at every probed layer, in one pass over the model.

    Args:
        model: The model that wrote the traces.
        traces: Judged traces; those whose thinking never closed are passed over.
        probes: Fitted on this model.
        same_space: The model is a changed version (repaired, ablated) of the one that the probes
            were fitted on, to be read with the same directions.
        progress: Called with (traces done, traces).

    Raises:
        RefusalCliffError: The probes were fitted on another model, or the traces are not judged.
    """
    check_probes_fit(probes, model, "this call", same_space=same_space)
    scored = closed(traces_of(traces))
    found = scores.score_traces(model, scored, probes, progress)
    pieces = Pieces(model.tokenizer)
    closing = closing_texts(scored, lambda trace: pieces.of(trace.token_ids))
    return Scores(tuple(found), probes, model.name, tuple(closing))


def measure_cliff(scored: Scores, *, pool: str = DEFAULT_POOL, seed: int = 0) -> Cliff:
    """Whether a model has a refusal cliff, by the one rule of docs/concepts/verdict.md.

    Args:
        scored: Scores of harmful and benign traces that the probes were not fitted on.
        pool: How the thinking's scores become a plateau; ``max`` is the paper's.
        seed: Seed of the bootstraps.

    Raises:
        RefusalCliffError: There is no score of a harmful trace, or no such way to a plateau.
    """
    if not isinstance(scored, Scores):
        kind = type(scored).__name__
        raise RefusalCliffError(f"Give what score_traces returns, or a part of it, not a {kind}.")
    if pool not in POOLS:
        raise RefusalCliffError(f"There is no pool {pool!r}. Give one of: {', '.join(POOLS)}.")
    measured = measure.measure_cliff(scored, scored.probes, pool=pool, seed=seed, name=scored.name)
    return Cliff(scored.name, measured, tuple(scored.curves), scored.closing)


@on_model
def find_heads(
    model: Subject,
    traces: Iterable[Trace],
    probes: ProbeSet,
    *,
    most: int = find.TRACES,
    seed: int = 0,
    progress: Progress | None = None,
) -> Heads:
    """The attention heads that suppress refusal, at most 3 % of all (paper §5).

    Args:
        model: The model that wrote the traces.
        traces: Judged traces, those that the probes were fitted on.
        probes: Fitted on this model.
        most: Harmful traces that heads are measured on, at least 2, and half as many benign ones;
            time grows with it.
        seed: Seed of the bootstraps.
        progress: Called with (traces done, traces).

    Raises:
        RefusalCliffError: The probes were fitted on another model, or its blocks cannot be run one
            by one; or the traces are not judged, or too few.
    """
    check_probes_fit(probes, model, "this call")
    if most < 2:
        raise RefusalCliffError(f"most is {most}. Give at least 2: a harmful and a benign trace.")
    traces, probe = traces_of(traces), probes.chosen
    return Heads.of(find.find_heads(model, traces, probe, most=most, seed=seed, progress=progress))


@on_model
def select_examples(
    model: Subject,
    examples: Iterable[SafetyExample],
    traces: Iterable[Trace],
    probes: ProbeSet,
    *,
    strategy: Strategy = "cliff",
    fraction: float = FRACTION,
    held_out: Iterable[Prompt] = (),
    seed: int = 0,
) -> Selection:
    """Choose the few examples that are worth training on (Cliff-as-a-Judge, paper §6).

    Args:
        model: The model that is to be repaired.
        examples: Safety data: prompts with the answers to be learnt.
        traces: What the model itself wrote to these prompts, judged, see `ask`.
        probes: Fitted on this model.
        strategy: How to choose; ``cliff`` takes the largest plateau − final.
        fraction: Share of the examples that is chosen; the paper needs 1.7 %.
        held_out: Prompts that are measured on; examples that overlap with one are left out.
        seed: Seed of strategies that draw.

    Raises:
        RefusalCliffError: The probes are of another model, an example has no trace, or none is left
            to choose from.
    """
    check_probes_fit(probes, model, "this call")
    if not 0 < fraction <= 1:
        raise RefusalCliffError(f"fraction is {fraction}. Give a share above 0, at most 1.")
    given = all_of(SafetyExample, examples, "harmful prompts with the answers to be learnt")
    prompts_of(example.prompt for example in given)
    pool = clean_pool(given, prompts_of(held_out))
    wrote = {trace.prompt.id: trace for trace in traces_of(traces)}
    missing = next((e.prompt.id for e in pool.examples if e.prompt.id not in wrote), None)
    if missing is not None:
        raise RefusalCliffError(
            f"Example {missing!r} has no trace: the model's answer to its prompt is not known. "
            "Ask the model the prompts of all examples first."
        )
    found = candidates.measure(
        model, probes, [wrote[example.prompt.id] for example in pool.examples]
    )
    left_out = pool.duplicates + pool.contaminated
    if not found:
        raise RefusalCliffError(
            f"No example is left to choose from: of {len(given)}, {pool.duplicates} repeat others, "
            f"{pool.contaminated} overlap with held_out, and the model's thinking did not close on "
            f"the other {len(pool.examples)}. Give other examples, or allow longer answers."
        )
    chosen = strategies.select(strategy, found, how_many(len(found), fraction), seed)
    by_id = {example.prompt.id: example for example in pool.examples}
    return Selection(tuple(by_id[one.id] for one in chosen), strategy, tuple(found), left_out)


@on_model
def train(
    model: Subject,
    safety: Iterable[SafetyExample],
    benign: Iterable[SafetyExample],
    out: Path | str,
    config: RepairConfig | None = None,
) -> Subject:
    """Fine-tune on the chosen examples mixed with benign ones, and load what comes of it.

    Args:
        model: The model to repair; it is left as it is.
        safety: Prompts with the thinking and the refusal to be learnt.
        benign: Prompts with helpful answers, which keep the model useful.
        out: Folder of the adapter: absent, empty, or of the same training, which is not repeated.
        config: Budget, mix and seed; `RepairConfig` has the defaults.

    Raises:
        RefusalCliffError: A row cannot be trained on, or the folder is not ours.
    """
    harmful = all_of(SafetyExample, safety, "selection.examples, for example")
    helpful = all_of(SafetyExample, benign, "prompts with helpful answers")
    with own_randomness():
        adapter = repair(model, harmful, helpful, config or RepairConfig(), Path(out))
        return load_repaired(model, adapter)


@on_model
def export(
    model: Subject,
    heads: FoundHeads,
    out: Path | str,
    *,
    form: Form = "adapter",
    before: Iterable[Trace] = (),
    after: Iterable[Trace] = (),
    by: Judge | None = None,
) -> Path:
    """Write the ablation as a folder that people can serve, with its model card.

    Args:
        model: The model that the heads were found on.
        heads: What `find_heads` found; only heads that were measured to suppress refusal are
            taken out.
        out: The folder: absent, empty, or of the same ablation.
        form: ``adapter``, a LoRA that is exactly the ablation; or ``merged``, a checkpoint.
        before: Judged traces with no head out, for the card.
        after: Judged traces of the same prompts with the heads out.
        by: Who judged them; by default the phrase rules.

    Raises:
        RefusalCliffError: No head is proven, the heads are of another model, ``before`` and
            ``after`` share no prompt, or the folder cannot be written.
    """
    if not isinstance(heads, FoundHeads):
        raise RefusalCliffError(f"Give what find_heads returns, not a {type(heads).__name__}.")
    if heads.model != model.fingerprint:
        raise RefusalCliffError(
            f"These heads were measured on another model than {model.name}, and heads of one model "
            f"say nothing about another. Call find_heads on {model.name}."
        )
    named = (by or RulesJudge()).name
    without, with_out = traces_of(before), traces_of(after)
    if bool(without) != bool(with_out):
        raise RefusalCliffError("Give both before and after, or none of them.")
    measured = measured_on(without, with_out, named) if without else None

    return export_heads(
        model,
        heads.rows,
        heads.chosen,
        heads.method,
        form,
        Path(out),
        measure=lambda: measured,
    )


def _at_least_one(n: int) -> int:
    if n < 1:
        raise RefusalCliffError(f"n is {n}. Give at least 1.")
    return n
