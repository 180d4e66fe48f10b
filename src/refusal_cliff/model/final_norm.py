"""The read point after the final norm: where Hugging Face's last hidden states are taken.

The default read point is the residual stream after a block, before any final norm. The paper's code
reads after it; a probe's files say which was used.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, cast

import torch
from accelerate.utils import align_module_device
from torch import nn
from transformers import PreTrainedModel

from refusal_cliff.errors import RefusalCliffError
from refusal_cliff.model.blocks import decoder_of, input_device
from refusal_cliff.model.capture import Reader
from refusal_cliff.model.rows import Batch
from refusal_cliff.model.subject import Subject

LOGITS_AT_ONCE = 2**24
"""Those that are held together: a long text has more than fit into any memory."""


class AfterFinalNorm(Reader):
    """Hands a reader of the last block ``norm(h)`` instead of ``h``.

    Attributes:
        residual_layers: Those of the reader: the last block alone.
        head_layers: None; heads add to the residual stream, not to its norm.
    """

    def __init__(self, reader: Reader, subject: Subject) -> None:
        if reader.residual_layers != {subject.n_layers} or reader.head_layers:
            raise ValueError("only the last block's residual stream goes through the final norm")
        self.residual_layers = reader.residual_layers
        self._reader = reader
        self._norm = find_final_norm(subject)

    def read_residual(self, layer: int, states: torch.Tensor, batch: Batch) -> None:
        """Normalise, and hand on."""
        self._reader.read_residual(layer, self._norm(states), batch)


def at_read_point(reader: Reader, subject: Subject, read_point: str) -> Reader:
    """The reader where probes read: after the final norm, or the residual stream as it is."""
    return AfterFinalNorm(reader, subject) if read_point == "final_norm" else reader


@torch.inference_mode()
def find_final_norm(subject: Subject) -> nn.Module:
    """The norm between the last block and the language-model head.

    Found by running a few tokens: it is the child of the decoder that takes the last block's output
    and gives the decoder's.

    Raises:
        RefusalCliffError: There is none.
    """
    decoder = decoder_of(subject.model)
    last = subject.blocks[-1].module
    ids = torch.arange(64, 72, device=subject.device)[None] % subject.vocabulary
    seen: list[torch.Tensor] = []

    def keep(module: nn.Module, inputs: object, output: object) -> None:
        states = output[0] if isinstance(output, tuple) else output
        if isinstance(states, torch.Tensor):
            seen.append(states)

    with last.register_forward_hook(keep):
        given = decoder(input_ids=ids, use_cache=False)[0]
    for child in decoder.children():
        if "norm" in type(child).__name__.lower():
            normed = child(seen[-1])
            if torch.allclose(normed.reshape(given.shape), given, rtol=1e-3, atol=1e-5):
                return child
    raise RefusalCliffError(
        f"{subject.name} has no norm after its last block that can be found. Read the residual "
        "stream instead (read point resid_post)."
    )


def logits_of(model: PreTrainedModel, states: torch.Tensor) -> torch.Tensor:
    """Logits of the next token, [.., vocabulary], of states after the final norm, [.., d].

    Whatever the model does between the two is done: the states take the place of the decoder's
    output in a forward pass of one token.
    """
    token = torch.zeros(1, 1, dtype=torch.long, device=input_device(model))
    row = states.reshape(1, -1, states.shape[-1])

    def put(module: nn.Module, inputs: object, output: Any) -> Any:
        if isinstance(output, tuple):
            return (row, *output[1:])
        output.last_hidden_state = row
        return output

    with decoder_of(model).register_forward_hook(put):
        logits = cast("Any", model)(input_ids=token, use_cache=False).logits
    return logits.reshape(*states.shape[:-1], -1).float()


def unembedding_rows(model: PreTrainedModel, tokens: Sequence[int]) -> torch.Tensor:
    """Rows of the unembedding, [tokens, d], float32 on the processor, wherever it lies.

    Args:
        model: A model with an unembedding.
        tokens: Which rows.
    """
    unembedding: Any = model.get_output_embeddings()
    with align_module_device(unembedding):  # accelerate may keep the weights elsewhere
        weight = unembedding.weight
        return weight[torch.tensor(tokens, device=weight.device)].float().cpu()


def logits_in_pieces(
    subject: Subject, states: torch.Tensor
) -> Iterator[tuple[slice, torch.Tensor]]:
    """Which of some states after the final norm, [n, d], and their logits, a few at a time."""
    at_once = max(1, LOGITS_AT_ONCE // subject.vocabulary)
    for start in range(0, len(states), at_once):
        piece = slice(start, start + at_once)
        yield piece, logits_of(subject.model, states[piece])
