"""Sets of heads chosen by what they do together, beside the top of a ranking.

Heads can make up for each other: then none matters alone, and the top of a ranking of single heads
is not the best set. Greedy and beam selection add one head at a time by the exact effect of the
whole set, with the blocks run again as in `rerun`: on the probe's score, or, as a second opinion
without any probe, on the answer's first token (`AnswerShifts`).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.special import log_softmax

from refusal_cliff.data.types import Trace, closed_spans
from refusal_cliff.heads.effects import check_same
from refusal_cliff.heads.rerun import Readout, Rerun, answer_readout, score_readout
from refusal_cliff.heads.table import METHODS, HeadRow, ranked
from refusal_cliff.model.subject import Head, Subject
from refusal_cliff.probe.fit import Probe
from refusal_cliff.progress import Progress
from refusal_cliff.stats import Floats, bootstrap_mean

ROWS_AT_ONCE = 512
"""Rows of one batch: traces times sets."""
BEAM = 4
JOINT = "joint effect"
"""How heads are found; a ranking is the fallback where too few traces are left to prove a set."""
NEARLY = 0.95
"""Share of the largest joint effect at which a set has heads enough."""
HeadSet = tuple[Head, ...]


class JointEffects:
    """The exact effect of any set of heads on some traces.

    Args:
        subject: The model.
        traces: Closed traces; their keys and values are kept.
        probe: The probe whose score counts.
    """

    def __init__(self, subject: Subject, traces: Sequence[Trace], probe: Probe) -> None:
        self._start(subject, traces, score_readout(subject, probe))

    def _start(self, subject: Subject, traces: Sequence[Trace], readout: Readout) -> None:
        self._last = readout.layer
        with torch.inference_mode():
            self._closing = Rerun(subject, traces, readout)
            self._base = self._closing.final_logits(1, [()])
        self._at_once = max(1, ROWS_AT_ONCE // len(traces))

    def of(self, sets: Sequence[HeadSet], scale: float = 0.0) -> Floats:
        """Rise of the final score logit when a set is scaled there, [traces, sets].

        Args:
            sets: Sets of heads; an empty one changes nothing.
            scale: 0 takes the heads out over the closing tokens, 2 makes them twice as strong.
        """
        effects = np.zeros((len(self._base), len(sets)), dtype=np.float32)
        for layer, places in self._by_first_layer(sets).items():
            for start in range(0, len(places), self._at_once):
                chosen = places[start : start + self._at_once]
                with torch.inference_mode():
                    logits = self._closing.final_logits(layer, [sets[i] for i in chosen], scale)
                effects[:, chosen] = self._effect(logits)
        return effects

    def _effect(self, changed: Floats) -> Floats:
        """What has become of the readout, against what it was."""
        return changed - self._base

    def _by_first_layer(self, sets: Sequence[HeadSet]) -> dict[int, list[int]]:
        """Numbers of the sets that must be run from each block on; none after the readout's."""
        found: dict[int, list[int]] = defaultdict(list)
        for number, heads in enumerate(sets):
            first = min((head.layer for head in heads), default=self._last + 1)
            if first <= self._last:
                found[first].append(number)
        return found


def select_jointly(
    effects: JointEffects,
    candidates: Sequence[Head],
    size: int,
    beam: int = 1,
    progress: Progress | None = None,
) -> list[HeadSet]:
    """The best set of each size up to ``size`` by its mean joint effect; greedy for a beam of 1.

    Args:
        effects: What a set does, on the traces to select by.
        candidates: Heads to choose from.
        size: Largest set.
        beam: Sets of each size that are tried to be extended.
        progress: Called with (size done, sizes).

    Returns:
        Best set of 1, 2, … heads, each in the order in which its heads were added.
    """
    kept: list[HeadSet] = [()]
    best: list[HeadSet] = []
    for done in range(1, min(size, len(candidates)) + 1):
        longer = {
            frozenset((*heads, head)): (*heads, head)
            for heads in kept
            for head in candidates
            if head not in heads
        }
        tried = list(longer.values())
        means = effects.of(tried).mean(0)
        kept = [tried[i] for i in np.argsort(-means, kind="stable")[:beam]]
        best.append(kept[0])
        if progress is not None:
            progress(done, size)
    return best


def enough_together(
    effects: JointEffects, groups: Sequence[str], order: HeadSet, seed: int = 0
) -> HeadSet | None:
    """The heads of a joint selection that are enough, if together they raise the score.

    Args:
        effects: What a set does, on traces that the joint set was not selected by.
        groups: Group of each trace's prompt.
        order: As many heads as may be taken out, in the order in which they were added.
        seed: Seed of the bootstrap.

    Returns:
        The first heads that together reach ``NEARLY`` all of what any beginning of ``order`` does;
        ``None`` where they do not raise the final score beyond doubt.
    """
    found = effects.of([order[:n] for n in range(1, len(order) + 1)]).astype(np.float64)
    means = found.mean(0)
    if means.max(initial=0) <= 0:
        return None
    enough = int(np.argmax(means >= NEARLY * means.max()))
    low, _ = bootstrap_mean(found[:, enough], groups, seed=seed)
    return order[: enough + 1] if low > 0 else None


def strongest_of_any(rows: Sequence[HeadRow], each: int) -> list[Head]:
    """Candidates for joint selection: the strongest few heads of every ranking, in table order."""
    return sorted({head for method in METHODS for head in ranked(rows, method)[:each]})


@dataclass(frozen=True, slots=True)
class Comparison:
    """A jointly selected set against as many heads of the top of a ranking, on other traces.

    Attributes:
        size: Heads in either set.
        joint: Mean rise of the final score logit with the joint set out.
        top: The same for the top of the ranking.
        difference: Mean of joint − top.
        low: Lower end of its bootstrap interval over prompt groups, paired by trace.
        high: Upper end.
        n: Traces.
    """

    size: int
    joint: float
    top: float
    difference: float
    low: float
    high: float
    n: int

    @property
    def beats(self) -> bool:
        """Whether the joint set is better beyond doubt."""
        return self.low > 0


def compare(
    effects: JointEffects, groups: Sequence[str], joint: HeadSet, top: HeadSet, seed: int = 0
) -> Comparison:
    """Compare two sets of heads on traces that the joint one was not selected by.

    Args:
        effects: What a set does, on these traces.
        groups: Group of each trace's prompt.
        joint: The jointly selected set.
        top: As many heads of a ranking.
        seed: Seed of the bootstrap.
    """
    sets = [joint, joint if set(joint) == set(top) else top]  # the same set is no better by noise
    of_joint, of_top = effects.of(sets).T.astype(np.float64)
    low, high = bootstrap_mean(of_joint - of_top, groups, seed=seed)
    difference = float((of_joint - of_top).mean())
    return Comparison(
        len(joint), float(of_joint.mean()), float(of_top.mean()), difference, low, high, len(groups)
    )


LOGITS_AT_ONCE = 1 << 26
"""Logits of one batch: traces times sets times vocabulary."""


class AnswerShifts(JointEffects):
    """The exact shift of any set of heads on some traces, taken out over the closing tokens.

    ``of`` gives D(p ‖ p without the set) of the next token at the last closing one, in nats,
    [traces, sets].

    Args:
        subject: The model.
        traces: Closed traces; their keys and values are kept.

    Raises:
        RefusalCliffError: The model's blocks cannot be run one by one with the same result.
    """

    def __init__(self, subject: Subject, traces: Sequence[Trace]) -> None:
        self._start(subject, traces, answer_readout(subject))
        ids = torch.tensor([traces[0].token_ids[: closed_spans(traces[0]).closing]])
        with torch.inference_mode():
            own = subject.model(ids.to(subject.device), use_cache=False).logits[0, -1]
        check_same(subject, self._base[0, 0], own.float().cpu().numpy())
        self._at_once = max(1, min(self._at_once, LOGITS_AT_ONCE // self._base.size))

    def _effect(self, changed: Floats) -> Floats:
        """[traces, sets, vocabulary] to [traces, sets]; one trace at a time, for its size."""
        pairs = zip(self._base, changed, strict=True)
        return np.stack([divergence(base, others) for base, others in pairs])


def divergence(base: Floats, changed: Floats) -> Floats:
    """Kullback-Leibler divergence of the distributions of logits, in nats.

    Args:
        base: [.., vocabulary], of p.
        changed: [.., vocabulary], of q.

    Returns:
        D(p ‖ q), [..].
    """
    log_p = log_softmax(base.astype(np.float64), axis=-1)
    log_q = log_softmax(changed.astype(np.float64), axis=-1)
    return (np.exp(log_p) * (log_p - log_q)).sum(-1)
