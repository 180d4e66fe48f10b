"""Token ids read as text in which a position is always a token, and markers stay exact."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from itertools import accumulate

from transformers import PreTrainedTokenizerBase

from refusal_cliff.thinking.formats import ThinkingFormat
from refusal_cliff.thinking.markers import added_tokens

HEADER_END = "<|message|>"
_FIRST_CODE = 0xF0000
_UNFINISHED = "\ufffd"
_LONGEST_CHARACTER = 4


class MarkerCodes:
    """Each added token inside a format's markers as one private character.

    Text can then be searched for a marker and only finds the tokens themselves: the same
    characters spelled out in ordinary tokens do not match, while markers (or parts of them) that
    are not tokens of their own are still found as text.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, fmt: ThinkingFormat) -> None:
        self.tokenizer = tokenizer
        wanted = (fmt.opener, fmt.closer, fmt.answer, fmt.ender, fmt.trailer)
        added = added_tokens(tokenizer)
        inside = [
            text
            for text in added
            if len(text) > 2 and text.strip() == text and any(text in marker for marker in wanted)
        ]
        inside.sort(key=lambda text: (-len(text), text))
        self._by_text = {text: chr(_FIRST_CODE + i) for i, text in enumerate(inside)}
        self.by_id = {added[text]: code for text, code in self._by_text.items()}
        self.all = "".join(self._by_text.values())
        self.joins_bytes = any(
            not c.isascii() for c in self._strip("".join(map(self.code, wanted)))
        )

    def code(self, marker: str) -> str:
        """The marker as it stands in a :class:`Reading`."""
        for text, code in self._by_text.items():
            marker = marker.replace(text, code)
        return marker

    def pattern(self, marker: str) -> re.Pattern[str]:
        """Matches the marker; a channel's header may say more before it ends.

        gpt-oss writes ``<|channel|>final <|constrain|>json<|message|>`` for structured output.
        """
        if not marker.endswith(HEADER_END):
            return re.compile(re.escape(self.code(marker)))
        head = re.escape(self.code(marker.removesuffix(HEADER_END)))
        return re.compile(rf"{head}\b[^\n{self.all}]{{0,64}}?{re.escape(self.code(HEADER_END))}")

    def _strip(self, text: str) -> str:
        return text.translate(dict.fromkeys(map(ord, self.all)))


class Reading:
    """Tokens with the text of each, and the tokens that hold a marker."""

    def __init__(self, codes: MarkerCodes, token_ids: Sequence[int]) -> None:
        self._codes = codes
        self.pieces = _pieces(codes, token_ids)
        groups = _joined(codes, token_ids, self.pieces) if codes.joins_bytes else None
        texts = self.pieces if groups is None else [text for _, text in groups]
        firsts = range(len(texts)) if groups is None else [first for first, _ in groups]
        self._first = [*firsts, len(token_ids)]
        self.text = "".join(texts)
        self._starts = list(accumulate(map(len, texts), initial=0))[:-1]

    def __len__(self) -> int:
        return len(self.pieces)

    def find(self, marker: str) -> list[tuple[int, int]]:
        """Half-open token ranges of the marker, in order."""
        if not marker:
            return []
        matches = self._codes.pattern(marker).finditer(self.text)
        return [(self._token(m.start()), self._token(m.end() - 1, 1)) for m in matches]

    def ends_with(self, marker: str) -> bool:
        """Whether the marker is the last thing written, blanks aside."""
        return bool(marker) and self.text.rstrip().endswith(self._codes.code(marker))

    def is_start_of(self, marker: str) -> bool:
        """Whether all that is written, blanks aside, could become the marker."""
        return self._codes.code(marker).strip().startswith(self.text.strip())

    def is_blank(self, index: int) -> bool:
        """Whether a token is whitespace and nothing else."""
        return self.pieces[index].isspace()

    def after_blanks(self, index: int, most: int | None = None) -> int:
        """The first token from ``index`` on that is not blank.

        Args:
            index: A token.
            most: Characters of blanks after which it is the next token in any case.
        """
        read = 0
        while index < len(self) and self.is_blank(index) and (most is None or read < most):
            read += len(self.pieces[index])
            index += 1
        return index

    def before_blanks(self, index: int, least: int = 0) -> int:
        """The start of the blank tokens that end at ``index``, but not before ``least``."""
        while index > least and self.is_blank(index - 1):
            index -= 1
        return index

    def after(self, marker: str, index: int, most: int | None = None) -> int:
        """The end of the marker if it stands at ``index``, blanks around it included.

        Args:
            marker: Empty for the blanks alone.
            index: A token.
            most: Where there is no marker, characters of blanks that are taken.
        """
        if not marker:
            return self.after_blanks(index, most)
        start = self.after_blanks(index)
        found = next((end for begin, end in self.find(marker) if begin == start), None)
        return start if found is None else self.after_blanks(found)

    def _token(self, character: int, ahead: int = 0) -> int:
        return self._first[bisect_right(self._starts, character) - 1 + ahead]


def _pieces(codes: MarkerCodes, token_ids: Sequence[int]) -> list[str]:
    foreign = dict.fromkeys(map(ord, codes.all), _UNFINISHED)
    known: dict[int, str] = dict(codes.by_id)
    for token in set(token_ids) - known.keys():
        known[token] = _decoded(codes.tokenizer, [token], foreign)
    return [known[token] for token in token_ids]


def _joined(
    codes: MarkerCodes, token_ids: Sequence[int], pieces: Sequence[str]
) -> list[tuple[int, str]]:
    """First token and text of runs: tokens that hold parts of one character are read together."""
    foreign = dict.fromkeys(map(ord, codes.all), _UNFINISHED)
    groups: list[tuple[int, str]] = []
    open_since: int | None = None
    for index, piece in enumerate(pieces):
        if open_since is None and _UNFINISHED not in piece:
            groups.append((index, piece))
            continue
        since = index if open_since is None else open_since
        text = piece
        if since < index:
            text = _decoded(codes.tokenizer, token_ids[since : index + 1], foreign)
        if _UNFINISHED not in text:
            groups.append((since, text))
            open_since = None
        elif index - since + 1 >= _LONGEST_CHARACTER:
            groups += [(i, pieces[i]) for i in range(since, index + 1)]
            open_since = None
        else:
            open_since = since
    if open_since is not None:
        groups += [(i, pieces[i]) for i in range(open_since, len(pieces))]
    return groups


def _decoded(
    tokenizer: PreTrainedTokenizerBase, token_ids: Sequence[int], foreign: Mapping[int, str]
) -> str:
    text = str(tokenizer.decode(list(token_ids), clean_up_tokenization_spaces=False))
    return text if text.isascii() else text.translate(foreign)
