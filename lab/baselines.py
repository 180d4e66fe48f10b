"""Rankings of heads that know nothing of refusal: what every other ranking must beat.

| ranking | what it looks at |
|---|---|
| `norm` | how much a head writes at the last closing token: mean norm of W_O z |
| `random-direction` | what it adds to a random direction, without sign; 20 directions |
| `random-label` | what it adds to a probe fitted to shuffled labels, without sign; 20 shuffles |
| `weight-only` | ‖W_Oᵀw‖: how strongly it could write along the probe, whatever it reads |
| `attention` | its attention from the last closing token to the request |

The sign of a random direction means nothing, so these two rank by absolute value. Each of their
draws is a ranking of its own: their quality is the mean over draws, not the quality of a mean.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from refusal_cliff.data.types import Trace, closed_spans
from refusal_cliff.model.capture import HeadContributions, Reader, capture, head_vectors
from refusal_cliff.model.rows import Batch
from refusal_cliff.model.subject import Subject
from refusal_cliff.probe.direction import balanced, fit_logistic, standardised
from refusal_cliff.probe.fit import Probe
from refusal_cliff.stats import Floats

DRAWS = 20


def baselines(
    subject: Subject,
    traces: Sequence[Trace],
    probe: Probe,
    states: Floats,
    labels: NDArray[np.int64],
    seed: int = 0,
) -> dict[str, Floats]:
    """Scores of all heads, [draws, layers, heads] each; the highest is ranked first.

    Args:
        subject: The model.
        traces: Those whose fall is to be explained.
        probe: The probe whose score counts.
        states: [n, d] at the last closing token after the probe's block, of the traces that it was
            fitted on.
        labels: [n], 0 or 1, of these.
        seed: Seed of directions and shuffles.
    """
    rng = np.random.default_rng(seed)
    random = rng.normal(size=(DRAWS, subject.width))
    shuffled = shuffled_directions(states, labels, probe.strength, rng)
    return {
        "norm": output_norms(subject, traces).mean(0, keepdims=True),
        "random-direction": sizes_along(subject, traces, random, subject.n_layers),
        "random-label": sizes_along(subject, traces, shuffled, probe.layer),
        "weight-only": weight_only(subject, probe)[None],
        "attention": attention_to_request(subject, traces)[None],
    }


def shuffled_directions(
    states: Floats, labels: NDArray[np.int64], strength: float, rng: np.random.Generator
) -> Floats:
    """Directions of probes that were fitted to shuffled labels, [``DRAWS``, d]."""
    standard = standardised(states)
    drawn = rng.permuted(np.tile(labels[:, None], DRAWS), axis=0)
    used = np.ones(len(labels), dtype=bool)
    weights = np.stack([balanced(column, used) for column in drawn.T], axis=1)
    vectors = fit_logistic(
        standard.coordinates, drawn.astype(np.float64), weights, np.full(DRAWS, strength)
    )
    return vectors.T @ standard.axes


def sizes_along(
    subject: Subject, traces: Sequence[Trace], directions: Floats, layer: int
) -> Floats:
    """Absolute mean contribution to each direction after a block, [directions, layers, heads]."""
    positions = [closed_spans(trace).last_closing for trace in traces]
    units = directions / np.linalg.norm(directions, axis=1, keepdims=True)
    readers = [HeadContributions(subject, positions, unit, layer) for unit in units]
    capture(subject, [trace.token_ids for trace in traces], readers)
    return np.stack([np.abs(reader.values.mean(0)) for reader in readers])


def output_norms(subject: Subject, traces: Sequence[Trace]) -> Floats:
    """Norm of what each head writes at the last closing token, [traces, layers, heads]."""
    reader = _OutputNorms(subject, [closed_spans(trace).last_closing for trace in traces])
    capture(subject, [trace.token_ids for trace in traces], [reader])
    return reader.values


class _OutputNorms(Reader):
    """``‖W_O[l][:, i] z[l, i]‖`` at one position of each trace, as the block adds it.

    Attributes:
        values: [traces, layers, heads].
    """

    def __init__(self, subject: Subject, positions: Sequence[int]) -> None:
        blocks = [block for block in subject.blocks if block.n_heads and block.attention]
        self._blocks: dict[int, Any] = {block.layer: block for block in blocks}
        self.head_layers = frozenset(self._blocks)
        shape = (len(positions), subject.n_layers, subject.n_heads)
        self.values: NDArray[np.float32] = np.zeros(shape, dtype=np.float32)
        self._positions = positions

    def read_heads(
        self, layer: int, outputs: torch.Tensor, scale: torch.Tensor | None, batch: Batch
    ) -> None:
        """One vector a head, at one token a trace."""
        block = self._blocks[layer]
        columns = block.columns().to(outputs.device)  # [d, heads, head width]
        rows = torch.arange(len(batch.rows), device=outputs.device)
        at = torch.tensor([self._positions[row] for row in batch.rows], device=outputs.device)
        outputs = outputs[rows, at].float().unflatten(1, columns.shape[1:])
        written = torch.einsum("dhk,bhk->bhd", columns, outputs) * block.attention.factor
        if block.attention.gain is not None:
            written = written * block.attention.gain.to(outputs.device)
        norms = written.norm(dim=-1)
        if scale is not None:
            norms = norms * scale[rows, at, None]
        self.values[list(batch.rows), layer - 1, : norms.shape[1]] = norms.cpu().numpy()


def weight_only(subject: Subject, probe: Probe) -> Floats:
    """``‖W_O[l][:, i]ᵀ w‖``, [layers, heads]; zero after the probe's block."""
    found = np.zeros((subject.n_layers, subject.n_heads))
    for layer, vectors in head_vectors(subject, probe.weight, probe.layer).items():
        found[layer - 1, : len(vectors)] = vectors.norm(dim=-1).cpu().numpy()
    return found


@torch.inference_mode()
def attention_to_request(subject: Subject, traces: Sequence[Trace]) -> Floats:
    """Attention from the last closing token to the prompt, mean over traces, [layers, heads]."""
    chosen = str(subject.model.config._attn_implementation)
    subject.model.set_attn_implementation("eager")
    total = np.zeros((subject.n_layers, subject.n_heads))
    try:
        for trace in traces:
            spans = closed_spans(trace)
            ids = torch.tensor([trace.token_ids[: spans.closing]], device=subject.device)
            output = subject.model(ids, output_attentions=True, use_cache=False)
            for layer, weights in enumerate(output.attentions):
                total[layer] += weights[0, :, -1, : spans.prompt].sum(-1).float().cpu().numpy()
    finally:
        subject.model.set_attn_implementation(chosen)
    return total / len(traces)
