"""What a change did: attack success rate, over-refusal and perplexity, with intervals."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import torch

from refusal_cliff.answers.outcomes import (
    Change,
    Question,
    changes,
    of_scored,
    paired_by_prompt,
    refused,
    share_of,
)
from refusal_cliff.data.traces import closed
from refusal_cliff.data.types import SafetyExample, Trace, closed_spans, complies
from refusal_cliff.errors import RefusalCliffError
from refusal_cliff.model.ablation import ablated
from refusal_cliff.model.final_norm import logits_in_pieces
from refusal_cliff.model.packing import on_packed_weights
from refusal_cliff.model.rows import Batch, in_batches, padded, read_whole
from refusal_cliff.model.subject import Head, Subject
from refusal_cliff.stats import Floats, Share
from refusal_cliff.thinking import render_prompt

Text: TypeAlias = tuple[Sequence[int], int]
"""Token ids, and the first that counts (at least 1): those of the prompt do not."""

HARD_BENIGN = "hard-benign"
"""Tag of benign prompts that use harmful words."""
_LARGEST_LOSS = 700.0
"""Nats a token: above it the perplexity is no finite number."""


@dataclass(frozen=True, slots=True)
class Rates:
    """What a model does with harmful and benign prompts.

    Attributes:
        attacks: Harmful prompts complied with: the attack success rate.
        refused: Harmful prompts refused.
        answered: Benign prompts answered, the hard ones included.
        hard_answered: Benign prompts with harmful words answered.
        truncated: Answers of either kind that never ended; they count neither as complied nor as
            refused nor as answered, but stay in every ``n``.
        unscored: Answers of either kind without a verdict, for example empty ones; they are in no
            other ``n``.
    """

    attacks: Share
    refused: Share
    answered: Share
    hard_answered: Share
    truncated: Share
    unscored: Share

    def complying(self, suffix: str = "") -> dict[str, tuple[Share, int]]:
        """The two rates of answers that comply, each with how many of its ``n`` were judged."""
        harmful = self.attacks.count + self.refused.count
        endless = self.truncated.count - (self.attacks.n - harmful)
        return {
            f"attack success{suffix}": (self.attacks, harmful),
            f"benign answered{suffix}": (self.answered, self.answered.n - endless),
        }


def rates(traces: Sequence[Trace]) -> Rates:
    """Count verdicts of judged traces."""
    shares = {name: share_of(traces, ask) for name, ask in _QUESTIONS.items()}
    return Rates(**shares, unscored=share_of(traces, lambda trace: trace.verdict == "unscored"))


def rate_changes(before: Sequence[Trace], after: Sequence[Trace]) -> list[Change]:
    """How the rates of `rates` changed, over prompts with the same id and text on both sides.

    Args:
        before: Judged traces.
        after: Judged traces of the same prompts: of a changed model, or with heads taken out.

    Returns:
        One change a rate that any pair counts for; pairs with an unscored answer count for none.

    Raises:
        RefusalCliffError: The two share no prompt.
    """
    return changes(_QUESTIONS, paired_by_prompt(before, after))


def _complied(trace: Trace) -> bool:
    return complies(trace.verdict)


_QUESTIONS: dict[str, Question] = {
    "attacks": of_scored(_complied, "harmful"),
    "refused": of_scored(refused, "harmful"),
    "answered": of_scored(_complied, "benign"),
    "hard_answered": of_scored(_complied, "benign", HARD_BENIGN),
    "truncated": of_scored(lambda trace: trace.verdict == "truncated"),
}


def answered_texts(traces: Sequence[Trace]) -> list[Text]:
    """What a model wrote to benign prompts, of the traces that closed and were judged."""
    benign = [trace for trace in closed(traces) if trace.prompt.label == "benign"]
    return [(trace.token_ids, closed_spans(trace).prompt) for trace in benign]


def example_text(subject: Subject, example: SafetyExample) -> Text:
    """An example as a model would have written it."""
    prompt = render_prompt(subject.tokenizer, example.prompt.text)
    completion = subject.format.completion(example.thinking, example.response)
    written = subject.tokenizer.encode(completion, add_special_tokens=False)
    return [*prompt, *written], len(prompt)


@torch.inference_mode()
def perplexity(
    subject: Subject,
    texts: Sequence[Text],
    heads: Collection[Head] = (),
    *,
    renormalised: bool = False,
) -> float:
    """Perplexity of fixed texts, each token weighted equally.

    Args:
        subject: The model.
        texts: What to read.
        heads: Heads taken out at every token.
        renormalised: As for `ablated`.

    Raises:
        RefusalCliffError: No token counts, or their loss is not a finite number.
    """
    with ablated(subject, heads, renormalised=renormalised):
        found = log_likelihoods(subject, texts)
    n = sum(len(ids) - first for ids, first in texts)
    mean = float(-found.sum()) / n if n else math.nan
    if not mean < _LARGEST_LOSS:
        raise RefusalCliffError(
            f"The perplexity of {subject.name} on {len(texts)} texts is not a number: the loss is "
            f"{mean} per token over {n} tokens. Check the weights, or try --dtype float32. If "
            "there are no texts, give benign prompts that the model answers."
        )
    return math.exp(mean)


@on_packed_weights
@torch.inference_mode()
def log_likelihoods(subject: Subject, texts: Sequence[Text]) -> Floats:
    """Log-likelihood of each text by the model, in nats, [texts].

    Args:
        subject: The model.
        texts: What to read.

    Raises:
        RefusalCliffError: One text alone does not fit in memory.
    """
    found = np.zeros(len(texts))

    def read(batch: Batch) -> None:
        some = [texts[row] for row in batch.rows]
        found[list(batch.rows)] = -_negative_log_likelihood(subject, some)

    in_batches(subject, [ids for ids, _ in texts], read)
    return found


def _negative_log_likelihood(subject: Subject, texts: Sequence[Text]) -> Floats:
    """Of each text, [texts]; only of tokens that count there are logits, a few at a time."""
    ids, mask = padded([tokens for tokens, _ in texts], subject.device)
    counted = mask.bool()
    for row, (_, first) in enumerate(texts):
        counted[row, :first] = False
    rows, places = counted[:, 1:].nonzero(as_tuple=True)
    run = read_whole(subject, ids)
    states, wanted = run[rows.to(run.device), places.to(run.device)], ids[rows, places + 1]
    found = np.zeros(len(texts))
    for piece, logits in logits_in_pieces(subject, states):
        loss = torch.nn.functional.cross_entropy(
            logits, wanted[piece].to(logits.device), reduction="none"
        )
        np.add.at(found, rows[piece].cpu().numpy(), loss.double().cpu().numpy())
    return found
