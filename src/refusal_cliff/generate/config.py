"""How much a local model writes, and how."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from refusal_cliff.errors import RefusalCliffError


@dataclass(frozen=True, slots=True)
class GenerationConfig:
    """How much to write, and how.

    Attributes:
        max_new_tokens: Most tokens of thinking and answer together.
        batch_size: Rows written at once; halved where memory runs out.
        temperature: 0 is greedy; else tokens are drawn from the softmax of logits / temperature.
        top_p: Share of the probability that draws are made from.
        seed: Seed of the draws.
        thinking_budget: Most tokens of thinking; where it is spent, the thinking is closed as the
            chat template closes it, and the trace says so. ``None`` lets the model think on.
    """

    max_new_tokens: int = 160
    batch_size: int = 256
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    thinking_budget: int | None = None

    def __post_init__(self) -> None:
        if self.temperature < 0 or not 0 < self.top_p <= 1:
            raise RefusalCliffError(
                f"Temperature {self.temperature} and top-p {self.top_p} do not make a distribution."
                " Give a temperature of 0 (greedy) or more, and a top-p above 0 and up to 1."
            )
        if self.thinking_budget is not None and not 0 < self.thinking_budget < self.max_new_tokens:
            raise RefusalCliffError(
                f"A thinking budget of {self.thinking_budget} leaves no room for an answer within "
                f"{self.max_new_tokens} new tokens. Allow more new tokens, or less thinking."
            )

    def decoding(self) -> dict[str, Any]:
        """All that answers depend on, as JSON: not how many are written at once."""
        found = asdict(self)
        del found["batch_size"]
        return found
