"""Sampling in which a row's draws depend on its own key alone, not on its batch or on restarts."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from transformers import LogitsProcessor, LogitsProcessorList, TopKLogitsWarper, TopPLogitsWarper

from refusal_cliff.data.types import Prompt
from refusal_cliff.settings import GenerationConfig


@dataclass(frozen=True, slots=True)
class Row:
    """A row of a batch that samples: its key, and how many tokens it has written before."""

    key: str
    written: int


class GumbelNoise(LogitsProcessor):
    """Makes the greedy choice a draw from the softmax (the Gumbel-max trick).

    The noise of a row's token t comes from a generator seeded with (seed, key of the row, t), so
    that the same row draws the same text in any batch and after any interruption.
    """

    def __init__(self, config: GenerationConfig, rows: Sequence[Row]) -> None:
        self._temperature, self._seed, self._rows = config.temperature, config.seed, rows
        self._likely = LogitsProcessorList()  # in the order of transformers: top-k, then top-p
        if config.top_k:
            self._likely.append(TopKLogitsWarper(config.top_k))
        if config.top_p < 1:
            self._likely.append(TopPLogitsWarper(config.top_p))
        self._steps = 0

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:  # type: ignore[override]
        """Scores [rows, vocabulary] with the noise added; what is not to be drawn stays out."""
        logits = scores.float() / self._temperature
        logits = self._likely(input_ids, logits)  # type: ignore[arg-type]
        waits = torch.empty_like(logits)
        for index, row in enumerate(self._rows):
            waits[index].exponential_(generator=self._generator(row, logits.device))
        self._steps += 1
        return logits - waits.log()  # type: ignore[return-value]

    def _generator(self, row: Row, device: torch.device) -> torch.Generator:
        name = f"{self._seed}:{row.written + self._steps}:{row.key}"
        digest = hashlib.sha256(name.encode()).digest()
        return torch.Generator(device).manual_seed(int.from_bytes(digest[:8]) >> 1)


def repeated(prompts: Sequence[Prompt], samples: int) -> list[Prompt]:
    """Every prompt ``samples`` times, the ids numbered ``id#0``, ``id#1`` …, the group kept.

    One sample leaves the prompts as they are.
    """
    if samples == 1:
        return list(prompts)
    return [replace(p, id=f"{p.id}#{sample}") for p in prompts for sample in range(samples)]
