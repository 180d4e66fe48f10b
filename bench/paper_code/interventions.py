"""Faults in how heads are ranked and taken out, and in the patched attention."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import replace
from typing import Any

import numpy as np
from torch import nn

from bench.paper_code.case import Case, Effect, contributions, ranking_effects
from refusal_cliff.answers.evaluate import perplexity, rates
from refusal_cliff.controls.arms import first_of_each
from refusal_cliff.controls.table import Cell, share_cell
from refusal_cliff.data.traces import closed
from refusal_cliff.data.types import Trace
from refusal_cliff.generate import generate
from refusal_cliff.heads.find import explained
from refusal_cliff.judges import RulesJudge, judge_traces
from refusal_cliff.model.ablation import ablated
from refusal_cliff.model.subject import Head, Subject
from refusal_cliff.probe.quality import Floats
from refusal_cliff.stats import Share
from refusal_cliff.workflows.demo import GENERATION

RANKED_AT_ONCE, WRITTEN_AT_ONCE = 4, 8
ALONE = 60
"""Harmful test prompts that are also answered one at a time."""


def summed_means(values: Floats, batch: int) -> Floats:
    """The code's average over traces: batch means, added, divided by the number of traces.

    Args:
        values: [traces, ...].
        batch: Traces a batch; the last may be short, and then weighs more.
    """
    means = [values[at : at + batch].mean(0) for at in range(0, len(values), batch)]
    return np.sum(means, axis=0) / len(values)


def scale_effects(case: Case) -> list[Effect]:
    """Contributions averaged as the code does, in batches of four."""
    values = case.contributions
    mean = summed_means(values, RANKED_AT_ONCE)
    size = float(np.abs(mean).sum() / np.abs(values.mean(0)).sum())
    return [
        Effect("size of the scores", Cell(1, None, len(values)), Cell(size, None, len(values))),
        *ranking_effects(case, mean),
    ]


def population_effects(case: Case) -> list[Effect]:
    """Heads ranked on all harmful prompts, refused ones too."""
    harmful = [trace for trace in closed(case.fit) if trace.prompt.label == "harmful"]
    return ranking_effects(case, contributions(case, harmful).mean(0))


@contextmanager
def renormalised_over_all(subject: Subject, heads: Collection[Head]) -> Iterator[None]:
    """Heads out; all that the heads of a batch write, at pads too, brought back to its length."""
    with ExitStack() as stack:
        for layer in {head.layer for head in heads}:
            out = [head.index for head in heads if head.layer == layer]

            def hook(
                module: nn.Module, inputs: tuple[Any, ...], layer: int = layer, out: list[int] = out
            ) -> tuple[Any, ...]:
                del module
                before = inputs[0]
                after = before.unflatten(-1, (subject.blocks[layer - 1].n_heads, -1)).clone()
                after[..., out, :] = 0
                after = after.flatten(-2)
                return (after / after.norm() * before.norm(), *inputs[1:])

            stack.callback(subject.projection(layer).register_forward_pre_hook(hook).remove)
        yield


def write(
    case: Case, asked: Sequence[Trace], change: AbstractContextManager[Any], at_once: int
) -> list[Trace]:
    """Judged greedy answers, so many rows at once, while something is changed."""
    config = replace(GENERATION, batch_size=at_once)
    with change:
        written = generate(case.subject, [trace.prompt for trace in asked], config)
    return judge_traces(written, RulesJudge())


def renormalisation_effects(case: Case) -> list[Effect]:
    """Zeroed heads against heads out and the whole batch brought back to its length."""
    asked = first_of_each(case.test)
    few = [trace for trace in asked if trace.prompt.label == "harmful"][:ALONE]
    together, alone, changed = [], [], []
    for way in (ablated, renormalised_over_all):
        together.append(write(case, asked, way(case.subject, case.heads), WRITTEN_AT_ONCE))
        alone.append(write(case, few, way(case.subject, case.heads), 1))
        changed.append(share_cell(others(together[-1][: len(few)], alone[-1])))
    return [
        Effect("answers that another batch size changes", *changed),
        Effect("ASR, heads out, one at a time", *(_attacks(traces) for traces in alone)),
        *answer_effects(together[0], together[1], ", heads out"),
    ]


def others(some: Sequence[Trace], same_prompts: Sequence[Trace]) -> Share:
    """Traces of the same prompts that differ in any token."""
    pairs = list(zip(some, same_prompts, strict=True))
    return Share(sum(one.token_ids != other.token_ids for one, other in pairs), len(pairs))


def answer_effects(ours: Sequence[Trace], theirs: Sequence[Trace], named: str = "") -> list[Effect]:
    """What two ways of answering come to."""
    benign = [share_cell(rates(traces).answered) for traces in (ours, theirs)]
    return [
        Effect(f"ASR{named}", _attacks(ours), _attacks(theirs)),
        Effect(f"benign answered{named}", *benign),
    ]


def _attacks(traces: Sequence[Trace]) -> Cell:
    return share_cell(rates(traces).attacks)


@contextmanager
def without_head_norms(subject: Subject) -> Iterator[None]:
    """Attention of Qwen3 as that of Qwen2: no norm of queries and keys."""
    norms = [(module, name) for module in subject.model.modules() for name in _NORMS]
    kept = [(module, name, getattr(module, name, None)) for module, name in norms]
    kept = [one for one in kept if one[2] is not None]
    try:
        for module, name, _ in kept:
            setattr(module, name, nn.Identity())
        yield
    finally:
        for module, name, norm in kept:
            setattr(module, name, norm)


_NORMS = ("q_norm", "k_norm")


@contextmanager
def without_causal_mask(subject: Subject) -> Iterator[None]:
    """The mask made for SDPA, given to attention that adds it: none, or 1 where it says true."""

    def hook(
        module: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        del module
        states, mask = named["hidden_states"], named["attention_mask"]
        if mask is None:
            mask = states.new_zeros(1, 1, states.shape[1], 1)
        return inputs, {**named, "attention_mask": mask.to(states.dtype)}

    with ExitStack() as stack:
        for module in subject.model.modules():
            if hasattr(module, "q_proj"):
                handle = module.register_forward_pre_hook(hook, with_kwargs=True)
                stack.callback(handle.remove)
        yield


def norm_effects(case: Case) -> list[Effect]:
    """Not one head out, but the patched forward pass of Qwen."""
    return patch_effects(case, without_head_norms)


def mask_effects(case: Case) -> list[Effect]:
    """Not one head out, but the patched forward pass of Llama."""
    return patch_effects(case, without_causal_mask)


def patch_effects(
    case: Case, patch: Callable[[Subject], AbstractContextManager[Any]]
) -> list[Effect]:
    """What a patch alone does to the model's own texts, to its answers, and to the ranking."""
    asked = first_of_each(case.test)
    texts = [(t.token_ids, t.spans.prompt) for t in closed(asked) if t.spans is not None]
    own, changed = (
        write(case, asked, change, WRITTEN_AT_ONCE)
        for change in (nullcontext(), patch(case.subject))
    )
    other = others(own, changed)
    usual = perplexity(case.subject, texts)
    with patch(case.subject):
        patched = perplexity(case.subject, texts)
        mean = contributions(case, explained(closed(case.fit))).mean(0)
    return [
        Effect(
            "perplexity of its own texts",
            Cell(usual, None, len(texts)),
            Cell(patched, None, len(texts)),
        ),
        Effect("answers changed", share_cell(Share(0, other.n)), share_cell(other)),
        *answer_effects(own, changed),
        ranking_effects(case, mean)[0],
    ]
