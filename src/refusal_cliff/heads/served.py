"""Whether an adapter on a server is the ablation: its greedy answers, read by the model here."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from refusal_cliff.errors import RefusalCliffError
from refusal_cliff.model.ablation import ablated
from refusal_cliff.model.subject import Head, Subject

ROUNDING = 0.5
"""Nats that the best token here may be above the one that a server wrote: so much two engines
differ by that round to bfloat16."""
MOST_OTHER = 0.02
"""Share of a server's tokens that may lie further below: one tie more in an answer."""


@dataclass(frozen=True, slots=True)
class Agreement:
    """Greedy tokens of a server against the model here.

    Attributes:
        tokens: How many the server wrote.
        other: Those that the model here, with the heads out, would not have written, and that
            ``ROUNDING`` does not explain.
        furthest: Nats of the one furthest below the best.
        telling: Those that the model here would not have written with all heads in: without any,
            the check cannot tell the adapter from the model itself.
    """

    tokens: int
    other: int
    furthest: float
    telling: int

    def require(self, name: str, heads: Collection[Head], url: str) -> None:
        """Refuse a server that says something else.

        Raises:
            RefusalCliffError: Too many tokens are other ones.
        """
        if self.tokens and self.other <= MOST_OTHER * self.tokens:
            return
        raise RefusalCliffError(
            f"{url} does not answer as the model here does without "
            f"{', '.join(map(str, sorted(heads)))}: of {self.tokens} greedy tokens of the adapter "
            f"{name}, {self.other} are other ones by more than {ROUNDING:g} nats (at most "
            f"{MOST_OTHER:.0%} may be; the furthest by {self.furthest:.2f}). Nothing that it says "
            "was used. Check that it serves the checkpoint that --model names and applies "
            "adapters; or leave --adapters-dir out, and the heads are taken out here."
        )


def agreement(
    subject: Subject,
    heads: Collection[Head],
    begun: Mapping[str, Sequence[int]],
    written: Mapping[str, Sequence[int]],
) -> Agreement:
    """Read a server's greedy answers with the model here: is each token the best one?

    The answers are given to the model as they are, so that a tie that two engines break otherwise
    counts once and not for all that follows it.

    Args:
        subject: The model.
        heads: Heads that the server's adapter takes out, at every token.
        begun: By name, the tokens that the server went on from.
        written: By name, what it wrote.
    """
    below, without = (
        np.concatenate([_below(subject, out, begun[name], written[name]) for name in written])
        for out in (heads, ())
    )
    return Agreement(
        len(below),
        int((below > ROUNDING).sum()),
        float(below.max(initial=0.0)),
        int((without > ROUNDING).sum()),
    )


@torch.inference_mode()
def _below(
    subject: Subject, heads: Collection[Head], begun: Sequence[int], written: Sequence[int]
) -> np.ndarray:
    """Nats of each written token below the best one, [tokens]."""
    ids = torch.tensor([[*begun, *written]], device=subject.device)
    with ablated(subject, heads):
        logits = subject.model(ids).logits[0, len(begun) - 1 : -1].float()
    of_written = logits.gather(-1, ids[0, len(begun) :, None].to(logits.device))[:, 0]
    return (logits.max(-1).values - of_written).cpu().numpy()
