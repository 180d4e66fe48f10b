"""What is read of the state at the last closing token: a score, or the first answer token."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from refusal_cliff.model.final_norm import find_final_norm, logits_of
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

    Whatever the model does between its last block and its logits is done, see `logits_of`.

    Raises:
        RefusalCliffError: The model has no final norm that can be found.
    """
    norm = find_final_norm(subject)
    return Readout(subject.n_layers, lambda states: logits_of(subject.model, norm(states)))
