"""Running some blocks again with heads taken out over the closing tokens, and nothing else.

Where every block remembers its past as keys and values, the thinking is run once, these are kept,
and only the closing tokens are run again: all sets of heads of a trace in one row, see
`fold_arguments`, or, where an architecture does not allow that, each in a copy of the row. Blocks
with another memory (state-space, convolution, linear attention) cannot be entered in the middle of
a trace: then all tokens are run again, still only from the changed block on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import Cache
from transformers.cache_utils import LinearAttentionCacheLayerMixin

from refusal_cliff.data.types import Trace, closed_spans
from refusal_cliff.model.ablation import ablated_rows, ablated_tokens
from refusal_cliff.model.blocks import decoder_of
from refusal_cliff.model.final_norm import find_final_norm, logits_of
from refusal_cliff.model.rows import padded
from refusal_cliff.model.subject import Head, Subject
from refusal_cliff.probe.fit import Probe


class CannotFoldError(Exception):
    """A block takes an argument whose tokens cannot be told, or no mask."""


def fold_arguments(
    rest: list[Any], named: dict[str, Any], rows: int, tokens: int, copies: int
) -> tuple[list[Any], dict[str, Any]]:
    """What a block is given besides the states, for ``copies`` versions of its tokens in one row.

    To try many edits of a trace's last tokens, its row could be copied once an edit, with its keys
    and values: for long thoughts that is most of the work. Instead the versions follow one another
    in the row of the trace itself; the mask lets each see the thinking and its own tokens only.

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
    same = torch.eye(copies, dtype=torch.bool, device=own.device)[:, None, :, None]
    square = torch.where(same, own[:, :, None, :, None], closed)
    side = copies * tokens
    return torch.cat([kept.repeat(1, 1, copies, 1), square.reshape(*own.shape[:2], side, side)], -1)


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


_Call = tuple[torch.Tensor, list[Any], dict[str, Any]]
_States = list[tuple[torch.Tensor, torch.Tensor]]


class Rerun:
    """Some traces, ready to be run again from any block on.

    Attributes:
        tokens: Tokens of each trace that are run again: the closing ones, or all.
    """

    def __init__(self, subject: Subject, traces: Sequence[Trace], readout: Readout) -> None:
        self._subject = subject
        self._readout = readout
        spans = [closed_spans(trace) for trace in traces]
        whole = [trace.token_ids[: s.closing] for trace, s in zip(traces, spans, strict=True)]
        thinking = [s.thinking for s in spans]
        kept = _thoughts(subject, [ids[:n] for ids, n in zip(whole, thinking, strict=True)])
        self._starts: list[int] | None = None
        if kept is None:
            self._thoughts: _States = []
            self._starts = thinking
            ids, mask = padded(whole, subject.device)
            self._calls = _recorded(subject, ids, {"attention_mask": mask, "use_cache": False})
            again = whole
        else:
            cache, mask, self._thoughts = kept
            again = [ids[n:] for ids, n in zip(whole, thinking, strict=True)]
            ids, closing_mask = padded(again, subject.device)
            first = torch.tensor(thinking, device=subject.device)
            arguments = {
                "attention_mask": torch.cat([mask, closing_mask], 1),
                "position_ids": first[:, None] + torch.arange(ids.shape[1]).to(first),
                "past_key_values": cache,
                "use_cache": True,
            }
            self._calls = _recorded(subject, ids, arguments)
        self.tokens = [len(row) for row in again]
        self._last = torch.tensor([length - 1 for length in self.tokens])
        self._folds = self._starts is None and self._can_fold()

    def final_logits(
        self, layer: int, sets: Sequence[Sequence[Head]], scale: float = 0.0
    ) -> NDArray[np.float32]:
        """What is read at the last closing token with each set of heads taken out.

        Args:
            layer: Block to start from: the first that any of the sets touches.
            sets: Sets of heads.
            scale: What their outputs are multiplied by; 0 takes them out.

        Returns:
            [traces, sets]; with more than one number a state, [traces, sets, numbers].
        """
        logits = self._in_one_row if self._folds else self._in_copies
        return logits(layer, sets, scale).cpu().numpy()

    def _in_one_row(self, layer: int, sets: Sequence[Sequence[Head]], scale: float) -> torch.Tensor:
        copies, first = len(sets), self._calls[layer][0]
        batch, tokens = first.shape[:2]
        states = first.repeat(1, copies, 1)
        of_tokens = [heads for heads in sets for _ in range(tokens)]
        kept = _KeptThoughts(self._thoughts, 1)
        with ablated_tokens(self._subject, of_tokens, scale=scale):
            for number in range(layer, self._readout.layer + 1):
                _, rest, named = self._calls[number]
                rest, named = fold_arguments(rest, named, batch, tokens, copies)
                states = self._block(number, states, rest, named, kept)
        versions = states.unflatten(1, (copies, tokens))
        rows = torch.arange(batch, device=states.device)
        return self._readout.of(versions[rows, :, self._last.to(rows)])

    def _can_fold(self) -> bool:
        """Whether versions in one row give what the row alone gives."""
        try:
            folded = self._in_one_row(1, [(), ()], 0.0)
        except (CannotFoldError, RuntimeError):
            return False
        alone = self._in_copies(1, [()], 0.0)
        gap = (folded - alone).abs().max()
        exact = self._subject.model.dtype in (torch.float32, torch.float64)
        return bool(gap <= (1e-5 if exact else 2e-2) * (1 + alone.abs().max()))

    def _in_copies(self, layer: int, sets: Sequence[Sequence[Head]], scale: float) -> torch.Tensor:
        copies, states = len(sets), self._calls[layer][0]
        batch = states.shape[0]
        closing = self._closing()
        where = None if self._starts is None else closing.repeat_interleave(copies, 0)
        with ablated_rows(self._subject, list(sets) * batch, scale=scale, where=where):
            logits = self._run(layer, states.repeat_interleave(copies, 0), copies)
        return logits.unflatten(0, (batch, copies))

    def attributions(self) -> NDArray[np.float32]:
        """First-order estimate of each head's causal effect, [traces, layers, heads].

        Attribution patching (Nanda 2023) of scaling a head's output z over the closing tokens to
        0: the gradient of the final logit there times −z. One backward pass for all heads.
        """
        subject, layers = self._subject, self._readout.layer
        first = self._calls[1][0].detach().clone().requires_grad_()
        with torch.enable_grad(), _projection_inputs(subject, layers) as inputs:
            logits = self._run(1, first + 0, 1)
            gradients = torch.autograd.grad(logits.sum(), list(inputs.values()))
        values = np.zeros((len(self.tokens), subject.n_layers, subject.n_heads), dtype=np.float32)
        closing = self._closing()
        for (layer, outputs), gradient in zip(inputs.items(), gradients, strict=True):
            n = subject.blocks[layer - 1].n_heads
            change = -(gradient.float() * outputs.detach().float()).unflatten(-1, (n, -1)).sum(-1)
            inside = closing.to(change.device)[..., None]
            values[:, layer - 1, :n] = (change * inside).sum(1).cpu().numpy()
        return values

    def _closing(self) -> torch.Tensor:
        """Which of the tokens that are run again are closing ones, [traces, tokens]."""
        at = torch.arange(self._calls[1][0].shape[1])
        first = torch.tensor(self._starts or [0] * len(self.tokens))
        return (at >= first[:, None]) & (at < torch.tensor(self.tokens)[:, None])

    def _run(self, layer: int, states: torch.Tensor, copies: int) -> torch.Tensor:
        """What is read of each row at the last closing token, run from a block on, [rows, ..]."""
        kept = _KeptThoughts(self._thoughts, copies)
        batch = states.shape[0] // copies
        for number in range(layer, self._readout.layer + 1):
            _, rest, named = self._calls[number]
            arguments = [_copied(value, batch, copies) for value in rest]
            by_name = {name: _copied(value, batch, copies) for name, value in named.items()}
            states = self._block(number, states, arguments, by_name, kept)
        rows = torch.arange(len(states), device=states.device)
        return self._readout.of(states[rows, self._last.repeat_interleave(copies).to(rows)])

    def _block(
        self,
        number: int,
        states: torch.Tensor,
        rest: Sequence[Any],
        named: dict[str, Any],
        kept: _KeptThoughts,
    ) -> torch.Tensor:
        """Run one block, its cache replaced by what is kept."""
        rest = [kept if isinstance(value, Cache) else value for value in rest]
        named = {name: kept if isinstance(v, Cache) else v for name, v in named.items()}
        output = self._subject.blocks[number - 1].module(states, *rest, **named)
        return output[0] if isinstance(output, tuple) else output


@contextmanager
def _projection_inputs(subject: Subject, layers: int) -> Iterator[dict[int, torch.Tensor]]:
    """Inputs of the output projections of the first blocks that have heads, as they are run."""
    inputs: dict[int, torch.Tensor] = {}

    def keep(layer: int, module: torch.nn.Module, args: tuple[Any, ...]) -> None:
        inputs[layer] = args[0]

    with ExitStack() as stack:
        for block in subject.blocks[:layers]:
            if block.n_heads:
                projection = subject.projection(block.layer)
                hook = partial(keep, block.layer)
                stack.enter_context(projection.register_forward_pre_hook(hook))
        yield inputs


class _KeptThoughts:
    """A key-value cache of the thinking that is read, never grown: each block sees it once."""

    def __init__(self, states: _States, copies: int) -> None:
        self._states = states
        self._copies = copies

    def update(
        self, keys: torch.Tensor, values: torch.Tensor, layer_idx: int, *_: object, **__: object
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values of the thinking before those given."""
        old_keys, old_values = (
            kept.repeat_interleave(self._copies, 0) for kept in self._states[layer_idx]
        )
        return torch.cat([old_keys, keys], -2), torch.cat([old_values, values], -2)


def _thoughts(
    subject: Subject, prefixes: Sequence[Sequence[int]]
) -> tuple[Any, torch.Tensor, _States] | None:
    """The cache after the thinking, its mask, its keys and values; ``None`` if there is more."""
    ids, mask = padded(prefixes, subject.device, left=True)  # the newest keys end in one place
    output = decoder_of(subject.model)(
        input_ids=ids,
        attention_mask=mask,
        position_ids=(mask.cumsum(1) - 1).clamp(min=0),
        use_cache=True,
    )
    cache = getattr(output, "past_key_values", None)
    layers = getattr(cache, "layers", None)
    if layers is None or any(isinstance(one, LinearAttentionCacheLayerMixin) for one in layers):
        return None
    return cache, mask, [(one.keys, one.values) for one in layers]


def _recorded(subject: Subject, ids: torch.Tensor, arguments: dict[str, Any]) -> dict[int, _Call]:
    """What each block is called with."""
    calls: dict[int, _Call] = {}

    def record(
        layer: int, module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        named = dict(kwargs)
        states, *rest = args or (named.pop("hidden_states"),)
        calls[layer] = (states, rest, named)

    with ExitStack() as stack:
        for block in subject.blocks:
            hook = partial(record, block.layer)
            stack.enter_context(block.module.register_forward_pre_hook(hook, with_kwargs=True))
        decoder_of(subject.model)(input_ids=ids, **arguments)
    return calls


def _copied(value: Any, batch: int, copies: int) -> Any:
    """An argument of a block, repeated for every set where it has a row for each trace."""
    if isinstance(value, torch.Tensor) and value.dim() > 1 and value.shape[0] == batch:
        return value.repeat_interleave(copies, 0)
    if isinstance(value, tuple):
        return tuple(_copied(part, batch, copies) for part in value)
    return value
