"""Versions of the same few tokens side by side in one row, each blind to the others.

To try many edits of a trace's last tokens, its row could be copied once an edit, with its keys and
values: for long thoughts that is most of the work. Instead the versions follow one another in the
row of the trace itself; the mask lets each see the thinking and its own tokens only.
"""

from __future__ import annotations

from typing import Any

import torch


class CannotFoldError(Exception):
    """A block takes an argument whose tokens cannot be told, or no mask."""


def fold_states(states: torch.Tensor, copies: int) -> torch.Tensor:
    """[rows, tokens, d] to [rows, copies × tokens, d]."""
    return states.repeat(1, copies, 1)


def fold_arguments(
    rest: list[Any], named: dict[str, Any], rows: int, tokens: int, copies: int
) -> tuple[list[Any], dict[str, Any]]:
    """What a block is given besides the states, for ``copies`` versions of its tokens.

    Args:
        rest: Arguments by place.
        named: Arguments by name.
        rows: Rows of the batch.
        tokens: Tokens of one version.
        copies: Versions.

    Raises:
        CannotFoldError: An argument is of an unknown form, or there is no mask: then nothing keeps
            the versions apart.
    """
    values = [*rest, *named.values()]
    if not any(_is_mask(value, tokens) for value in values):
        raise CannotFoldError
    folded = [_folded(value, rows, tokens, copies) for value in values]
    return folded[: len(rest)], dict(zip(named, folded[len(rest) :], strict=True))


def _is_mask(value: Any, tokens: int) -> bool:
    """[rows or 1, heads or 1, tokens, keys]."""
    return isinstance(value, torch.Tensor) and value.dim() == 4 and value.shape[2] == tokens


def _folded(value: Any, rows: int, tokens: int, copies: int) -> Any:
    if isinstance(value, tuple):
        return tuple(_folded(part, rows, tokens, copies) for part in value)
    if not isinstance(value, torch.Tensor) or value.dim() == 0:
        return value
    if _is_mask(value, tokens):
        return fold_mask(value, copies)
    if value.shape == (tokens,):
        return value.repeat(copies)
    if value.dim() in (2, 3) and value.shape[0] in (1, rows) and value.shape[1] == tokens:
        return value.repeat(1, copies, *[1] * (value.dim() - 2))
    raise CannotFoldError


def fold_mask(mask: torch.Tensor, copies: int) -> torch.Tensor:
    """A mask of the kept keys and of one version's own, [.., tokens, kept + tokens], for several.

    Returns:
        [.., copies × tokens, kept + copies × tokens].
    """
    tokens = mask.shape[2]
    kept, own = mask.split([mask.shape[3] - tokens, tokens], dim=-1)
    closed = False if mask.dtype == torch.bool else torch.finfo(mask.dtype).min
    square = own.new_full((*own.shape[:2], copies, tokens, copies, tokens), closed)
    for copy in range(copies):
        square[:, :, copy, :, copy] = own
    side = copies * tokens
    return torch.cat([kept.repeat(1, 1, copies, 1), square.reshape(*own.shape[:2], side, side)], -1)
