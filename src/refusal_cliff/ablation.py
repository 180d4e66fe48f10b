"""Heads switched off while the model runs: their output, before the projection, is scaled.

Zeroing a head's output is the same as zeroing its columns of the output projection.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch

from refusal_cliff.errors import RefusalCliffError
from refusal_cliff.models import Head, Subject


@contextmanager
def ablated(
    subject: Subject,
    heads: Collection[Head],
    *,
    scale: float = 0.0,
    starts: Sequence[int] | None = None,
) -> Iterator[None]:
    """Scale the outputs of ``heads`` in every row while the block runs.

    Args:
        subject: The model.
        heads: Which heads.
        scale: 0 takes a head out; 1 changes nothing.
        starts: First changed token of each row, for a forward pass without cache; ``None`` changes
            every token.

    Raises:
        RefusalCliffError: A head does not exist.
    """
    _check(subject, heads)
    by_layer: dict[int, list[int]] = defaultdict(list)
    for head in heads:
        by_layer[head.layer].append(head.index)
    with ExitStack() as stack:
        for layer, indices in by_layer.items():
            factor = torch.ones(subject.blocks[layer - 1].n_heads)
            factor[indices] = scale
            _scale_heads(stack, subject, layer, factor, starts)
        yield


@contextmanager
def ablated_rows(
    subject: Subject,
    row_heads: Sequence[Collection[Head]],
    *,
    starts: Sequence[int] | None = None,
) -> Iterator[None]:
    """Take out heads of each row of a batch on its own.

    Args:
        subject: The model.
        row_heads: For each row of the batch, which heads.
        starts: As for `ablated`.

    Raises:
        RefusalCliffError: A head does not exist.
    """
    layers = sorted({head.layer for heads in row_heads for head in heads})
    for heads in row_heads:
        _check(subject, heads)
    with ExitStack() as stack:
        for layer in layers:
            factor = torch.ones(len(row_heads), 1, subject.blocks[layer - 1].n_heads)
            for row, heads in enumerate(row_heads):
                factor[row, 0, [head.index for head in heads if head.layer == layer]] = 0
            _scale_heads(stack, subject, layer, factor, starts)
        yield


def _check(subject: Subject, heads: Collection[Head]) -> None:
    for head in heads:
        if not 1 <= head.layer <= subject.n_layers:
            raise RefusalCliffError(
                f"{subject.name} has no head {head}: its blocks go from 1 to {subject.n_layers}. "
                "Write layer.head."
            )
        block = subject.blocks[head.layer - 1]
        if not 0 <= head.index < block.n_heads:
            has = f"its heads go from 0 to {block.n_heads - 1}" if block.n_heads else block.skipped
            raise RefusalCliffError(f"{subject.name} has no head {head}: {has}. Write layer.head.")


def _scale_heads(
    stack: ExitStack,
    subject: Subject,
    layer: int,
    factor: torch.Tensor,
    starts: Sequence[int] | None,
) -> None:
    """Multiply a projection's input by ``factor`` ([heads] or [rows, 1, heads])."""

    def hook(module: torch.nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        del module
        outputs: torch.Tensor = inputs[0]
        by_head = outputs.unflatten(-1, (factor.shape[-1], -1))
        scaled = by_head * factor.to(outputs)[..., None]
        if starts is not None:
            tokens = torch.arange(outputs.shape[1], device=outputs.device)
            first = torch.tensor(starts, device=outputs.device)
            inside = (tokens >= first[:, None])[..., None, None]
            scaled = torch.where(inside, scaled, by_head)
        return (scaled.flatten(-2), *inputs[1:])

    stack.callback(subject.projection(layer).register_forward_pre_hook(hook).remove)
