"""The fields of a row, checked one by one: a value of its type, or a reason and its remedy."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import cast

from refusal_cliff import settings
from refusal_cliff.data.types import LABELS, VERDICTS, Label, Row, Verdict, shortened
from refusal_cliff.errors import RefusalCliffError
from refusal_cliff.thinking import Spans

LARGEST_TOKEN = 2**31 - 1
SPANS = ("prompt", "thinking", "closing", "total")
"""The ends of the four parts of a trace, as a row names them."""
_BOOLS = {"true": True, "false": False}
_TRUTHS = (*_BOOLS, "1", "0", "1.0", "0.0")


class BadRow(RefusalCliffError):
    """A row that is not used.

    Attributes:
        reason: One of a few words that are counted.
    """

    def __init__(self, reason: str, wrong: str, remedy: str = "") -> None:
        super().__init__(shortened(f"{wrong}. Remedy: {remedy}." if remedy else wrong))
        self.reason = reason


def bad(wrong: str, remedy: str) -> BadRow:
    """The reason of a row whose form is not one that is known."""
    return BadRow("other format", wrong, remedy)


def shown(value: object) -> str:
    """A value of any kind, for a message."""
    try:
        return shortened(repr(value), 80)
    except (ValueError, RecursionError):  # an integer of 5,000 digits, a list in a list in a list …
        return f"a {type(value).__name__} too large to show"


def checked_text(value: str, name: str) -> str:
    """The text itself.

    Raises:
        BadRow: It cannot be written as UTF-8.
    """
    try:
        value.encode()
    except UnicodeEncodeError as error:
        place = f"half a surrogate pair, at character {error.start} of {name!r}"
        wrong = f"it holds bytes that are not UTF-8, or {place}"
        raise BadRow("not readable", wrong, "save the file as UTF-8") from error
    return value


def text_of(row: Row, name: str) -> str:
    """A text or a whole number as text; empty where there is none."""
    value = row.get(name)
    if value is None:
        return ""
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise bad(f"{name!r} is {shown(value)}, not a text", "write it as a text")
    try:
        return checked_text(str(value), name)
    except ValueError as error:  # an integer of more digits than Python writes
        raise bad(f"{name!r} is {shown(value)}", "write it as a text") from error


def category_of(row: Row) -> str:
    """One text; public data also has lists of categories."""
    value = row.get("category")
    if not isinstance(value, Sequence) or isinstance(value, str):
        return text_of(row, "category")
    return "; ".join(text_of({"category": part}, "category") for part in value)


def tags_of(row: Row) -> tuple[str, ...]:
    """A list of texts, or words with spaces between."""
    value = row.get("tags")
    if value is None:
        return ()
    if isinstance(value, str):
        return tuple(checked_text(value, "tags").split())
    if isinstance(value, Sequence) and all(isinstance(tag, str) for tag in value):
        return tuple(checked_text(tag, "tags") for tag in cast("Sequence[str]", value))
    raise bad(f"'tags' is {shown(value)}", "write a list of texts, or words with spaces between")


def label_of(row: Row, default: Label | None) -> Label:
    """Harmful or benign, by any of the names that public data has for them."""
    value = row.get("label")
    if value in (None, "") and default is not None:
        return default
    found = named_label(value)
    if found is None:
        raise bad(
            f"the label is {shown(value)}",
            "write 'harmful' or 'benign', name the column that says it (--column label=COLUMN), or "
            "one label for all rows without one (--label)",
        )
    return found


def named_label(value: object) -> Label | None:
    """The label that a value means; ``None`` if it is none."""
    if isinstance(value, float) and value in (0, 1):
        value = int(value)
    name = str(value).strip().lower() if isinstance(value, str | bool) or value in (0, 1) else ""
    return settings.LABELS.get(name)


def label_in(column: str, value: object) -> object:
    """What a column that a user named says of the label; true of ``is_safe`` is no harm."""
    says = named_label(value)
    if says is None or str(value).strip().lower() not in _TRUTHS:
        return value
    if named_label(column.lower().removeprefix("is_")) != "benign":
        return value
    return LABELS[1 - LABELS.index(says)]


def checked_label(label: str | None) -> Label | None:
    """The label that a user named for rows without one.

    Raises:
        RefusalCliffError: There is no such label.
    """
    found = None if label is None else named_label(label)
    if label is not None and found is None:
        raise RefusalCliffError(
            f"Unknown label {label!r}. Write one of: {', '.join(LABELS)} (--label)."
        )
    return found


def verdict_of(row: Row) -> Verdict:
    """A verdict; ``unscored`` where there is none."""
    value = row.get("verdict")
    if value in (None, ""):
        return "unscored"
    if value not in VERDICTS:
        raise bad(f"the verdict is {shown(value)}", f"use one of {', '.join(VERDICTS)}")
    return cast("Verdict", value)


def bool_of(row: Row, name: str, default: bool) -> bool:
    """True or false; a cell of CSV may say it as text."""
    value = row.get(name)
    if value in (None, ""):
        return default
    if isinstance(value, str):
        value = _BOOLS.get(value.strip().lower())
    if not isinstance(value, bool):
        raise bad(f"{name!r} is {shown(row[name])}", "write true or false, or drop it")
    return value


def count_of(row: Row, name: str) -> int | None:
    """A whole number, not below 0; a cell of CSV may say it as text."""
    value = row.get(name)
    if value in (None, ""):
        return None
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 10:
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= LARGEST_TOKEN:
        raise bad(f"{name!r} is {shown(row[name])}", "write a whole number, or drop it")
    return value


def score_of(row: Row) -> float | None:
    """A finite number; a cell of CSV may say it as text."""
    value = row.get("score")
    if value in (None, ""):
        return None
    try:
        number = float(value) if isinstance(value, str | int | float) else math.nan
    except (ValueError, OverflowError):
        number = math.nan
    if isinstance(value, bool) or not math.isfinite(number):
        raise bad(f"'score' is {shown(value)}", "write a finite number, or drop it")
    return number


def token_ids_of(row: Row) -> tuple[int, ...]:
    """Token ids, none below 0; whether the model has them is for the model to say."""
    value = row.get("token_ids")
    if value in (None, ""):
        return ()
    if isinstance(value, str | bytes) or not isinstance(value, Sequence):
        raise bad(f"'token_ids' is {shown(value)}", "write a list of token ids, or drop it")
    wrong = next((token for token in value if not _is_count(token)), None)
    if wrong is not None or None in value:
        raise bad(f"'token_ids' holds {shown(wrong)}", "write whole numbers, not below 0")
    return tuple(cast("Sequence[int]", value))


def spans_of(row: Row, total: int) -> Spans | None:
    """The ends of the four parts of ``total`` token ids."""
    value = row.get("spans")
    if value in (None, ""):
        return None
    ends = [value.get(name) for name in SPANS] if isinstance(value, Mapping) else []
    if not ends or not all(map(_is_count, ends)):
        raise bad(
            f"'spans' is {shown(value)}", f"write whole numbers for {', '.join(SPANS)}, or null"
        )
    spans = Spans(*cast("list[int]", ends))
    if not (spans.in_order and spans.total == total):
        raise bad(f"{spans} do not partition its {total} tokens", "generate the traces again")
    return spans


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= LARGEST_TOKEN
