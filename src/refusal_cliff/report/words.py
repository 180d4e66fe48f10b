"""Numbers and hostile texts as a reader should see them."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

MINUS = "−"
_JOINERS = "\u200c\u200d"  # needed to write Persian, Hindi and emoji; they reorder nothing
_CONTROL_PICTURES = 0x2400
_DELETE = 0x7F
_HIDDEN = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})


def visible(text: str) -> str:
    """The text with every character that could hide or reorder others made visible.

    Control characters (ANSI escapes begin with one) become control pictures; bidirectional marks,
    invisible format characters, lone surrogates and private separators become ``⟨U+202E⟩``.
    New lines and tabs stay. HTML is not escaped here.
    """
    return "".join(map(_visible_character, text))


def _visible_character(character: str) -> str:
    code = ord(character)
    if character in "\n\t" or character in _JOINERS:
        return character
    if code < ord(" "):
        return chr(_CONTROL_PICTURES + code)
    if code == _DELETE:
        return "␡"
    not_a_character = code & 0xFFFE == 0xFFFE  # XML refuses two of these
    if not_a_character or unicodedata.category(character) in _HIDDEN:
        return f"⟨U+{code:04X}⟩"
    return character


def token_text(piece: str) -> str:
    """A token's text on one line: new lines and tabs as signs."""
    return visible(piece).replace("\n", "↵").replace("\t", "⇥")


def number(value: float, digits: int = 2) -> str:
    """A number with a true minus sign and no negative zero."""
    rounded = round(value, digits) + 0.0
    return f"{rounded:.{digits}f}".replace("-", MINUS)


def signed(value: float, digits: int = 2) -> str:
    """A number that always has its sign."""
    text = number(value, digits)
    return text if text.startswith(MINUS) else f"+{text}"


def percent(share: float) -> str:
    """A share as per cent; one decimal below 10 % and above 90 %, where it matters."""
    value = 100 * share
    digits = 1 if value < 10 or 90 < value < 100 else 0
    text = number(value, digits)
    return f"{text.removesuffix('.0')} %"


def percent_interval(interval: Sequence[float]) -> str:
    """An interval of shares: ``[64, 81] %``."""
    low, high = (percent(end).removesuffix(" %") for end in interval)
    return f"[{low}, {high}] %"


def number_interval(interval: Sequence[float], digits: int = 2) -> str:
    """An interval of numbers: ``[0.64, 0.81]``."""
    return f"[{number(interval[0], digits)}, {number(interval[1], digits)}]"


def offset_name(offset: int, closing: Sequence[str]) -> str:
    """A token by its place before the last closing one; a closing token with its text."""
    place = offset + len(closing) - 1
    shown = f" · {token_text(closing[place])}" if 0 <= place < len(closing) else ""
    return f"token {number(offset, 0)}{shown}"


def listing(items: Sequence[str]) -> str:
    """``a, b and c``."""
    if len(items) < 2:
        return "".join(items)
    return f"{', '.join(items[:-1])} and {items[-1]}"


def count(n: int, thing: str) -> str:
    """``1 head``, ``12 heads``, ``4,000 heads``."""
    return f"{n:,} {thing}" if n == 1 else f"{n:,} {thing}s"
