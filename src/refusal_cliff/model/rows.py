"""Token ids as batches of right-padded rows, and how a model reads them whole."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from itertools import takewhile
from typing import Any, cast

import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel
from transformers.integrations import sdpa_attention

from refusal_cliff.errors import RefusalCliffError
from refusal_cliff.model.blocks import decoder_of
from refusal_cliff.model.memory import BatchLimit
from refusal_cliff.model.subject import Subject
from refusal_cliff.progress import Progress

TOKEN_BUDGET = 16384
"""Tokens of one batch, padding included."""
TOKEN_BUDGET_CPU = 512
"""The same on a processor, whose caches hold no more: larger batches are slower there."""
LITTLE_PADDING, MOST_PADDING = 32, 128
"""Tokens of padding a row: a quarter of the batch's longest row, within these bounds.

A long row fills a GPU alone: what a batch gains there, more padding takes away.
"""

TokenIds = Sequence[Sequence[int]]


@dataclass(frozen=True, slots=True)
class Batch:
    """Right-padded traces: ``rows`` are their numbers, ``lengths`` their tokens.

    ``names`` are those of all traces of the work, for errors; without any, numbers are told.
    """

    rows: tuple[int, ...]
    lengths: tuple[int, ...]
    names: Sequence[str] = ()

    def items(self) -> Iterator[tuple[int, int, int]]:
        """(position in the batch, number of the trace, its length)."""
        for place, (row, length) in enumerate(zip(self.rows, self.lengths, strict=True)):
            yield place, row, length

    def name(self, row: int) -> str:
        """What a user knows a trace by."""
        return repr(self.names[row]) if self.names else str(row + 1)


def in_batches(
    subject: Subject,
    token_ids: TokenIds,
    work: Callable[[Batch], object],
    *,
    names: Sequence[str] = (),
    limit: BatchLimit | None = None,
    progress: Progress | None = None,
) -> None:
    """Do something with all rows, a batch at a time, the longest first.

    Args:
        subject: The model that reads them.
        token_ids: The rows.
        work: Called with each batch; once more with a smaller one where memory ran out.
        names: Of the rows, for errors.
        limit: Tokens of one batch, padding included; halved where memory runs out. Left out, what
            suits the device.
        progress: Called with (rows done, rows).

    Raises:
        RefusalCliffError: One row alone does not fit in memory; the message names it.
    """
    waiting = sorted(range(len(token_ids)), key=lambda row: -len(token_ids[row]))
    limit = limit or BatchLimit(default_token_budget(subject))
    alike = alike_above(subject.model)
    while waiting:
        batch = replace(next_batch(token_ids, waiting, limit.size, alike), names=names)
        done = limit.run(partial(_done, work, batch), used=len(batch.rows) * max(batch.lengths))
        if done is None:
            if len(batch.rows) == 1:
                raise RefusalCliffError(
                    f"Trace {batch.name(batch.rows[0])} alone, {batch.lengths[0]} tokens, does not "
                    "fit in memory. Use a device with more memory, or drop the trace."
                )
            continue
        waiting = waiting[len(batch.rows) :]
        if progress is not None:
            progress(len(token_ids) - len(waiting), len(token_ids))


def _done(work: Callable[[Batch], object], batch: Batch) -> bool:
    work(batch)
    return True


def default_token_budget(subject: Subject) -> int:
    """Tokens of one batch on the model's device."""
    return TOKEN_BUDGET_CPU if subject.device.type == "cpu" else TOKEN_BUDGET


def next_batch(
    token_ids: TokenIds, waiting: Sequence[int], token_budget: int, alike: int | None = None
) -> Batch:
    """The longest traces that are left: memory runs out at once or never.

    Much shorter ones wait for a batch of their own: where the device is busy, padding costs what
    tokens cost.

    Args:
        token_ids: The rows.
        waiting: Numbers of those that are left, the longest first.
        token_budget: Tokens of the batch at most, padding included.
        alike: Rows longer than this are together with rows of the same length only.
    """
    longest = len(token_ids[waiting[0]])
    shortest = longest - min(max(LITTLE_PADDING, longest // 4), MOST_PADDING)
    if alike is not None and longest > alike:
        shortest = longest
    within_budget = waiting[: max(1, token_budget // max(1, longest))]
    rows = tuple(takewhile(lambda row: len(token_ids[row]) >= shortest, within_budget))
    return Batch(rows, tuple(len(token_ids[row]) for row in rows))


_BY_LENGTH = ("longrope", "dynamic")


def alike_above(model: PreTrainedModel) -> int | None:
    """Tokens above which the positions of a batch depend on its longest row; mostly ``None``.

    Two kinds of rotary positions have other frequencies for long texts, and take them for the whole
    batch.
    """
    config: Any = model.config.get_text_config()
    told = getattr(config, "rope_parameters", None) or {}
    kinds = [kind for kind in (told, *told.values()) if isinstance(kind, dict)]
    limits = [
        int(kind.get("original_max_position_embeddings") or config.max_position_embeddings)
        for kind in kinds
        if kind.get("rope_type") in _BY_LENGTH
    ]
    return min(limits, default=None)


def _forget_length(decoder: torch.nn.Module) -> None:
    """Let dynamic positions depend on this batch alone: they keep the longest text so far."""
    for module in decoder.modules():
        if "dynamic" in str(getattr(module, "rope_type", "")):
            for name in [name for name in vars(module) if name.endswith("max_seq_len_cached")]:
                setattr(module, name, 0)


def read_whole(subject: Subject, ids: torch.Tensor) -> torch.Tensor:
    """States of whole rows after the final norm, [rows, tokens, d]; of padding they are garbage.

    There is no mask: padding on the right is after every token of its row, and a decoder looks back
    only, which is checked when it is loaded. With a mask, attention would compute the half that is
    never looked at, too.

    Args:
        subject: The model.
        ids: Right-padded, as `padded` gives them.
    """
    decoder = decoder_of(subject.model)
    if alike_above(subject.model) is not None:
        _forget_length(decoder)
    with fused_attention(subject.device):
        return cast("torch.Tensor", decoder(input_ids=ids, use_cache=False)[0])


def padded(
    rows: TokenIds, device: torch.device, *, left: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and attention mask, both [rows, longest row]; padding is 0, right or left."""
    ids = [torch.tensor(row, dtype=torch.long) for row in rows]
    side = "left" if left else "right"
    pad = partial(pad_sequence, batch_first=True, padding_side=side)
    return pad(ids).to(device), pad([torch.ones_like(row) for row in ids]).to(device)


_CHOICE = "use_gqa_in_sdpa"
_chosen: Any = getattr(sdpa_attention, _CHOICE, None)
"""Whether Transformers lets PyTorch repeat keys; private, so that another version may lack it."""


@contextmanager
def fused_attention(device: torch.device) -> Iterator[None]:
    """Repeat keys and values for every query head where no fused kernel lets heads share them.

    Where nothing is masked, Transformers leaves the repetition to PyTorch. In float32 it then has
    no fused kernel and quietly computes tokens² numbers a head: 16.5 GiB for one block and four
    rows of 4,095 tokens with 28 heads (one H200). Repeated keys are small. A processor shares keys
    in every precision.

    Args:
        device: Where the model computes.
    """
    if device.type == "cpu" or not hasattr(sdpa_attention, _CHOICE):
        yield
        return
    setattr(sdpa_attention, _CHOICE, _shared)
    try:
        yield
    finally:
        setattr(sdpa_attention, _CHOICE, _chosen)


def _shared(mask: Any, key: torch.Tensor, *more: Any) -> bool:
    return shares_keys(key) and _chosen(mask, key, *more)


def shares_keys(key: torch.Tensor) -> bool:
    """Whether their device has a fused kernel for heads that share these keys.

    NVIDIA's have one in half precision, from Ampere on.
    """
    if key.device.type == "cpu":
        return True
    if torch.version.cuda is None or key.dtype not in (torch.bfloat16, torch.float16):
        return False
    return torch.cuda.get_device_capability(key.device) >= (8, 0)
