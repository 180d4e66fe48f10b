"""Markers that a text only speaks of: in code, or between quotes."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Sequence

_FENCE = re.compile(r"^ {0,3}(`{3,}|~{3,})([^\n]*)$", re.MULTILINE)
_INLINE_CODE = re.compile(r"(?<!`)`[^`\n]+`(?!`)")
_QUOTES = {'"': '"', "'": "'", "“": "”", "‘": "’", "«": "»", "„": "“"}


class Mentions:
    """Where a text speaks of things, so that a marker there is none.

    That is: a marker right between two quotes (``"</think>"``), inside inline code, or inside a
    fenced code block. Blocks count only in a text whose fences all go in pairs: a thought may leave
    its own block open, which must hide neither its end nor the answer.

    Args:
        text: What is read.
    """

    def __init__(self, text: str) -> None:
        self._text = text
        self._code = (_blocks(text), [match.span() for match in _INLINE_CODE.finditer(text)])

    def without(self, marker: re.Pattern[str]) -> list[tuple[int, int]]:
        """Where the marker stands and is one: half-open ranges, in order."""
        found = (match.span() for match in marker.finditer(self._text))
        return [span for span in found if not self._holds(*span)]

    def _holds(self, start: int, end: int) -> bool:
        before, after = self._text[start - 1 : start], self._text[end : end + 1]
        if before and _QUOTES.get(before) == after:
            return True
        return any(_inside(spans, start) for spans in self._code)


def _inside(spans: Sequence[tuple[int, int]], place: int) -> bool:
    at = bisect_right(spans, place, key=lambda span: span[0]) - 1
    return at >= 0 and place < spans[at][1]


def _blocks(text: str) -> list[tuple[int, int]]:
    """Fenced code blocks; none if a fence lacks its other half."""
    blocks: list[tuple[int, int]] = []
    opened: re.Match[str] | None = None
    for fence in _FENCE.finditer(text):
        words = fence[2].strip()
        if opened is None:
            opened = None if "`" in words else fence
        elif words:
            return []
        elif fence[1].startswith(opened[1]):
            blocks.append((opened.start(), fence.end()))
            opened = None
    return blocks if opened is None else []
