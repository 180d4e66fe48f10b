"""Heads switched off while the model runs: their output, before the projection, is changed.

Zeroing a head's output is the same as zeroing its columns of the output projection; the two lasting
forms of this edit are in `edits`. Here are also the forms that no weights can hold: only at some
tokens, replaced by a mean, or renormalised as in the paper.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from refusal_cliff.errors import RefusalCliffError
from refusal_cliff.model.blocks import check_whole
from refusal_cliff.model.capture import Reader, capture
from refusal_cliff.model.rows import Batch
from refusal_cliff.model.subject import Head, Subject, in_turn

HeadOutputs = Mapping[Head, torch.Tensor]


@dataclass(frozen=True)
class _Edit:
    """What is done to a projection's input: ``factor ⊙ heads + offset``.

    Attributes:
        factor: [heads], [rows, 1, heads] or [1, tokens, heads].
        offset: [heads, head width], or ``None``.
        renormalised: Bring each token's vector back to its former length.
        where: [rows, tokens], the tokens that are changed; ``None`` changes all.
    """

    factor: torch.Tensor
    offset: torch.Tensor | None
    renormalised: bool
    where: torch.Tensor | None

    def apply(self, outputs: torch.Tensor) -> torch.Tensor:
        """The changed input, [rows, tokens, heads × head width]."""
        by_head = outputs.unflatten(-1, (self.factor.shape[-1], -1))
        changed = by_head * self.factor.to(outputs)[..., None]
        if self.offset is not None:
            changed = changed + self.offset.to(outputs)
        changed = changed.flatten(-2)
        if self.renormalised:
            length, now = (part.float().norm(dim=-1, keepdim=True) for part in (outputs, changed))
            ratio = length / now.clamp_min(torch.finfo(torch.float32).tiny)
            changed = (changed.float() * ratio).to(outputs.dtype)
        if self.where is not None:
            changed = torch.where(self.where.to(outputs.device)[..., None], changed, outputs)
        return changed


@contextmanager
def ablated(
    subject: Subject,
    heads: Iterable[Head],
    *,
    scale: float = 0.0,
    means: HeadOutputs | None = None,
    renormalised: bool = False,
    where: torch.Tensor | None = None,
) -> Iterator[None]:
    """Scale the outputs of ``heads`` in every row while the block runs.

    Other threads wait for the model until the block ends: do not wait for one of them in it.

    Args:
        subject: The model.
        heads: Which heads.
        scale: 0 takes a head out; 1 changes nothing.
        means: What takes the place of what is taken out, by head, each [head width], such as a
            head's mean output over many tokens; ``None`` puts nothing in its place.
        renormalised: Bring all heads' outputs of a token back to their former length together. The
            paper's code does this for a whole batch at once, which makes a token's result depend on
            the other rows; here each token is on its own.
        where: [rows, tokens], which tokens change, for a forward pass without cache; ``None``
            changes every token.

    Raises:
        RefusalCliffError: A head does not exist, or cannot be told from the others.
    """
    heads = _named(heads)
    with in_turn(subject), ExitStack() as stack:
        for layer, factor in _factors(subject, [heads], scale).items():
            offset = None if means is None else _offset(subject, layer, heads, scale, means)
            _hook(stack, subject, layer, _Edit(factor[0], offset, renormalised, where))
        yield


def _named(heads: Iterable[Head]) -> tuple[Head, ...]:
    """The heads that a caller names, once and for all: what is iterated once may be empty then."""
    try:
        named = tuple(heads)
    except TypeError as error:
        raise RefusalCliffError(
            f"Name a list of heads, such as found.chosen, not a {type(heads).__name__}."
        ) from error
    wrong = next((head for head in named if not isinstance(head, Head)), None)
    if wrong is not None:
        raise RefusalCliffError(f"{wrong!r} is no head. Write Head(layer, index).")
    return named


def _offset(
    subject: Subject, layer: int, heads: Collection[Head], scale: float, means: HeadOutputs
) -> torch.Tensor:
    """What is added to each head's output, [heads, head width]."""
    added = torch.zeros(subject.blocks[layer - 1].n_heads, subject.head_width(layer))
    for head in heads:
        if head.layer == layer:
            if head not in means:
                raise RefusalCliffError(f"There is no mean of head {head}. Give one for each head.")
            added[head.index] = (1 - scale) * means[head].float().cpu()
    return added


@contextmanager
def ablated_rows(
    subject: Subject,
    row_heads: Sequence[Collection[Head]],
    *,
    scale: float = 0.0,
    where: torch.Tensor | None = None,
    cached: bool = False,
    renormalised: bool = False,
) -> Iterator[None]:
    """Scale heads of each row of a batch on its own.

    Args:
        subject: The model.
        row_heads: For each row of the batch, which heads.
        scale: As for `ablated`.
        where: As for `ablated`.
        cached: ``where`` holds the tokens of several passes, each of which goes on where the last
            ended, as with a key-value cache.
        renormalised: As for `ablated`.

    Raises:
        RefusalCliffError: A head does not exist, or cannot be told from the others.
    """
    with in_turn(subject), ExitStack() as stack:
        for layer, factor in _factors(subject, row_heads, scale).items():
            edit = _Edit(factor[:, None], None, renormalised, where)
            _hook(stack, subject, layer, edit, cached=cached)
        yield


@contextmanager
def ablated_tokens(
    subject: Subject, token_heads: Sequence[Collection[Head]], *, scale: float = 0.0
) -> Iterator[None]:
    """Scale heads of each token of a batch on its own, the same in every row.

    Args:
        subject: The model.
        token_heads: For each token, which heads.
        scale: As for `ablated`.

    Raises:
        RefusalCliffError: A head does not exist, or cannot be told from the others.
    """
    with in_turn(subject), ExitStack() as stack:
        for layer, factor in _factors(subject, token_heads, scale).items():
            _hook(stack, subject, layer, _Edit(factor[None], None, False, None))
        yield


def _factors(
    subject: Subject, sets: Sequence[Collection[Head]], scale: float
) -> dict[int, torch.Tensor]:
    """What each set multiplies every head by, [sets, heads], for each block with a chosen head."""
    chosen = dict.fromkeys(head for heads in sets for head in heads)
    _check(subject, chosen)
    layers = sorted({head.layer for head in chosen})
    factors = {layer: np.ones((len(sets), subject.blocks[layer - 1].n_heads)) for layer in layers}
    for row, heads in enumerate(sets):
        for head in heads:
            factors[head.layer][row, head.index] = scale
    return {layer: torch.from_numpy(factor) for layer, factor in factors.items()}


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
        check_whole(subject.projection(head.layer))


def _hook(
    stack: ExitStack, subject: Subject, layer: int, edit: _Edit, *, cached: bool = False
) -> None:
    seen = 0  # tokens of former passes
    projection = subject.projection(layer)
    width = edit.factor.shape[-1] * subject.head_width(layer)

    def hook(module: torch.nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        nonlocal seen
        given = int(inputs[0].shape[-1])
        if given != width:
            raise RefusalCliffError(
                f"Block {layer} of {subject.name}: its output projection was given {given} numbers "
                f"per token, not the {width} of all its heads, so this process holds only some of "
                "them (tensor parallelism?). Nothing was ablated. Load the model with device_map "
                "(pipeline over devices) instead."
            )
        here = edit
        if cached and edit.where is not None:
            here = replace(edit, where=edit.where[:, seen : seen + inputs[0].shape[1]])
            seen += inputs[0].shape[1]
        return (here.apply(inputs[0]), *inputs[1:])

    stack.enter_context(projection.register_forward_pre_hook(hook))


def mean_outputs(
    subject: Subject, token_ids: Sequence[Sequence[int]], heads: Collection[Head]
) -> dict[Head, torch.Tensor]:
    """Mean output of each head over all tokens of some traces, each [head width]."""
    _check(subject, heads)
    reader = _HeadMeans(subject, frozenset(head.layer for head in heads))
    capture(subject, token_ids, [reader])
    n = sum(map(len, token_ids))
    totals = {layer: torch.stack([*sums.values()]).sum(0) for layer, sums in reader.sums.items()}
    return {head: totals[head.layer][head.index] / n for head in heads}


class _HeadMeans(Reader):
    """Sums of all heads' outputs over tokens, by block and trace, [heads, head width].

    Each trace has a place of its own: a batch that memory ran out in is read once more.
    """

    def __init__(self, subject: Subject, layers: frozenset[int]) -> None:
        self.head_layers = layers
        self.sums: dict[int, dict[int, torch.Tensor]] = {layer: {} for layer in layers}
        self._blocks = subject.blocks

    def read_heads(
        self, layer: int, outputs: torch.Tensor, scale: torch.Tensor | None, batch: Batch
    ) -> None:
        """Add up the tokens that are not padding."""
        for place, row, length in batch.items():
            total = outputs[place, :length].float().sum(0).cpu()
            self.sums[layer][row] = total.reshape(self._blocks[layer - 1].n_heads, -1)
