"""What is read of the state at the last closing token: a score, or the first answer token."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from refusal_cliff.model.blocks import decoder_of
from refusal_cliff.model.final_norm import find_final_norm
from refusal_cliff.model.subject import Subject
from refusal_cliff.probe.fit import Probe


@dataclass(frozen=True, slots=True)
class Readout:
    """Something linear or not that is read of the residual stream after a block.

    Attributes:
        layer: The block.
        of: From states [.., d] to one number each, [..], or several, [.., k].
    """

    layer: int
    of: Callable[[torch.Tensor], torch.Tensor]


def score_readout(subject: Subject, probe: Probe) -> Readout:
    """The probe's score logit."""
    fixed = torch.as_tensor(probe.weight, dtype=torch.float32)
    norm = find_final_norm(subject) if probe.read_point == "final_norm" else None

    def read(states: torch.Tensor) -> torch.Tensor:
        states = states if norm is None else norm(states)
        weight = fixed.to(states.device, torch.promote_types(states.dtype, torch.float32))
        return states.to(weight.dtype) @ weight + probe.bias

    return Readout(probe.layer, read)


def answer_readout(subject: Subject) -> Readout:
    """Logits of the next token, [.., vocabulary].

    Whatever the model does between its last block and its logits is done: the states go through the
    final norm, and take the place of the decoder's output in a forward pass of one token.

    Raises:
        RefusalCliffError: The model has no final norm that can be found.
    """
    norm, decoder = find_final_norm(subject), decoder_of(subject.model)
    token = torch.zeros(1, 1, dtype=torch.long, device=subject.device)

    def read(states: torch.Tensor) -> torch.Tensor:
        normed = norm(states.reshape(1, -1, states.shape[-1]))

        def put(module: torch.nn.Module, inputs: object, output: Any) -> Any:
            del module, inputs
            if isinstance(output, tuple):
                return (normed, *output[1:])
            output.last_hidden_state = normed
            return output

        handle = decoder.register_forward_hook(put)
        try:
            logits = subject.model(input_ids=token, use_cache=False).logits
        finally:
            handle.remove()
        return logits.reshape(*states.shape[:-1], -1).float()

    return Readout(subject.n_layers, read)
