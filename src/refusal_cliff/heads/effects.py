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
from refusal_cliff.model.capture import Batch, HeadContributions, capture
from refusal_cliff.model.rounding import multiplied_in
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
    spans = [closed_spans(trace) for trace in traces]
    last = [span.last_closing for span in spans]
    closing = HeadContributions(subject, last, probe.weight, probe.layer)
    plateau = _SpanContributions(subject, [(span.late, span.thinking) for span in spans], probe)
    capture(subject, [trace.token_ids for trace in traces], [closing, plateau])
    return Direct(closing.values, plateau.values)


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
    effects = np.zeros((len(traces), subject.n_layers, subject.n_heads), dtype=np.float32)
    for start, closing in _reruns(subject, traces, probe):
        base = closing.final_logits(1, [()])[:, 0]
        end = start + len(base)
        for layer in range(1, probe.layer + 1):
            heads = [(Head(layer, index),) for index in range(subject.blocks[layer - 1].n_heads)]
            if heads:
                changed = closing.final_logits(layer, heads) - base[:, None]
                effects[start:end, layer - 1, : len(heads)] = changed
        if progress is not None:
            progress(end, len(traces))
    return effects


@torch.no_grad()  # inference mode would forbid the backward pass
def attributed_effects(subject: Subject, traces: Sequence[Trace], probe: Probe) -> Floats:
    """First-order estimate of `causal_effects`, by one backward pass; same shape, sign and errors.

    Right where the score is linear in the head's output, so best for small effects; a head whose
    removal saturates or flips something later is misjudged.
    """
    parts = [closing.attributions() for _, closing in _reruns(subject, traces, probe)]
    return np.concatenate(parts)


def falls(subject: Subject, traces: Sequence[Trace], probe: Probe) -> Floats:
    """How far the score logit of closed traces falls from the plateau to the end, [traces].

    NaN where a trace has neither thinking nor a closing token before the last: no plateau.
    """
    found = np.full(len(traces), np.nan)
    scores = scores_of(traces, read_logits(subject, traces, [probe], probe.read_point))
    for row, one in enumerate(scores):
        if one.spans.last_closing > one.spans.prompt:
            cliff = cliff_of(one, 0)
            found[row] = cliff.plateau_logit - cliff.final_logit
    return found


def _reruns(subject: Subject, traces: Sequence[Trace], probe: Probe) -> Iterator[tuple[int, Rerun]]:
    """The traces a few at a time, ready to be run again, and the number of the first."""
    logits = read_logits(subject, traces, [probe], probe.read_point)
    for start in range(0, len(traces), TRACES_AT_ONCE):
        chosen = traces[start : start + TRACES_AT_ONCE]
        closing = Rerun(subject, chosen, score_readout(subject, probe))
        base = closing.final_logits(1, [()])[:, 0]
        place = [closed_spans(trace).last_closing for trace in chosen]
        whole = [logits[start + row][0, at] for row, at in enumerate(place)]
        check_same(subject, base, np.asarray(whole))
        yield start, closing


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
