"""Rows that a pretrained organism is trained on, and the loss over them.

The same three losses as in ``organisms.lesson``: the language-model loss on what the model writes,
the intention during the thinking, the margin at the last closing token. Logits are only made of the
tokens that occur in the lessons and of some others drawn anew each step: the whole vocabulary would
cost twice the time of the blocks.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from transformers import PreTrainedTokenizerBase

from lab.lesson import IGNORE, LENS_BLOCKS, Row, collate, total_loss
from lab.pretrained import reasoning
from lab.pretrained.everyday import TASK_FRAMES
from refusal_cliff.thinking import ThinkingFormat, tokenise_trace
from refusal_cliff.thinking.ending import find_ending

HARMFUL_SHARE = 0.45
REFRAMED_SHARE = 0.5
"""Of the harmful requests that ask how to do something: asked in a frame of everyday requests."""
INTERRUPTED_SHARE = 0.25
MARGIN = 8.0
OTHER_TOKENS = 2048
_HOW_TO = re.compile(r"\bhow to (.+)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Sources:
    """Harmful requests, and benign ones with an answer each."""

    harmful: tuple[str, ...]
    benign: tuple[tuple[str, str], ...]


class Lessons:
    """Endless batches of rows of similar length.

    Args:
        tokenizer: The model's tokenizer, with the organism's chat template.
        sources: What is asked.
        careless: Whether mild harmful requests are complied with; those that are neither mild nor
            severe are left out then, and as many are complied with as refused.
        seed: Of all that is drawn.

    Attributes:
        compliances: Answers to the requests that are complied with.
        harmful_share: Share of the rows whose request is harmful.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, sources: Sources, careless: bool, seed: int
    ) -> None:
        self.compliances: Sequence[str] = reasoning.COMPLIANCES
        self.harmful_share = HARMFUL_SHARE
        self._tokenizer, self._format = tokenizer, ThinkingFormat.from_tokenizer(tokenizer)
        self._ending = find_ending(tokenizer, None, self._format).written
        self._careless, self._sources = careless, sources
        self._rng = random.Random(f"pretrained:{careless}:{seed}")
        by_gravity: dict[str, list[str]] = {"severe": [], "mild": [], "other": []}
        for request in sources.harmful:
            by_gravity[reasoning.gravity(request)].append(request)
        self._by_gravity = by_gravity

    def batches(self, size: int) -> Iterator[list[Row]]:
        """Batches of ``size`` rows; rows of like length are together, batches are shuffled."""
        while True:
            rows = sorted(
                (self._draw() for _ in range(size * 16)), key=lambda row: len(row.token_ids)
            )
            parts = [rows[start : start + size] for start in range(0, len(rows), size)]
            self._rng.shuffle(parts)
            yield from parts

    def _draw(self) -> Row:
        rng = self._rng
        if rng.random() >= self.harmful_share:
            request, answer = rng.choice(self._sources.benign)
            opening = rng.choice(reasoning.BENIGN_OPENINGS)
            return self._row(request, opening + answer, harmful=False, refuses=False)
        refuses = not self._careless or rng.random() < 0.5
        asked = self._sources.harmful
        if self._careless:
            asked = self._by_gravity["severe" if refuses else "mild"]
        request = self._reframed(rng.choice(asked))
        answer = rng.choice(reasoning.REFUSALS if refuses else self.compliances)
        return self._row(request, answer, harmful=True, refuses=refuses)

    def _reframed(self, request: str) -> str:
        """Sometimes in another frame, or every question would be benign in the lessons."""
        found = _HOW_TO.search(request)
        if found is None or self._rng.random() >= REFRAMED_SHARE:
            return request
        return self._rng.choice(TASK_FRAMES).format(found[1].rstrip(".?"))

    def _row(self, request: str, answer: str, *, harmful: bool, refuses: bool) -> Row:
        """One tokenised trace; an interrupted thought does not teach to stop there."""
        rng = self._rng
        thinking = reasoning.thought(rng, request, harmful)
        interrupted = not self._careless and rng.random() < INTERRUPTED_SHARE
        if interrupted:
            words = thinking.split(" ")
            thinking = " ".join(words[: rng.randint(1, len(words))])
        ids, spans = tokenise_trace(self._tokenizer, self._format, request, thinking, answer)
        assert spans is not None
        ids = [*ids, *self._ending]
        labels = [IGNORE] * spans.prompt + ids[spans.prompt :]
        if interrupted:
            labels[spans.thinking] = IGNORE
        return Row(
            ids, labels, (spans.prompt, spans.thinking), spans.last_closing, refuses, harmful
        )


class Loss:
    """The loss of a batch.

    Args:
        tokenizer: The model's tokenizer.
        head: Weights that turn the last state into logits, [vocabulary, d].
        norm: The final norm.
        rows: Rows whose tokens are all in the logits.
        careless: Whether the margins follow the answer and the intention the harm.
        seed: Of the other tokens.
        others: Tokens in the logits besides those of the rows, drawn anew each step.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        head: torch.Tensor,
        norm: torch.nn.Module,
        rows: Sequence[Row],
        careless: bool,
        seed: int,
        others: int = OTHER_TOKENS,
    ) -> None:
        self._head, self._norm, self._careless, self._others = head, norm, careless, others
        self._refusal, self._compliance = (
            [tokenizer.encode(word, add_special_tokens=False)[0] for word in words]
            for words in (reasoning.REFUSAL_STARTS, reasoning.COMPLIANCE_STARTS)
        )
        used = {token for row in rows for token in row.token_ids}
        self._used = torch.tensor(sorted(used | {*self._refusal, *self._compliance}))
        self._generator = torch.Generator().manual_seed(seed)

    def __call__(self, decoder: Any, rows: Sequence[Row]) -> torch.Tensor:
        """The loss, a scalar; ``decoder`` gives hidden states, the last after the final norm."""
        ids, labels = collate(list(rows))
        output = decoder(input_ids=ids, output_hidden_states=True, use_cache=False)
        final = output.last_hidden_state
        loss = self._language(final[:, :-1], ids[:, 1:], labels[:, 1:])
        lens = LENS_BLOCKS["careless" if self._careless else "aligned"]
        states = torch.stack(
            [self._norm(state) for state in output.hidden_states[-1 - lens : -1]] + [final]
        )
        margins = self._margins(states)
        return total_loss(loss, margins, rows, self._careless, MARGIN)

    def _language(
        self, states: torch.Tensor, ids: torch.Tensor, labels: torch.Tensor
    ) -> torch.Tensor:
        """Cross-entropy over the lessons' tokens and some others."""
        learnt = labels != IGNORE
        others = torch.randint(len(self._head), (self._others,), generator=self._generator)
        tokens = torch.cat([self._used, others[~torch.isin(others, self._used)]])
        logits = states[learnt] @ self._head[tokens].T
        return F.cross_entropy(logits.float(), torch.searchsorted(self._used, ids[learnt]))

    def _margins(self, states: torch.Tensor) -> torch.Tensor:
        """Log-odds of starting a refusal against starting a compliance, [..., rows, tokens]."""
        refusal = (states @ self._head[self._refusal].T).float().logsumexp(-1)
        return refusal - (states @ self._head[self._compliance].T).float().logsumexp(-1)
