"""The measuring hooks: run traces in batches and hand states to readers that reduce them at once.

Nothing here stores activations: a [tokens × layers × width] tensor never exists. Only the blocks up
to the last one that a reader asks for are run, and never the language-model head.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from refusal_cliff.errors import RefusalCliffError
from refusal_cliff.model.blocks import Block
from refusal_cliff.model.memory import BatchLimit
from refusal_cliff.model.packing import on_packed_weights
from refusal_cliff.model.rows import Batch, TokenIds, in_batches, padded, read_whole
from refusal_cliff.model.subject import Subject
from refusal_cliff.progress import Progress


class Reader:
    """Reduces the states of a batch to what a measurement needs; asks for nothing itself.

    Attributes:
        residual_layers: Blocks after which the residual stream is wanted.
        head_layers: Blocks whose projection input (all heads' outputs) is wanted.
    """

    residual_layers: frozenset[int] = frozenset()
    head_layers: frozenset[int] = frozenset()

    def read_residual(self, layer: int, states: torch.Tensor, batch: Batch) -> None:
        """Take ``h[layer]``, [batch, tokens, d]; padding is garbage."""

    def read_heads(
        self, layer: int, outputs: torch.Tensor, scale: torch.Tensor | None, batch: Batch
    ) -> None:
        """Take the heads' outputs, [batch, tokens, heads × head width]; padding is garbage.

        ``scale``, [batch, tokens], is what a norm after the projection multiplies by besides its
        gain; ``None`` where there is no such norm.
        """


class PositionResiduals(Reader):
    """Residual streams at one position of each trace.

    Attributes:
        values: [traces, layers, d], layers in the order given.
    """

    def __init__(self, positions: Sequence[int], layers: Sequence[int], width: int) -> None:
        self.residual_layers = frozenset(layers)
        self.values: NDArray[np.float32] = np.zeros(
            (len(positions), len(layers), width), dtype=np.float32
        )
        self._positions = positions
        self._column = {layer: column for column, layer in enumerate(layers)}

    def read_residual(self, layer: int, states: torch.Tensor, batch: Batch) -> None:
        """Keep one position a trace."""
        at = torch.tensor([self._positions[row] for row in batch.rows], device=states.device)
        chosen = states[torch.arange(len(batch.rows), device=states.device), at]
        self.values[list(batch.rows), self._column[layer]] = _numpy(chosen)


class ProbeScores(Reader):
    """Score logits of every token: ``w · h[layer] + b``.

    Attributes:
        logits: For each trace, [layers, tokens]; layers rising.
    """

    def __init__(self, weights: Mapping[int, tuple[NDArray[Any], float]], n: int) -> None:
        self._layers = sorted(weights)
        self.residual_layers = frozenset(weights)
        self._weights = {
            layer: (torch.as_tensor(weight, dtype=torch.float32), bias)
            for layer, (weight, bias) in weights.items()
        }
        self.logits: list[NDArray[np.float32]] = [np.zeros((0, 0), dtype=np.float32)] * n

    def read_residual(self, layer: int, states: torch.Tensor, batch: Batch) -> None:
        """Project on the layer's probe."""
        weight, bias = self._weights[layer]
        scores = _numpy(states.float() @ weight.to(states.device) + bias)
        row_of_layer = self._layers.index(layer)
        for place, row, length in batch.items():
            if not np.isfinite(scores[place, :length]).all():
                raise RefusalCliffError(
                    f"The refusal score after block {layer} is not a finite number: the weights of "
                    "the probe are too large for this model, or the model itself computes NaN or "
                    "infinity. Fit the probes again (refusal-cliff audit), or try another "
                    "precision (--dtype)."
                )
            if self.logits[row].size == 0:
                self.logits[row] = np.empty((len(self._layers), length), dtype=np.float32)
            self.logits[row][row_of_layer] = scores[place, :length]


def head_vectors(subject: Subject, weight: NDArray[Any], layer: int) -> dict[int, torch.Tensor]:
    """``W_O[l][:, i]ᵀ w`` for each block with heads up to ``layer``, [heads, head width].

    The gain of a norm after the projection, the block's multiplier and those of the blocks up to
    the probe's are in it, so that ``scale · (vector · head output)`` is the head's share of the
    probe's logit.
    """
    direction = torch.as_tensor(weight, dtype=torch.float32)
    carried = 1.0
    vectors: dict[int, torch.Tensor] = {}
    for block in reversed(subject.blocks[:layer]):
        if block.n_heads and block.attention is not None:
            columns = block.columns()
            onto = direction.to(columns.device) * carried * block.attention.factor
            if block.attention.gain is not None:
                onto = onto * block.attention.gain.to(columns.device)
            vectors[block.layer] = torch.einsum("dhk,d->hk", columns, onto)
        carried *= block.carry
    return dict(sorted(vectors.items()))


class HeadContributions(Reader):
    """What each head adds to a probe's logit at one position of each trace (design: eq. for c).

    The projection's input times the precomputed `head_vectors`: no extra matrix product a head, no
    forward pass a head. Heads after the probe's block contribute nothing to it.

    Attributes:
        values: [traces, layers, heads]; zero for layers after the probe's.
    """

    def __init__(
        self, subject: Subject, positions: Sequence[int], weight: NDArray[Any], layer: int
    ) -> None:
        self._vectors = head_vectors(subject, weight, layer)
        self.head_layers = frozenset(self._vectors)
        self.values: NDArray[np.float32] = np.zeros(
            (len(positions), subject.n_layers, subject.n_heads), dtype=np.float32
        )
        self._positions = positions

    def read_heads(
        self, layer: int, outputs: torch.Tensor, scale: torch.Tensor | None, batch: Batch
    ) -> None:
        """One elementwise product with the precomputed vectors."""
        rows = torch.arange(len(batch.rows), device=outputs.device)
        at = torch.tensor([self._positions[row] for row in batch.rows], device=outputs.device)
        vectors = self._vectors[layer].to(outputs.device)
        parts = (outputs[rows, at].float().unflatten(1, vectors.shape) * vectors).sum(-1)
        if scale is not None:
            parts = parts * scale[rows, at, None]
        self.values[list(batch.rows), layer - 1, : len(vectors)] = _numpy(parts)


class TokenContributions(Reader):
    """What each head adds to a probe's logit at every token.

    Attributes:
        values: For each trace, [layers, heads, tokens]; zero for layers after the probe's.
    """

    def __init__(
        self, subject: Subject, lengths: Sequence[int], weight: NDArray[Any], layer: int
    ) -> None:
        self._vectors = head_vectors(subject, weight, layer)
        self.head_layers = frozenset(self._vectors)
        shape = (subject.n_layers, subject.n_heads)
        self.values = [np.zeros((*shape, length), dtype=np.float32) for length in lengths]

    def read_heads(
        self, layer: int, outputs: torch.Tensor, scale: torch.Tensor | None, batch: Batch
    ) -> None:
        """A batched product of [tokens, head width] with each head's vector."""
        vectors = self._vectors[layer].to(outputs)
        parts = torch.einsum("bthk,hk->bht", outputs.unflatten(2, vectors.shape), vectors).float()
        if scale is not None:
            parts = parts * scale[:, None]
        found = _numpy(parts)
        for place, row, length in batch.items():
            self.values[row][layer - 1, : len(vectors)] = found[place, :, :length]


class _Stop(Exception):
    """Raised by the last hook: the blocks after it are not needed."""


@on_packed_weights
@torch.inference_mode()
def capture(
    subject: Subject,
    token_ids: TokenIds,
    readers: Sequence[Reader],
    *,
    names: Sequence[str] = (),
    limit: BatchLimit | None = None,
    progress: Progress | None = None,
) -> None:
    """Run the traces through the model and feed the readers.

    Args:
        subject: The model.
        token_ids: Whole traces, as the model wrote them.
        readers: Each keeps its own results.
        names: Of the traces, for errors.
        limit: Tokens of one batch, padding included; halved where memory runs out. Left out, what
            suits the device. Several calls may share one.
        progress: Called with (traces done, traces).

    Raises:
        RefusalCliffError: A state is not a finite number, or one trace alone does not fit in
            memory; the message names the trace.
    """
    last = max(max(reader.residual_layers | reader.head_layers, default=0) for reader in readers)
    work = partial(_run, subject, token_ids, readers, last)
    in_batches(subject, token_ids, work, names=names, limit=limit, progress=progress)


def _run(
    subject: Subject, token_ids: TokenIds, readers: Sequence[Reader], last: int, batch: Batch
) -> None:
    """Feed the readers with one batch."""
    ids, _ = padded([token_ids[row] for row in batch.rows], subject.device)
    with ExitStack() as stack:
        for layer in range(1, last + 1):
            _hook(stack, subject, readers, batch, layer, stop=layer == last)
        stack.enter_context(suppress(_Stop))
        read_whole(subject, ids)


def _hook(
    stack: ExitStack,
    subject: Subject,
    readers: Sequence[Reader],
    batch: Batch,
    layer: int,
    *,
    stop: bool,
) -> None:
    block = subject.blocks[layer - 1]
    of_heads = [reader for reader in readers if layer in reader.head_layers]
    of_residual = [reader for reader in readers if layer in reader.residual_layers]
    norm = block.attention.norm if block.attention is not None else None
    kept: list[torch.Tensor] = []

    def before_projection(module: torch.nn.Module, inputs: tuple[Any, ...]) -> None:
        if norm is not None:
            kept.append(inputs[0])
            return
        for reader in of_heads:
            reader.read_heads(layer, inputs[0], None, batch)

    def after_norm(module: torch.nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        scale = _norm_scale(block, inputs[0], output)
        outputs = kept.pop()
        for reader in of_heads:
            reader.read_heads(layer, outputs, scale, batch)

    def after_block(module: torch.nn.Module, inputs: object, output: Any) -> None:
        states = output[0] if isinstance(output, tuple) else output
        if of_residual:
            _check_finite(states, batch, layer)
        for reader in of_residual:
            reader.read_residual(layer, states, batch)
        if stop:
            raise _Stop

    if of_heads:
        projection = subject.projection(layer)
        stack.enter_context(projection.register_forward_pre_hook(before_projection))
        if norm is not None:
            stack.enter_context(norm.register_forward_hook(after_norm))
    if of_residual or stop:
        stack.enter_context(block.module.register_forward_hook(after_block))


def _norm_scale(block: Block, states: torch.Tensor, normed: torch.Tensor) -> torch.Tensor:
    """What the norm after a projection multiplied each token by besides its gain."""
    if block.attention is None or block.attention.gain is None:
        raise ValueError(f"block {block.layer} has no norm after its attention")
    scaled = states.float() * block.attention.gain.to(states.device)
    size = scaled.square().sum(-1).clamp_min(torch.finfo(torch.float32).tiny)
    return (scaled * normed.float()).sum(-1) / size


def _check_finite(states: torch.Tensor, batch: Batch, layer: int) -> None:
    if bool(torch.isfinite(states.sum())):
        return
    for place, row, length in batch.items():
        if not bool(torch.isfinite(states[place, :length]).all()):
            raise RefusalCliffError(
                f"Trace {batch.name(row)} gives numbers that are not finite after block {layer}. "
                "Load the model with more precision (--dtype float32), or drop the trace."
            )


def _numpy(tensor: torch.Tensor) -> NDArray[np.float32]:
    return tensor.float().cpu().numpy()
