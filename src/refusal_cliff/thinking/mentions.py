"""Where a text speaks of markers instead of using them: in quotes and in code."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Sequence

_FENCE = re.compile(r"^ {0,3}(`{3,}|~{3,})([^\n]*)$", re.MULTILINE)
_INLINE_CODE = re.compile(r"(?<!`)`[^`\n]+`(?!`)")
_WITH_CODE = re.compile(r"^[^`\n]*`.*$", re.MULTILINE)
_QUOTES = {'"': '"', "'": "'", "“": "”", "‘": "’", "«": "»", "„": "“"}
_QUOTE_ENDS = (".", "!", "?", ",", ")")
"""What may end a quotation, before its quote."""


class Mentions:
    """Where a text speaks of things, so that a marker there is none.

    That is: a marker right between two quotes (``"</think>"``); at an end of inline code
    (```` `<think>…</think>` ````), or within it where all code on its line is closed; or inside a
    fenced code block. A quote is one where a quotation begins or ends, not where a thought ends
    with a quotation and the answer begins with another. Blocks count only in a text whose fences
    all go in pairs: a thought may leave its own block open, which must hide neither its end nor the
    answer.

    Args:
        text: What is read.
    """

    def __init__(self, text: str) -> None:
        self._text = text
        self._blocks = _blocks(text)
        self._inline = [match.span() for match in _INLINE_CODE.finditer(text)]
        lines = _WITH_CODE.finditer(text)
        self._unclosed = [line.span() for line in lines if line.group().count("`") % 2]

    def without(self, marker: re.Pattern[str]) -> list[tuple[int, int]]:
        """Where the marker stands and is one: half-open ranges, in order."""
        found = (match.span() for match in marker.finditer(self._text))
        return [span for span in found if not (self._quotes(*span) or self._in_code(*span))]

    def _quotes(self, start: int, end: int) -> bool:
        before, after = self._text[max(0, start - 2) : start], self._text[end : end + 2]
        if not before or _QUOTES.get(before[-1]) != after[:1]:
            return False
        return not (before[:-1].isalnum() or after[1:].isalnum() or before[:-1] in _QUOTE_ENDS)

    def _in_code(self, start: int, end: int) -> bool:
        code = _around(self._inline, start)
        if code is None:
            return _around(self._blocks, start) is not None
        at_end = code[0] == start - 1 or code[1] == end + 1
        return at_end or _around(self._unclosed, start) is None


def _around(spans: Sequence[tuple[int, int]], place: int) -> tuple[int, int] | None:
    """The one of some ordered ranges that holds a place."""
    at = bisect_right(spans, place, key=lambda span: span[0]) - 1
    return spans[at] if at >= 0 and place < spans[at][1] else None


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
