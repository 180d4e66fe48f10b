"""Answers in the making: each is written in turns, and what it has so far survives a kill.

They are written in batches, most of each to its end; the stragglers of all go on together.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from transformers import DynamicCache, LogitsProcessorList, StoppingCriteria, StoppingCriteriaList

from refusal_cliff.data.journal import Journal
from refusal_cliff.errors import RefusalCliffError
from refusal_cliff.generate.cache import roomy_cache
from refusal_cliff.generate.greedy import greedy_tokens
from refusal_cliff.generate.sampling import GumbelNoise, Row
from refusal_cliff.model.ablation import ablated_rows
from refusal_cliff.model.memory import BatchLimit
from refusal_cliff.model.packing import on_packed_weights
from refusal_cliff.model.rows import padded
from refusal_cliff.model.subject import Head, Subject
from refusal_cliff.progress import meanwhile
from refusal_cliff.settings import GenerationConfig
from refusal_cliff.thinking import split_spans

_MOST = 7 / 8
"""Share of a batch that must have ended before its other rows go on with those of other batches."""


@dataclass(slots=True)
class Draft:
    """One answer in the making.

    Attributes:
        key: What its draws depend on, see `GumbelNoise`.
        prefix: Token ids of the prompt.
        kind: Drafts of one kind, a label, are written together.
        heads: Heads that are out.
        tokens: Tokens, counted from the beginning of the prompt, at which they are; ``None`` for
            all.
        most: Token ids after the prompt at which it ends, whatever the config allows.
        written: Token ids after the prompt so far.
        turn: Batches that it has been in.
        cut: Whether a budget closed its thinking.
        done: Whether it has ended.
    """

    key: str
    prefix: Sequence[int]
    kind: str = ""
    heads: Collection[Head] = ()
    tokens: range | None = None
    most: int | None = None
    written: list[int] = field(default_factory=list)
    turn: int = 0
    cut: bool = False
    done: bool = False

    @property
    def length(self) -> int:
        """Tokens so far, those of the prompt included."""
        return len(self.prefix) + len(self.written)


class Memory:
    """Drafts in a journal, so that a killed process goes on with what it had.

    A draft is known by all that it depends on: what is asked, with which heads out, by which model
    and how. So a journal never gives an answer to something else. Each is written after every turn,
    with the number of turns: batches are then made up as if there had been no kill.

    Args:
        journal: Where drafts are kept; ``None`` keeps none.
        described: All that the drafts depend on besides themselves, as JSON.
    """

    def __init__(self, journal: Journal | None, described: object) -> None:
        self._journal, self._described = journal, described
        self._names: dict[int, str] = {}

    def recall(self, drafts: Sequence[Draft]) -> None:
        """Put every draft where it was; drafts must be as they were when they began."""
        if self._journal is None:
            return
        seen = Counter[str]()
        for draft in drafts:
            digest = self._digest(draft)
            name = self._names[id(draft)] = f"{digest}-{seen[digest]}"
            seen[digest] += 1
            row = self._journal.rows.get(name)
            if row is not None:
                draft.written[:] = row["written"]
                draft.turn, draft.cut, draft.done = row["turn"], row["cut"], row["done"]

    def keep(self, drafts: Sequence[Draft]) -> None:
        """Write drafts after a turn."""
        if self._journal is not None:
            self._journal.add(
                *(
                    {
                        "id": self._names[id(draft)],
                        "turn": draft.turn,
                        "done": draft.done,
                        "cut": draft.cut,
                        "written": draft.written,
                    }
                    for draft in drafts
                )
            )

    def _digest(self, draft: Draft) -> str:
        span = None if draft.tokens is None else [draft.tokens.start, draft.tokens.stop]
        heads = sorted(map(str, draft.heads))
        own = [draft.key, list(draft.prefix), draft.written, heads, span, draft.most]
        return hashlib.sha256(json.dumps([self._described, own]).encode()).hexdigest()[:32]


Ended = Callable[[Sequence[Draft]], None]


@on_packed_weights
def write_drafts(
    subject: Subject,
    drafts: Sequence[Draft],
    config: GenerationConfig,
    *,
    renormalised: bool = False,
    memory: Memory | None = None,
    limit: BatchLimit | None = None,
    ended: Ended | None = None,
) -> None:
    """Write every draft until it ends, or has as many tokens as config and context allow.

    Args:
        subject: The model.
        drafts: Changed in place; what they have written counts.
        config: How much to write, and how.
        renormalised: Ablate as the paper does, see `ablated`.
        memory: Where drafts are kept; what it knows is not written again.
        limit: Rows of a batch; made from the config if left out.
        ended: Called with the drafts that a batch has ended, and once at first with those that need
            no writing, if there are any.

    Raises:
        RefusalCliffError: One row alone does not fit into memory.
    """
    writer = _Writer(subject, config, renormalised)
    memory, limit = memory or Memory(None, None), limit or BatchLimit(config.batch_size)
    memory.recall(drafts)
    for draft in drafts:
        if not draft.turn:
            writer.settle(draft, before=-1)
    left = [draft for draft in drafts if not draft.done]
    if ended is not None and len(left) < len(drafts):
        ended([draft for draft in drafts if draft.done])
    while left:
        batch = _next_batch(left, limit.size)
        if limit.run(lambda batch=batch: writer.write(batch), used=len(batch)) is None:
            _refuse_if_alone(batch)
            continue
        memory.keep(batch)
        if ended is not None:
            ended([draft for draft in batch if draft.done])
        left = [draft for draft in left if not draft.done]


def _next_batch(left: Sequence[Draft], size: int) -> list[Draft]:
    """Those with the fewest turns first; of these, of one kind and of like length.

    Refusals are short, benign answers long, and a batch of both would wait for these.
    """
    turn = min(draft.turn for draft in left)
    waiting = [draft for draft in left if draft.turn == turn]
    return sorted(waiting, key=lambda draft: (draft.kind, draft.length))[:size]


def _refuse_if_alone(batch: Sequence[Draft]) -> None:
    if len(batch) == 1:
        raise RefusalCliffError(
            f"The answer to prompt {batch[0].key!r} alone, {batch[0].length} tokens so far, does "
            "not fit in memory. Use a device with more memory or a smaller dtype, allow fewer new "
            "tokens (--max-new-tokens), or drop the prompt."
        )


class _Writer:
    """A model that goes on with drafts."""

    def __init__(self, subject: Subject, config: GenerationConfig, renormalised: bool) -> None:
        self._subject, self._config, self._renormalised = subject, config, renormalised
        closing = subject.tokenizer(subject.format.closing, add_special_tokens=False)
        self._closing = cast("list[int]", list(closing["input_ids"]))

    def write(self, batch: Sequence[Draft]) -> bool:
        """One turn of a batch; true, always."""
        left = [self._room(draft) for draft in batch]
        ids, mask = _padded(self._subject, batch)
        cache, known = _prefilled(self._subject, ids, mask, _common(batch))
        where = _where(batch, max(left))
        with ablated_rows(
            self._subject,
            [draft.heads for draft in batch],
            where=None if where is None else where[:, known:],
            cached=True,
            renormalised=self._renormalised,
        ):
            longest = max(len(draft.written) for draft in batch)
            new = _continued(self._subject, ids, mask, left, longest, self._noise(batch), cache)
        for draft, written in zip(batch, new, strict=True):
            before = len(draft.written)
            draft.written += written
            draft.turn += 1
            self.settle(draft, before)
        return True

    def settle(self, draft: Draft, before: int) -> None:
        """Close the thinking where a budget is spent, and say whether the draft is done.

        Tokens after the first ``before`` have just been written.
        """
        budget = self._config.thinking_budget
        ended = self._subject.ending.ends(draft.written)
        if budget is not None and before < budget <= len(draft.written) and not ended:
            self._close(draft)
        draft.done = ended or len(draft.written) >= self._most(draft)

    def _close(self, draft: Draft) -> None:
        """Close the thinking of a draft that still thinks, as the chat template does."""
        ids, tokenizer = (*draft.prefix, *draft.written), self._subject.tokenizer
        spans = split_spans(ids, len(draft.prefix), tokenizer, self._subject.format)
        fits = len(draft.written) + len(self._closing) <= self._most(draft)
        if spans is None and self._closing and fits:
            draft.cut = True
            draft.written += self._closing

    def _room(self, draft: Draft) -> int:
        """Tokens that a draft may write now."""
        limits = (self._config.thinking_budget, self._most(draft))
        so_far = len(draft.written)
        return min(limit for limit in limits if limit is not None and so_far < limit) - so_far

    def _most(self, draft: Draft) -> int:
        """Tokens after the prompt that a draft may have in the end: the context ends it, too."""
        context = self._subject.context
        room = None if context is None else context - len(draft.prefix)
        limits = (self._config.max_new_tokens, draft.most, room)
        return min(limit for limit in limits if limit is not None)

    def _noise(self, batch: Sequence[Draft]) -> LogitsProcessorList:
        config = self._config
        if config.temperature == 0:
            return LogitsProcessorList()
        rows = [Row(draft.key, len(draft.written)) for draft in batch]
        return LogitsProcessorList([GumbelNoise(config, rows)])


def _where(batch: Sequence[Draft], new: int) -> torch.Tensor | None:
    """Places of a left-padded batch at which heads are out, [rows, tokens + ``new``].

    ``None`` where they are out everywhere.
    """
    if all(draft.tokens is None for draft in batch):
        return None
    width = max(draft.length for draft in batch)
    at = torch.arange(width + new) - torch.tensor([[width - draft.length] for draft in batch])
    spans = torch.tensor(
        [(t.start, t.stop) if (t := d.tokens) is not None else (0, width + new) for d in batch]
    )
    return (at >= spans[:, :1]) & (at < spans[:, 1:])


def _padded(subject: Subject, batch: Sequence[Draft]) -> tuple[torch.Tensor, torch.Tensor]:
    """All that drafts have so far and its mask, both [rows, tokens], padded on the left."""
    rows = [[*draft.prefix, *draft.written] for draft in batch]
    ids, mask = padded(rows, subject.device, left=True)
    return ids.masked_fill(mask == 0, _padding_token(subject)), mask


def _common(batch: Sequence[Draft]) -> int:
    """Columns of a left-padded batch up to which no head of any row is out; 0 where all are."""
    if any(draft.tokens is None for draft in batch):
        return 0
    width = max(draft.length for draft in batch)
    starts = [draft.tokens.start for draft in batch if draft.tokens is not None]
    first = min(width - draft.length + start for draft, start in zip(batch, starts, strict=True))
    return max(0, min(first, width - 1))


def _prefilled(
    subject: Subject, ids: torch.Tensor, mask: torch.Tensor, columns: int
) -> tuple[DynamicCache | None, int]:
    """Keys and values of a batch's first columns, each different row of them run once.

    Sets of heads that are out from the same closing tokens on share the whole thought before them,
    which is most of what there is to run.

    Returns:
        The cache to go on with, and how many columns it holds: none where nothing is shared.
    """
    cache = roomy_cache(subject.model)
    if cache is None or columns == 0:
        return cache, 0
    both = torch.stack([ids[:, :columns], mask[:, :columns]], dim=1)
    stems, row_of = torch.unique(both, dim=0, return_inverse=True)
    if len(stems) == len(both):
        return cache, 0
    padding = _padding_token(subject)
    greedy_tokens(
        subject.model, stems[:, 0], stems[:, 1], most=1, stops=(), padding=padding, cache=cache
    )
    cache.batch_select_indices(row_of.cpu())  # blocks may lie on several devices
    return cache, columns


def _continued(
    subject: Subject,
    ids: torch.Tensor,
    mask: torch.Tensor,
    left: Sequence[int],
    longest: int,
    noise: LogitsProcessorList,
    cache: DynamicCache | None,
) -> list[list[int]]:
    """New tokens of each row: up to its end, to the tokens ``left`` to it, or to where most end."""
    stops = subject.ending.stops
    with _contiguous_last_states(subject):
        new = greedy_tokens(
            subject.model,
            ids,
            mask,
            most=max(left),
            stops=stops,
            padding=_padding_token(subject),
            processors=noise,
            criteria=StoppingCriteriaList([_MostEnded(left, longest, stops, subject.device)]),
            cache=cache,
        )
    return [_until_stop(row[:n], stops) for row, n in zip(new.tolist(), left, strict=True)]


@contextmanager
def _contiguous_last_states(subject: Subject) -> Iterator[None]:
    """Give the unembedding the last states of the prompts as one block of memory.

    They are a slice of all states, and PyTorch multiplies a slice with one copy of the unembedding
    for each row: 57 MB a row with 135 million weights, a third of the time of a short answer.
    """

    def contiguous(module: torch.nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        return (inputs[0].contiguous(), *inputs[1:])

    head = subject.model.get_output_embeddings()
    with nullcontext() if head is None else head.register_forward_pre_hook(contiguous):
        yield


class _MostEnded(StoppingCriteria):
    """Ends a batch when few rows are left, so that a long answer does not hold up all others.

    It also says how far the answers are; the longest of them had ``longest`` tokens already.
    """

    def __init__(
        self, left: Sequence[int], longest: int, stops: frozenset[int], device: torch.device
    ) -> None:
        self._left = torch.tensor(left, device=device)
        self._stops = torch.tensor(sorted(stops), device=device)
        self._ended = torch.zeros(len(left), dtype=torch.bool, device=device)
        self._longest, self._steps = longest, 0

    def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:  # type: ignore[override]
        self._steps += 1
        token = self._longest + self._steps
        meanwhile(f"writing {len(self._ended):,} at once, token {token:,}")
        self._ended |= torch.isin(input_ids[:, -1], self._stops) | (self._left <= self._steps)
        most = self._ended.sum() >= _MOST * len(self._ended)
        return self._ended | most


def _padding_token(subject: Subject) -> int:
    padding = subject.tokenizer.pad_token_id
    return cast("int", padding) if padding is not None else min(subject.ending.stops, default=0)


def _until_stop(ids: Sequence[int], stops: frozenset[int]) -> list[int]:
    end = next((index + 1 for index, token in enumerate(ids) if token in stops), len(ids))
    return list(ids[:end])
