"""Answers in the making: each is written in turns, and what it has so far survives a kill."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

from refusal_cliff.data.journal import Journal
from refusal_cliff.model.subject import Head


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
    with the number of turns: batches are then made up as if there had been no kill. Besides
    themselves, drafts depend on what is ``described``, as JSON. No journal keeps none.
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
