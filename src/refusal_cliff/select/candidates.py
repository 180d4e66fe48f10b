"""Traces to `Candidate` rows: cliff and projected state of each, in one pass over the model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray

from refusal_cliff.cliff.curves import cliff_of
from refusal_cliff.cliff.scores import read_logits, scores_of
from refusal_cliff.data.types import Trace, closed_spans
from refusal_cliff.model.capture import Reader
from refusal_cliff.model.rows import Batch
from refusal_cliff.model.subject import Subject
from refusal_cliff.probe.fit import ProbeSet
from refusal_cliff.select.strategies import Candidate, has_refusal_words
from refusal_cliff.settings import DEFAULT_POOL
from refusal_cliff.thinking import Spans

STATE_WIDTH = 64
"""Numbers kept of a state: distances survive a random projection (Johnson and Lindenstrauss)."""


class ThoughtStates(Reader):
    """Mean of ``h[layer]`` over the thinking of each trace, projected to ``STATE_WIDTH`` numbers.

    Attributes:
        values: [traces, STATE_WIDTH].
    """

    def __init__(self, spans: Sequence[Spans], layer: int, width: int) -> None:
        self.residual_layers = frozenset({layer})
        self.values: NDArray[np.float32] = np.zeros((len(spans), STATE_WIDTH), dtype=np.float32)
        self._spans = spans
        onto = np.random.default_rng(0).normal(size=(width, STATE_WIDTH)) / STATE_WIDTH**0.5
        self._onto = torch.as_tensor(onto, dtype=torch.float32)

    def read_residual(self, layer: int, states: torch.Tensor, batch: Batch) -> None:
        """A weighted sum over the tokens, then the projection."""
        del layer
        weights = torch.zeros(states.shape[:2])
        for place, row, _ in batch.items():
            start, end = self._spans[row].prompt, self._spans[row].thinking
            weights[place, start:end] = 1 / max(1, end - start)
        weights = weights.to(states)
        means = torch.bmm(weights[:, None], states)[:, 0].float() @ self._onto.to(states.device)
        self.values[list(batch.rows)] = means.cpu().numpy()


def measure(
    subject: Subject, probes: ProbeSet, traces: Sequence[Trace], pool: str = DEFAULT_POOL
) -> list[Candidate]:
    """One candidate a trace, in the order given; without scores where the thinking is not closed.

    Only the blocks up to the chosen probe's are run.

    Args:
        subject: The model.
        probes: Fitted on it; the chosen layer is read.
        traces: What the model wrote, or what it would be taught to write.
        pool: How the thinking becomes a plateau: a key of ``POOLS``.
    """
    rows = [row for row, trace in enumerate(traces) if has_thinking(trace)]
    scored = [traces[row] for row in rows]
    found = [
        Candidate(
            trace.prompt.id,
            trace.prompt.category,
            len(trace.token_ids),
            verdict=trace.verdict,
            refusal_words=has_refusal_words(trace.response),
        )
        for trace in traces
    ]
    if not scored:
        return found
    probe = probes.chosen
    states = ThoughtStates([closed_spans(trace) for trace in scored], probe.layer, subject.width)
    scores = scores_of(scored, read_logits(subject, scored, [probe], probes.read_point, states))
    for row, one, state in zip(rows, scores, states.values, strict=True):
        cliff = cliff_of(one, 0, pool)
        found[row] = replace(
            found[row],
            plateau=cliff.plateau,
            final=cliff.final,
            plateau_logit=cliff.plateau_logit,
            final_logit=cliff.final_logit,
            state=state,
        )
    return found


def has_thinking(trace: Trace) -> bool:
    """Whether a trace has closed its thinking, and there is some."""
    return trace.spans is not None and trace.spans.thinking > trace.spans.prompt
