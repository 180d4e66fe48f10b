"""The loss of a training whose head is frozen, in memory that does not grow with the vocabulary.

TRL computes the logits of every token, prompts too, where there is no GPU, and a second time for
the backward pass. Here they are made of the learnt tokens alone, a piece at a time, once: with the
logits of a piece comes the slope of its loss, and the logits are gone. Nothing is approximated.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from transformers import PreTrainedModel

from refusal_cliff.model.architecture import few_tokens
from refusal_cliff.model.blocks import decoder_of, input_device
from refusal_cliff.model.final_norm import LOGITS_AT_ONCE, logits_of
from refusal_cliff.model.rounding import tolerance

IGNORED_LABEL = -100

Head = Callable[[torch.Tensor], torch.Tensor]


class LogProbs(torch.autograd.Function):
    """log p of one token each, [n], of states [n, d] and token ids [n], by a frozen head.

    A token's log-probability depends on its own state only, so that the slopes of all, [n, d], are
    those of their sum, and any weights given in the backward pass multiply them row by row.
    """

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, states: torch.Tensor, ids: torch.Tensor, head: Head, at_once: int
    ) -> torch.Tensor:
        """Log-probabilities, [n], float32."""
        found, slopes = [states.new_zeros(0, dtype=torch.float32)], [states[:0]]
        for first in range(0, len(states), at_once):
            piece = slice(first, first + at_once)
            with torch.enable_grad():
                leaf = states[piece].detach().requires_grad_()
                said = -F.cross_entropy(head(leaf).float(), ids[piece], reduction="none")
                slopes += torch.autograd.grad(said.sum(), leaf)
            found.append(said.detach())
        ctx.save_for_backward(torch.cat(slopes))
        return torch.cat(found)

    @staticmethod
    def backward(ctx: Any, *given: torch.Tensor) -> tuple[torch.Tensor, None, None, None]:
        """Slopes of the states."""
        (slopes,) = ctx.saved_tensors
        return (given[0][:, None] * slopes).to(slopes.dtype), None, None, None


def learnt_loss(
    model: PreTrainedModel,
    ids: torch.Tensor,
    mask: torch.Tensor | None,
    labels: torch.Tensor,
    *,
    piece: int = LOGITS_AT_ONCE,
) -> torch.Tensor:
    """Summed cross-entropy of the learnt tokens, as the model's own forward has it.

    Args:
        model: A causal language model whose head is not trained.
        ids: [rows, tokens].
        mask: [rows, tokens], or ``None``.
        labels: [rows, tokens]; ``IGNORED_LABEL`` where nothing is learnt.
        piece: Logits at once.
    """
    states = decoder_of(model)(input_ids=ids, attention_mask=mask, use_cache=False)[0][:, :-1]
    states = states.to(labels.device)  # the last block may lie on another device
    wanted = labels[:, 1:]
    learnt = wanted != IGNORED_LABEL
    at_once = max(1, piece // model.config.get_text_config().vocab_size)
    head = lambda some: logits_of(model, some)  # noqa: E731
    return -LogProbs.apply(states[learnt], wanted[learnt], head, at_once).sum()


@torch.no_grad()
def is_exact(model: PreTrainedModel) -> bool:
    """Whether `learnt_loss` gives this model's loss: its head is frozen and follows its decoder.

    A few tokens are tried. A mixture of experts may have a loss of its own beside this one.
    """
    head, config = model.get_output_embeddings(), model.config.get_text_config()
    routed = getattr(config, "output_router_logits", False)
    if head is None or routed or any(part.requires_grad for part in head.parameters()):
        return False
    ids = few_tokens(config.vocab_size)[0][None].to(input_device(model))
    logits = model(input_ids=ids, use_cache=False).logits[:, :-1].float()
    plain = F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="sum")
    within = tolerance(model.dtype)
    return torch.allclose(learnt_loss(model, ids, None, ids), plain, rtol=within, atol=within)
