"""What may be trained on: nothing twice, and nothing that the evaluation asks."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from refusal_cliff.data.types import Prompt, SafetyExample

SHINGLE = 5
"""Words of the runs by which two prompts are compared."""
OVERLAP = 0.8
"""Share of the shorter prompt's runs that the other must hold to count as the same."""
_WORDS = re.compile(r"\w+")


class Evaluation:
    """The prompts of an evaluation, asked whether a candidate overlaps with one of them."""

    def __init__(self, prompts: Iterable[Prompt]) -> None:
        self._ids: list[str] = []
        self._sizes: list[int] = []
        self._holders: dict[tuple[str, ...], list[int]] = {}
        for place, prompt in enumerate(prompts):
            runs = _runs(prompt.text)
            self._ids.append(prompt.id)
            self._sizes.append(len(runs))
            for run in runs:
                self._holders.setdefault(run, []).append(place)

    def __len__(self) -> int:
        return len(self._ids)

    def overlaps(self, text: str) -> str | None:
        """Id of an evaluation prompt that holds ``OVERLAP`` of the text's runs, or the reverse.

        A run is ``SHINGLE`` words without case and punctuation; a shorter text is one run. So a
        prompt of the evaluation is found inside a longer one, such as a jailbreak around it.
        """
        place = next(self.places(text), None)
        return None if place is None else self._ids[place]

    def places(self, text: str) -> Iterator[int]:
        """Numbers of all prompts that overlap with the text, see `overlaps`."""
        runs = _runs(text)
        shared: dict[int, int] = {}
        for run in runs:
            for place in self._holders.get(run, ()):
                shared[place] = shared.get(place, 0) + 1
        return (p for p, n in shared.items() if n >= OVERLAP * min(len(runs), self._sizes[p]))


def with_near_duplicates(prompts: Sequence[Prompt]) -> list[Prompt]:
    """The same prompts, near-duplicates in one group whatever their labels and files.

    Prompts are near-duplicates where `Evaluation.overlaps` says so, or where they share a group
    already; groups that are joined by a chain of such pairs become one, named by the first.
    """
    known = Evaluation(prompts)
    parent = list(range(len(prompts)))

    def root(place: int) -> int:
        while parent[place] != place:
            parent[place] = parent[parent[place]]
            place = parent[place]
        return place

    first: dict[str, int] = {}
    for place, prompt in enumerate(prompts):
        for other in (first.setdefault(prompt.group, place), *known.places(prompt.text)):
            older, newer = sorted((root(place), root(other)))
            parent[newer] = older
    return [replace(p, group=prompts[root(at)].group) for at, p in enumerate(prompts)]


class Seen:
    """The prompts met so far, 16 bytes each."""

    def __init__(self) -> None:
        self._digests: set[bytes] = set()

    def add(self, text: str) -> bool:
        """Whether the text, without case, spaces and punctuation, is new; it is not afterwards."""
        words = " ".join(_words(text))
        digest = hashlib.blake2b(words.encode(errors="surrogatepass"), digest_size=16).digest()
        new = digest not in self._digests
        self._digests.add(digest)
        return new


@dataclass(frozen=True, slots=True)
class Pool:
    """Safety examples fit for training.

    Attributes:
        examples: Without duplicates, and without prompts of the evaluation.
        duplicates: Rows dropped because an earlier row has the same prompt.
        contaminated: Rows dropped because they overlap with the evaluation.
    """

    examples: tuple[SafetyExample, ...]
    duplicates: int
    contaminated: int


def clean_pool(examples: Sequence[SafetyExample], evaluation: Sequence[Prompt]) -> Pool:
    """Drop whatever overlaps with the evaluation, and duplicates; the first of each stays."""
    asked, seen = Evaluation(evaluation), Seen()
    kept: list[SafetyExample] = []
    duplicates = contaminated = 0
    for example in examples:
        if asked.overlaps(example.prompt.text) is not None:
            contaminated += 1
        elif seen.add(example.prompt.text):
            kept.append(example)
        else:
            duplicates += 1
    return Pool(tuple(kept), duplicates, contaminated)


def _words(text: str) -> list[str]:
    folded = text.casefold()
    return _WORDS.findall(folded) or [folded.strip()]


def _runs(text: str) -> set[tuple[str, ...]]:
    words = _words(text)
    last = max(1, len(words) - SHINGLE + 1)
    return {tuple(words[start : start + SHINGLE]) for start in range(last)}
