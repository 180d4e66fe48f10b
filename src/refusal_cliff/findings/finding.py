"""What a run has found, as sentences that a terminal or a page can show."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Finding:
    """One result in words.

    Attributes:
        question: What was asked, such as "Do those heads cause it?".
        answer: What was found, with its numbers.
        holds: Whether it is what the method predicts here; None where it predicts nothing.
        expected: What it predicts, in words.
    """

    question: str
    answer: str
    holds: bool | None = None
    expected: str = ""
