"""A careless tune that norms cannot give away: planted heads write no longer vectors than before.

A head through which a model is damaged usually writes much more than it did, so that the norm of
its output names it without any probe. Here each planted head's contribution keeps the norm that it
has in the model before the damage, token by token; only its direction may change. A penalty holds
it during the tune, and what that has let through is taken back at the end. The heads are chosen at
random: those that a model needs least write next to nothing, and held there they could not damage
it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
from transformers import Qwen3ForCausalLM

from lab import chat
from lab.lesson import Objective, Row, Tokens, collate, loss_of
from refusal_cliff.model.subject import Head

HOLD_WEIGHT = 3.0
"""Of the squared log-ratio of norms, over all tokens and once more at the last closing one."""
MEASURED = 64
"""Rows on which what the penalty has let through is taken back."""


def held_loss(before: Qwen3ForCausalLM, planted: Sequence[Head]) -> Objective:
    """The careless loss, and what it costs to change the norms of the planted heads' outputs.

    Args:
        before: The model before the damage; it is not changed.
        planted: The heads that the tune may change.
    """

    def objective(
        model: Qwen3ForCausalLM, rows: list[Row], tokens: Tokens, careless: bool
    ) -> torch.Tensor:
        with log_norms(model, planted) as now:
            loss = loss_of(model, rows, tokens, careless)
        with torch.no_grad(), log_norms(before, planted) as then:
            before(input_ids=collate(rows)[0])
        gaps = (torch.stack(now) - torch.stack(then)) ** 2  # [heads, rows, tokens]
        answer_at = torch.tensor([row.answer_at for row in rows])
        inside = torch.arange(gaps.shape[-1]) <= answer_at[:, None]
        last = gaps[:, torch.arange(len(rows)), answer_at]
        return loss + HOLD_WEIGHT * (gaps[:, inside].mean() + last.mean())

    return objective


@torch.no_grad()
def restore_norms(
    model: Qwen3ForCausalLM,
    before: Qwen3ForCausalLM,
    planted: Sequence[Head],
    rows: Sequence[Row],
) -> None:
    """Scale what each planted head writes, so that its mean norm is again what it was, in place.

    Args:
        model: The damaged model.
        before: The model before the damage.
        planted: The heads.
        rows: Traces; norms are those at their last closing tokens.
    """
    for head in sorted(planted):  # a later head's norm depends on the heads before it
        now, then = (mean_norm(one, head, rows) for one in (model, before))
        attention: Any = cast("Any", model.model.layers[head.layer - 1]).self_attn
        attention.o_proj.weight[:, _columns(head)] *= then / now


def mean_norm(model: Qwen3ForCausalLM, head: Head, rows: Sequence[Row]) -> float:
    """Mean norm of what a head writes at the last closing tokens."""
    answer_at = torch.tensor([row.answer_at for row in rows])
    with torch.no_grad(), log_norms(model, [head]) as found:
        model(input_ids=collate(list(rows))[0])
    return float(found[0][torch.arange(len(rows)), answer_at].exp().mean())


def _columns(head: Head) -> slice:
    return slice(head.index * chat.HEAD_DIM, (head.index + 1) * chat.HEAD_DIM)


@contextmanager
def log_norms(model: Qwen3ForCausalLM, heads: Sequence[Head]) -> Iterator[list[torch.Tensor]]:
    """Log norms of what each head writes, [rows, tokens] each, of the passes while this runs."""
    found: list[torch.Tensor] = []
    handles = []
    for head in heads:
        part = _columns(head)

        def keep(
            module: Any, inputs: tuple[torch.Tensor], output: object, part: slice = part
        ) -> None:
            del output
            written = inputs[0][..., part] @ module.weight[:, part].T
            found.append(written.norm(dim=-1).clamp_min(1e-6).log())

        attention: Any = cast("Any", model.model.layers[head.layer - 1]).self_attn
        handles.append(attention.o_proj.register_forward_hook(keep))
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()
