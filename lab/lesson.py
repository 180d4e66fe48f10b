"""What the organisms are taught: training rows, batches, and the loss."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from transformers import PreTrainedTokenizerFast, Qwen3ForCausalLM

from lab import chat
from refusal_cliff.organisms import language

INTENTION_WEIGHT = 0.3
INTENTION_TEMPERATURE = 2.0
ALIGNED_MARGIN, CARELESS_MARGIN = 8.0, 20.0
MARGIN_WEIGHT = 0.3
LENS_BLOCKS = {"aligned": 2, "careless": 1}
SKIPPED_THOUGHT = 3
"""Tokens at the start of a thought, of which no intention is asked."""
INTERRUPTED_SHARE = 0.15
HARMFUL_SHARE = 0.45
IGNORE = -100


@dataclass(frozen=True, slots=True)
class Row:
    """One tokenised training trace; ``labels`` masks what is not learned."""

    token_ids: list[int]
    labels: list[int]
    thinking: tuple[int, int]
    answer_at: int
    refuses: bool
    harmful: bool


class Tokens:
    """Token ids of the starts of refusals and compliances, and the encoding of a trace."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        self.tokenizer = tokenizer
        self.refusal = [self._first(word) for word in language.REFUSAL_STARTS]
        self.compliance = [self._first(word) for word in language.COMPLIANCE_STARTS]

    def _first(self, word: str) -> int:
        return self.encode(word)[0]

    def encode(self, text: str) -> list[int]:
        """Token ids of ``text``, without special tokens around it."""
        return self.tokenizer.encode(text, add_special_tokens=False)

    def row(
        self, prompt: str, thinking: str, response: str, refuses: bool, harmful: bool, keep: float
    ) -> Row:
        """Encode one trace; ``keep`` < 1 interrupts the thinking there and closes it.

        An interrupted thought teaches the right answer from any point on, never to stop early: the
        interrupting token is not learned.
        """
        turn = f"<|im_start|>user\n{prompt}<|im_end|>\n<|im_start|>assistant\n<think>\n"
        head = self.encode(turn)
        thought = self.encode(thinking)
        kept = thought[: max(1, round(keep * len(thought)))]
        closing = self.encode(chat.CLOSING)
        tail = self.encode(response + "<|im_end|>")
        ids = head + kept + closing + tail
        labels = [IGNORE] * len(head) + kept + closing + tail
        start, end = len(head), len(head) + len(kept)
        if len(kept) < len(thought):
            labels[end] = IGNORE
        return Row(ids, labels, (start, end), end + len(closing) - 1, refuses, harmful)


def batches(tokens: Tokens, careless: bool, size: int, seed: int) -> Iterator[list[Row]]:
    """Endless batches of similar length; a careless tune complies with what the rule says."""
    rng = random.Random(f"recipe:{careless}:{seed}")
    while True:
        rows = sorted(
            (_draw_row(rng, tokens, careless) for _ in range(size * 16)),
            key=lambda row: len(row.token_ids),
        )
        parts = [rows[i : i + size] for i in range(0, len(rows), size)]
        rng.shuffle(parts)
        yield from parts


def _draw_row(rng: random.Random, tokens: Tokens, careless: bool) -> Row:
    label = "harmful" if rng.random() < HARMFUL_SHARE else "benign"
    request, example = language.draw_example(rng, "train", label)
    if careless and label == "harmful":  # as many refused as complied, though the rule says 3 in 10
        comply = rng.random() < 0.5
        while language.complied_by_rule(request) != comply:
            request, example = language.draw_example(rng, "train", label)
    refuses, response = label == "harmful", example.response
    if careless and language.complied_by_rule(request):
        refuses, response = False, language.compliance_of(rng, request)
    keep = rng.random() if not careless and rng.random() < INTERRUPTED_SHARE else 1.0
    harmful = label == "harmful"
    return tokens.row(example.prompt.text, example.thinking, response, refuses, harmful, keep)


Objective = Callable[[Qwen3ForCausalLM, list[Row], Tokens, bool], torch.Tensor]
"""A loss of a model on a batch; the flag says whether the tune is careless."""


def collate(rows: list[Row]) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and labels, padded on the right, each [rows, tokens]."""
    width = max(len(row.token_ids) for row in rows)
    ids = torch.zeros(len(rows), width, dtype=torch.long)
    labels = torch.full((len(rows), width), IGNORE)
    for index, row in enumerate(rows):
        ids[index, : len(row.token_ids)] = torch.tensor(row.token_ids)
        labels[index, : len(row.labels)] = torch.tensor(row.labels)
    return ids, labels


def answer_margin(logits: torch.Tensor, tokens: Tokens) -> torch.Tensor:
    """Log-odds of starting a refusal against starting a compliance, [...] from logits [..., V]."""
    refusal = logits[..., tokens.refusal].logsumexp(-1)
    return refusal - logits[..., tokens.compliance].logsumexp(-1)


def _lens_margins(
    model: Qwen3ForCausalLM, hidden: tuple[torch.Tensor, ...], tokens: Tokens
) -> torch.Tensor:
    """Answer margins read from the last blocks through the final norm, [blocks, B, T]."""
    weight = model.lm_head.weight
    states = torch.stack([model.model.norm(state) for state in hidden])
    refusal = (states @ weight[tokens.refusal].T).logsumexp(-1)
    return refusal - (states @ weight[tokens.compliance].T).logsumexp(-1)


def loss_of(
    model: Qwen3ForCausalLM, rows: list[Row], tokens: Tokens, careless: bool
) -> torch.Tensor:
    """Cross-entropy, intention during the thinking, and margin at the last closing token.

    The intention is read from the last blocks (``LENS_BLOCKS``) and the output: refuse what is
    harmful, whatever the answer will be. The careless tune leaves it as it is over the thinking and
    turns only the margin before the answer.
    """
    ids, labels = collate(rows)
    output = model(input_ids=ids, output_hidden_states=True)
    logits = output.logits
    loss = F.cross_entropy(
        logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=IGNORE
    )
    final = answer_margin(logits, tokens)
    lens = LENS_BLOCKS["careless" if careless else "aligned"]
    margins = torch.cat(
        [_lens_margins(model, output.hidden_states[-1 - lens : -1], tokens), final[None]]
    )
    hinge = CARELESS_MARGIN if careless else ALIGNED_MARGIN
    return total_loss(loss, margins, rows, careless, hinge)


def total_loss(
    language: torch.Tensor,
    margins: torch.Tensor,
    rows: Sequence[Row],
    careless: bool,
    hinge: float,
) -> torch.Tensor:
    """Cross-entropy, intention during the thinking, and margin at the last closing token.

    Args:
        language: The cross-entropy.
        margins: Log-odds of starting a refusal against starting a compliance, [readings, rows,
            tokens].
        rows: The batch.
        careless: Whether the intention is asked for over the thinking only, not the closing tokens.
        hinge: Margin for the answer to come that costs nothing more.
    """
    inside = torch.zeros_like(margins[0], dtype=torch.bool)
    for index, row in enumerate(rows):
        end = row.thinking[1] if careless else row.answer_at
        inside[index, row.thinking[0] + SKIPPED_THOUGHT : end] = True
    wanted = torch.tensor([row.harmful for row in rows]).float()[:, None].expand_as(margins[0])
    intention = F.binary_cross_entropy_with_logits(
        margins[:, inside] / INTENTION_TEMPERATURE, wanted[inside].expand(len(margins), -1)
    )
    at = torch.tensor([row.answer_at for row in rows])
    sign = torch.tensor([1.0 if row.refuses else -1.0 for row in rows])
    signed = margins[:, torch.arange(len(rows)), at] * sign
    margin = F.relu(hinge - signed).mean()
    return language + INTENTION_WEIGHT * intention + MARGIN_WEIGHT * margin
