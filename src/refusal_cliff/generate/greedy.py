"""Greedy decoding that depends on a model's weights and its input alone.

Transformers fills every field that a generation config leaves open from the one that came with the
checkpoint: penalties, forbidden tokens, least lengths. What is measured then is not what the model
would write, so that the checkpoint's own config is set aside while the model writes; the tokens
that end an answer are read from it before, see `find_ending`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from transformers import (
    GenerationConfig,
    LogitsProcessorList,
    PreTrainedModel,
    StoppingCriteriaList,
)


@contextmanager
def bare_generation_config(model: PreTrainedModel, stops: Collection[int]) -> Iterator[None]:
    """Let a model write greedily by default, whatever its checkpoint asks for.

    Args:
        model: Has its own config back afterwards.
        stops: Tokens that end an answer.
    """
    own: Any = model.generation_config
    model.generation_config = GenerationConfig(eos_token_id=sorted(stops) or None)
    try:
        yield
    finally:
        model.generation_config = own


@torch.inference_mode()
def greedy_tokens(
    model: PreTrainedModel,
    input_ids: torch.Tensor,
    mask: torch.Tensor,
    *,
    most: int,
    stops: Collection[int],
    padding: int,
    processors: LogitsProcessorList | None = None,
    criteria: StoppingCriteriaList | None = None,
    cache: Any = None,
) -> torch.Tensor:
    """New tokens of left-padded rows, [rows, at most ``most``]; padding follows a stop.

    Args:
        model: The model.
        input_ids: [rows, tokens].
        mask: Attention mask, [rows, tokens].
        most: Tokens to write at most.
        stops: Tokens that end a row.
        padding: What is written after a row's end.
        processors: Change the logits before the best token is taken.
        criteria: End rows earlier.
        cache: An empty cache for keys and values; the model's own by default.
    """
    config = GenerationConfig(
        max_new_tokens=most,
        do_sample=False,
        num_beams=1,
        pad_token_id=padding,
        eos_token_id=sorted(stops) or None,
    )
    with bare_generation_config(model, stops):
        output = cast("Any", model).generate(
            input_ids,
            attention_mask=mask,
            generation_config=config,
            logits_processor=processors or LogitsProcessorList(),
            stopping_criteria=criteria or StoppingCriteriaList(),
            past_key_values=cache,
        )
    return output[:, input_ids.shape[1] :]
