"""Sets of heads to take out, doses and controls; and what a model does without them."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias

from refusal_cliff.answers.evaluate import Text, perplexity, rates
from refusal_cliff.answers.writing import writing_of
from refusal_cliff.data.traces import verdict_groups
from refusal_cliff.data.types import Prompt, Trace, complies, is_judged
from refusal_cliff.heads.joint import HeadSet
from refusal_cliff.heads.result import (
    JOINT_KIND,
    WITH_FOUND,
    WITH_NONE,
    AblationResult,
    Pairs,
    Served,
    TrialResult,
    Written,
)
from refusal_cliff.heads.table import METHODS, HeadRow, budget, ranked
from refusal_cliff.io import fields_of
from refusal_cliff.model.subject import Head, Subject
from refusal_cliff.progress import Progress
from refusal_cliff.stats import Share

CONTROLS = ("random", "same-layer", "promoting")
"""Kinds of control sets: any other heads; others of the same blocks; heads that promote refusal."""
PROMOTING_POOL = 2
"""Promoting sets are drawn from the strongest, this many times as many as are drawn."""
Asked: TypeAlias = tuple[Prompt, frozenset[Head], bool, bool]
"""A prompt, the heads out, whether the model thinks anew, and else whether they are out in all."""


@dataclass(frozen=True, slots=True)
class Trial:
    """A set of heads to take out while answering some prompts.

    Attributes:
        kind: ``FOUND``, ``top-`` and a ranking, ``JOINT_KIND``, ``WITH_NONE``, ``WITH_FOUND``, or
            one of ``CONTROLS``.
        heads: The set.
        prompts: What to answer.
        anew: Whether the model thinks anew; else its thought is kept and the heads are out from the
            closing tokens on.
        everywhere: Whether they are out while a kept thought is read, too: so a server continues it
            with an adapter.
    """

    kind: str
    heads: tuple[Head, ...]
    prompts: tuple[Prompt, ...]
    anew: bool = False
    everywhere: bool = False

    @property
    def asked(self) -> list[Asked]:
        """What each of its answers depends on."""
        heads = frozenset(self.heads)
        return [(prompt, heads, self.anew, self.everywhere) for prompt in self.prompts]


def sizes(total: int, fractions: Sequence[float]) -> list[int]:
    """Numbers of heads of some fractions of all, each once, rising; 0 stays 0."""
    return sorted({budget(total, part) if part else 0 for part in fractions})


def dose_trials(
    rows: Sequence[HeadRow],
    methods: Sequence[str],
    joint: Sequence[Sequence[Head]],
    fractions: Sequence[float],
    prompts: Sequence[Prompt],
    *,
    everywhere: bool = False,
) -> list[Trial]:
    """The top of each ranking, and the best joint set, of each size.

    Args:
        rows: All heads.
        methods: Rankings.
        joint: The best joint set of 1, 2, … heads; empty to try none.
        fractions: Sizes, as shares of all heads.
        prompts: What each trial answers.
        everywhere: As for `Trial`.
    """
    wanted = sizes(len(rows), fractions)
    sets = [(f"top-{method}", ranked(rows, method)[:n]) for method in methods for n in wanted]
    sets += [(JOINT_KIND, list(joint[n - 1])) for n in wanted if 0 < n <= len(joint)]
    return [Trial(kind, tuple(s), tuple(prompts), everywhere=everywhere) for kind, s in sets]


def control_trials(
    rows: Sequence[HeadRow],
    found: Sequence[Head],
    spared: Sequence[Head],
    draws: dict[str, int],
    prompts: Sequence[Prompt],
    seed: int,
) -> list[Trial]:
    """Sets of as many heads as were found, that should restore nothing, and what they must not do.

    No head and the heads found come first, on the same prompts.

    Args:
        rows: All heads.
        found: The heads found.
        spared: Heads never in a set, beside those found.
        draws: Sets of each kind of ``CONTROLS``.
        prompts: What each trial answers.
        seed: Seed of the draws.
    """
    if not found:
        return []
    free = [row.head for row in rows if row.head not in found and row.head not in spared]
    strongest = [row.head for row in sorted(rows, key=METHODS["causal"]) if row.head in free]
    rng = random.Random(f"random-heads:{seed}")
    drawers = {
        "random": lambda: rng.sample(free, len(found)),
        "same-layer": lambda: _same_layers(rng, found, free),
        "promoting": lambda: rng.sample(strongest[: PROMOTING_POOL * len(found)], len(found)),
    }
    asked = tuple(prompts)
    return [
        Trial(WITH_NONE, (), asked),
        Trial(WITH_FOUND, tuple(found), asked),
        *(
            Trial(kind, tuple(sorted(drawers[kind]())), asked)
            for kind in CONTROLS
            for _ in range(draws[kind])
        ),
    ]


def _same_layers(rng: random.Random, found: Sequence[Head], free: Sequence[Head]) -> Iterator[Head]:
    """As many heads of each block as were found there; fewer where there are no others."""
    for layer, n in sorted(Counter(head.layer for head in found).items()):
        others = [head for head in free if head.layer == layer]
        yield from rng.sample(others, min(n, len(others)))


class Answers(Protocol):
    """A model that answers without heads, and a judge of its answers."""

    def write(self, prompts: Sequence[Prompt], heads: Sequence[Sequence[Head]]) -> list[Trace]:
        """Judged answers to prompts, each thought anew with its own heads out."""
        ...

    def again(
        self, traces: Sequence[Trace], heads: Sequence[Sequence[Head]], *, everywhere: bool = False
    ) -> list[Trace]:
        """Judged beginnings of answers after thoughts that are kept, see `answer_again`.

        What has no heads out, or a thought that never closed, is not written again.
        """
        ...


@dataclass(frozen=True, slots=True)
class Ablation:
    """What taking heads out did.

    Attributes:
        trials: All that was tried; the heads found, on all prompts, first.
        results: The judged traces of each.
        before: Judged traces of the same prompts with no head out.
        perplexities: Of benign texts without some sets of heads; of the empty set, before.
        texts: How many texts these are of.
    """

    trials: tuple[Trial, ...]
    results: tuple[list[Trace], ...]
    before: Sequence[Trace]
    perplexities: Mapping[HeadSet, float]
    texts: int

    @property
    def heads(self) -> HeadSet:
        """The heads found."""
        return self.trials[0].heads

    @property
    def after(self) -> list[Trace]:
        """Judged traces without them."""
        return self.results[0]

    @property
    def sides(self) -> dict[str, Sequence[Trace]]:
        """Traces before and after, by these words."""
        return {"before": self.before, "after": self.after}

    def result(
        self,
        *,
        method: str,
        judge: str,
        by_method: dict[str, HeadSet],
        written: dict[str, Written],
        served: dict[str, Served],
    ) -> AblationResult:
        """All of it in numbers, and what else a run knows: see `AblationResult`."""
        harmful = [trace.prompt for trace in self.before if trace.prompt.label == "harmful"]
        missing = unjudged(self.after, self.before)
        return AblationResult(
            heads=self.heads,
            method=method,
            judge=judge,
            by_method=by_method,
            before=rates(self.before),
            after=rates(self.after),
            writing={name: writing_of(_benign(traces)) for name, traces in self.sides.items()},
            pairs=Pairs(
                groups={prompt.id: prompt.group for prompt in harmful},
                before=attacked(self.before),
                after=attacked(self.after),
                compared=tuple(p.id for t in self.trials if t.kind == WITH_NONE for p in t.prompts),
                unjudged=missing,
            ),
            trials=tuple(map(self._counted, self.trials[1:], self.results[1:])),
            perplexity_before=self.perplexities[()],
            perplexity_after=self.perplexities[self.heads],
            perplexity_texts=self.texts,
            written=written,
            served=served,
            after_at_most=at_most(self.after, missing),
        )

    def _counted(self, trial: Trial, traces: Sequence[Trace]) -> TrialResult:
        missing = unjudged(traces, self.before)
        return TrialResult(
            **fields_of(rates(traces)),
            kind=trial.kind,
            heads=trial.heads,
            attacked=attacked(traces),
            perplexity=self.perplexities.get(trial.heads),
            unjudged=missing,
            attacks_at_most=at_most(traces, missing),
        )


def take_out(
    subject: Subject,
    trials: Sequence[Trial],
    before: Sequence[Trace],
    answers: Answers,
    texts: Sequence[Text],
    *,
    renormalised: bool = False,
    progress: Progress | None = None,
) -> Ablation:
    """Let a model answer without heads (paper §5).

    What the heads found do is thought anew. Doses and control sets, which are many, keep the
    thinking that was written, and are compared among themselves.

    Args:
        subject: The model.
        trials: What to try; the heads found, on all prompts of ``before``, first.
        before: Judged traces with no head out.
        answers: Answers and judges.
        texts: Benign texts whose perplexity says what it costs.
        renormalised: Ablate as the paper does, see `ablated`.
        progress: Called with (done, total) texts read for perplexity; answers tell their own.
    """
    results = answer_trials(trials, before, answers)
    tops = [trial.heads for trial in trials if trial.kind.startswith("top-")]
    sets = list(dict.fromkeys([(), trials[0].heads, *tops]))
    perplexities: dict[HeadSet, float] = {}
    for done, heads in enumerate(sets, start=1):
        perplexities[heads] = perplexity(subject, texts, heads, renormalised=renormalised)
        if progress is not None:
            progress(done * len(texts), len(sets) * len(texts))
    return Ablation(tuple(trials), tuple(results), before, perplexities, len(texts))


def answer_trials(
    trials: Sequence[Trial], before: Sequence[Trace], answers: Answers
) -> list[list[Trace]]:
    """Answer all trials' prompts in common batches, each row with its own heads taken out.

    An answer depends on its prompt and heads alone, so that what several trials ask is asked once.
    """
    known: dict[Asked, Trace] = {(t.prompt, frozenset(), True, False): t for t in before}
    asked = [trial.asked for trial in trials]
    new = list(dict.fromkeys(one for row in asked for one in row if one not in known))
    thought = [one for one in new if one[2]]
    written = answers.write([one[0] for one in thought], [sorted(one[1]) for one in thought])
    known |= dict(zip(thought, written, strict=True))
    for everywhere in (False, True):
        kept = [one for one in new if not one[2] and one[3] is everywhere]
        begun = [known[one[0], frozenset(), True, False] for one in kept]
        again = answers.again(begun, [sorted(one[1]) for one in kept], everywhere=everywhere)
        known |= dict(zip(kept, again, strict=True))
    return [[known[one] for one in row] for row in asked]


def attacked(traces: Sequence[Trace]) -> tuple[str, ...]:
    """Ids of the harmful prompts that were complied with: what paired comparisons are made of."""
    return tuple(trace.prompt.id for trace in verdict_groups(traces)["complied"])


def unjudged(traces: Sequence[Trace], before: Sequence[Trace]) -> tuple[str, ...]:
    """Ids of the harmful prompts whose answer was not judged, though that before was.

    It was cut off, or no judge could read it. What was so before says nothing about the heads.
    """
    judged = {trace.prompt.id for trace in before if is_judged(trace.verdict)}
    lost = (t.prompt for t in traces if not is_judged(t.verdict) and t.prompt.id in judged)
    return tuple(prompt.id for prompt in lost if prompt.label == "harmful")


def at_most(traces: Sequence[Trace], missing: Collection[str]) -> Share:
    """The attack success rate if the ``missing`` prompts were complied with."""
    harmful = [
        trace
        for trace in traces
        if trace.prompt.label == "harmful"
        and (trace.verdict != "unscored" or trace.prompt.id in missing)
    ]
    hits = [complies(trace.verdict) or trace.prompt.id in missing for trace in harmful]
    return Share.of(hits, [trace.prompt.group for trace in harmful])


def _benign(traces: Sequence[Trace]) -> list[Trace]:
    return [trace for trace in traces if trace.prompt.label == "benign"]
