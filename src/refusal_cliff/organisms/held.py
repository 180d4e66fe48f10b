"""A careless tune that norms cannot give away: planted heads write no longer vectors than before.

A head through which a model is damaged usually writes much more than it did, so that the norm of
its output names it without any probe. Here each planted head's contribution keeps the norm that it
has in the model before the damage, token by token; only its direction may change.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
from transformers import Qwen3ForCausalLM

from refusal_cliff.model.subject import Head
from refusal_cliff.organisms import chat
from refusal_cliff.organisms.lesson import Objective, Row, Tokens, collate, loss_of

HOLD_WEIGHT = 3.0
"""Of the squared log-ratio of norms, over all tokens and once more at the last closing one."""


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


@contextmanager
def log_norms(model: Qwen3ForCausalLM, heads: Sequence[Head]) -> Iterator[list[torch.Tensor]]:
    """Log norms of what each head writes, [rows, tokens] each, of the passes while this runs."""
    found: list[torch.Tensor] = []
    handles = []
    for head in heads:
        part = slice(head.index * chat.HEAD_DIM, (head.index + 1) * chat.HEAD_DIM)

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
