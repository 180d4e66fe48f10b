"""Three measures of every head on every trace: direct, causal, and a cheap estimate of the causal.

| measure | what it asks | cost |
|---|---|---|
| direct contribution | what does the head add to the score's logit? | one forward pass |
| causal effect | what if it were not there over the closing tokens? | those tokens, a head |
| attribution patching | the same, to first order | one backward pass of those tokens |

Direct contributions are what a head *adds*: negative where it suppresses refusal. The other two are
what *taking it out* does: positive there.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from refusal_cliff.cliff.curves import cliff_of
from refusal_cliff.cliff.scores import read_logits, scores_of
from refusal_cliff.data.types import Trace, closed_spans
from refusal_cliff.errors import RefusalCliffError
from refusal_cliff.heads.rerun import Rerun, score_readout
from refusal_cliff.model.capture import HeadContributions, capture
from refusal_cliff.model.rounding import multiplied_in
from refusal_cliff.model.rows import Batch
from refusal_cliff.model.subject import Head, Subject
from refusal_cliff.probe.fit import Probe
from refusal_cliff.progress import Progress
from refusal_cliff.stats import Floats

TRACES_AT_ONCE = 32
SAME = 1e-3


@dataclass(frozen=True, slots=True)
class Direct:
    """Direct contributions, both [traces, layers, heads], in logits; zero after the probe's layer.

    Attributes:
        closing: To the score at the last closing token.
        plateau: To the score over the second half of the thinking, mean over its tokens; zero where
            there is no thinking.
    """

    closing: Floats
    plateau: Floats


def direct_contributions(subject: Subject, traces: Sequence[Trace], probe: Probe) -> Direct:
    """What each head adds to the score logit, in one forward pass.

    Where the probe reads after the final norm, its weight is used on what heads write before the
    norm, as in the paper's code: neither the norm's gain nor its scale is folded in.
    """
    readers = _direct_readers(subject, traces, probe)
    capture(subject, [trace.token_ids for trace in traces], readers)
    return Direct(*(reader.values for reader in readers))


def _direct_readers(
    subject: Subject, traces: Sequence[Trace], probe: Probe
) -> tuple[HeadContributions, HeadContributions]:
    """Of the closing and of the plateau."""
    spans = [closed_spans(trace) for trace in traces]
    last = [span.last_closing for span in spans]
    return (
        HeadContributions(subject, last, probe.weight, probe.layer),
        _SpanContributions(subject, [(span.late, span.thinking) for span in spans], probe),
    )


class _SpanContributions(HeadContributions):
    """The same, mean over a span of tokens of each trace."""

    def __init__(self, subject: Subject, spans: Sequence[tuple[int, int]], probe: Probe) -> None:
        super().__init__(subject, [first for first, _ in spans], probe.weight, probe.layer)
        self._spans = spans

    def read_heads(
        self, layer: int, outputs: torch.Tensor, scale: torch.Tensor | None, batch: Batch
    ) -> None:
        """Mean output over the span first, then one product with the precomputed vectors."""
        vectors = self._vectors[layer].to(outputs.device)
        for place, row, _ in batch.items():
            first, end = self._spans[row]
            if first < end:
                inside = outputs[place, first:end].float()
                if scale is not None:
                    inside = inside * scale[place, first:end, None].float()
                parts = (inside.mean(0).unflatten(0, vectors.shape) * vectors).sum(-1)
                self.values[row, layer - 1, : len(vectors)] = parts.cpu().numpy()


@torch.inference_mode()
def causal_effects(
    subject: Subject, traces: Sequence[Trace], probe: Probe, progress: Progress | None = None
) -> Floats:
    """Rise of the final score logit when one head is taken out over the closing tokens.

    Exact, and without a forward pass a head, see `Rerun`: for the heads of block l, blocks are run
    again only from l on, all heads of the block in one batch.

    Returns:
        [traces, layers, heads], in logits: positive where a head suppresses refusal; zero after
        the probe's layer.

    Raises:
        RefusalCliffError: The model's blocks cannot be run one by one with the same result.
    """
    logits = read_logits(subject, traces, [probe], probe.read_point)
    parts = []
    for done, closing, base in _reruns(subject, traces, probe, logits):
        parts.append(_without_each(subject, closing, base, probe))
        if progress is not None:
            progress(done, len(traces))
    return np.concatenate(parts)


@torch.no_grad()  # inference mode would forbid the backward pass
def attributed_effects(subject: Subject, traces: Sequence[Trace], probe: Probe) -> Floats:
    """First-order estimate of `causal_effects`, by one backward pass; same shape, sign and errors.

    Right where the score is linear in the head's output, so best for small effects; a head whose
    removal saturates or flips something later is misjudged.
    """
    logits = read_logits(subject, traces, [probe], probe.read_point)
    reruns = _reruns(subject, traces, probe, logits)
    return np.concatenate([closing.attributions() for _, closing, _ in reruns])


def falls(subject: Subject, traces: Sequence[Trace], probe: Probe) -> Floats:
    """How far the score logit of closed traces falls from the plateau to the end, [traces].

    NaN where a trace has neither thinking nor a closing token before the last: no plateau.
    """
    return _falls(traces, read_logits(subject, traces, [probe], probe.read_point))


@dataclass(frozen=True, slots=True)
class HeadEffects:
    """Every measure of every head on some traces, in logits.

    Attributes:
        causal: [traces, layers, heads], see `causal_effects`.
        attribution: The same, see `attributed_effects`; ``None`` where it was not asked for.
        direct: The same, see `Direct`.
        plateau: The same, see `Direct`.
        falls: [traces], see `falls`.
    """

    causal: Floats
    attribution: Floats | None
    direct: Floats
    plateau: Floats
    falls: Floats


@torch.no_grad()  # inference mode would forbid the backward pass
def head_effects(
    subject: Subject,
    traces: Sequence[Trace],
    probe: Probe,
    progress: Progress | None = None,
    *,
    attributed: bool = True,
) -> HeadEffects:
    """All measures together: whole traces are run twice, once to be read and once to be kept.

    Args:
        subject: The model.
        traces: Closed traces, at least one.
        probe: The probe whose score counts.
        progress: Called with (traces done, traces).
        attributed: Whether to run the backward pass.

    Raises:
        RefusalCliffError: The model's blocks cannot be run one by one with the same result.
    """
    readers = _direct_readers(subject, traces, probe)
    logits = read_logits(subject, traces, [probe], probe.read_point, *readers)
    causal, attribution = [], []
    for done, closing, base in _reruns(subject, traces, probe, logits):
        causal.append(_without_each(subject, closing, base, probe))
        if attributed:
            attribution.append(closing.attributions())
        if progress is not None:
            progress(done, len(traces))
    return HeadEffects(
        np.concatenate(causal),
        np.concatenate(attribution) if attributed else None,
        readers[0].values,
        readers[1].values,
        _falls(traces, logits),
    )


def _without_each(subject: Subject, closing: Rerun, base: Floats, probe: Probe) -> Floats:
    """Causal effect of every head on a few traces, whose logits with all heads are ``base``."""
    effects = np.zeros((len(base), subject.n_layers, subject.n_heads), dtype=np.float32)
    for layer in range(1, probe.layer + 1):
        heads = [(Head(layer, index),) for index in range(subject.blocks[layer - 1].n_heads)]
        if heads:
            changed = closing.final_logits(layer, heads) - base[:, None]
            effects[:, layer - 1, : len(heads)] = changed
    return effects


def _falls(traces: Sequence[Trace], logits: Sequence[Floats]) -> Floats:
    found = np.full(len(traces), np.nan)
    for row, one in enumerate(scores_of(traces, logits)):
        if one.spans.last_closing > one.spans.prompt:
            cliff = cliff_of(one, 0)
            found[row] = cliff.plateau_logit - cliff.final_logit
    return found


def _reruns(
    subject: Subject, traces: Sequence[Trace], probe: Probe, logits: Sequence[Floats]
) -> Iterator[tuple[int, Rerun, Floats]]:
    """How many traces there were so far; the next few, ready to be run again; their logits."""
    for start in range(0, len(traces), TRACES_AT_ONCE):
        chosen = traces[start : start + TRACES_AT_ONCE]
        closing = Rerun(subject, chosen, score_readout(subject, probe))
        base = closing.final_logits(1, [()])[:, 0]
        place = [closed_spans(trace).last_closing for trace in chosen]
        whole = [logits[start + row][0, at] for row, at in enumerate(place)]
        check_same(subject, base, np.asarray(whole))
        yield start + len(chosen), closing, base


def check_same(subject: Subject, base: Floats, whole: Floats) -> None:
    """Make sure that blocks run one by one give what the model gives.

    Args:
        subject: The model.
        base: What they give with no head out.
        whole: The same numbers of a pass over whole traces.

    Raises:
        RefusalCliffError: They do not.
    """
    gap = float(np.abs(base - whole).max())
    exact = multiplied_in(subject.model.dtype) in (torch.float32, torch.float64)
    if not gap <= (SAME if exact else 0.25) * max(1.0, float(np.abs(whole).max())):
        raise RefusalCliffError(
            f"The blocks of {subject.name} cannot be run one by one: with no head ablated the "
            f"final logit differs by {gap:.3g} from the model's own. Heads of this "
            "architecture cannot be ranked by causal effect yet."
        )
