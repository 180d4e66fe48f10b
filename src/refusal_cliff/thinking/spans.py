"""The four spans of a trace, found in token ids read as text whose markers stay exact."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

from transformers import PreTrainedTokenizerBase

from refusal_cliff.errors import RefusalCliffError
from refusal_cliff.thinking.formats import HEADER_END, ThinkingFormat, added_tokens
from refusal_cliff.thinking.rendering import prompt_text, refuse_surrogates

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
        self._foreign = dict.fromkeys(map(ord, self.all), _UNFINISHED)
        spelled = (c for marker in wanted for c in self.code(marker) if c not in self.all)
        self.joins_bytes = not all(map(str.isascii, spelled))

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

    def decoded(self, token_ids: Sequence[int]) -> str:
        """Ordinary text of tokens: whatever looks like one of the private characters is not."""
        text = str(self.tokenizer.decode(list(token_ids), clean_up_tokenization_spaces=False))
        return text if text.isascii() else text.translate(self._foreign)


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
    known = dict(codes.by_id)
    for token in set(token_ids) - known.keys():
        known[token] = codes.decoded([token])
    return [known[token] for token in token_ids]


def _joined(
    codes: MarkerCodes, token_ids: Sequence[int], pieces: Sequence[str]
) -> list[tuple[int, str]]:
    """First token and text of runs: tokens that hold parts of one character are read together."""
    groups: list[tuple[int, str]] = []
    open_since: int | None = None
    for index, piece in enumerate(pieces):
        if open_since is None and _UNFINISHED not in piece:
            groups.append((index, piece))
            continue
        since = index if open_since is None else open_since
        text = codes.decoded(token_ids[since : index + 1]) if since < index else piece
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


_ROOM_FOR_MARKERS = 64


def late_start(n: int) -> int:
    """How many of n thinking tokens come before the second half, over which plateaus are read."""
    return n // 2


@dataclass(frozen=True, slots=True)
class Spans:
    """Half-open ends of the four parts of a trace, in tokens.

    ``[0, prompt)`` is the prompt with the marker that opens the thinking (whoever wrote it),
    ``[prompt, thinking)`` the thinking, ``[thinking, closing)`` the closing tokens and
    ``[closing, total)`` the response with its end-of-sequence token.

    Always ``0 <= prompt <= thinking < closing <= total``. Without thinking, ``prompt`` and
    ``thinking`` are the first closing token, which may be one that the chat template wrote.
    """

    prompt: int
    thinking: int
    closing: int
    total: int

    @property
    def in_order(self) -> bool:
        """Whether the ends are those of four parts one after the other, the closing not empty."""
        return 0 <= self.prompt <= self.thinking < self.closing <= self.total

    @property
    def late(self) -> int:
        """Index of the first token of the thinking over which plateaus are read."""
        return self.prompt + late_start(self.thinking - self.prompt)

    @property
    def last_closing(self) -> int:
        """Index of the token from which the first response token is predicted."""
        return self.closing - 1


def split_spans(
    token_ids: Sequence[int],
    prompt_length: int,
    tokenizer: PreTrainedTokenizerBase,
    fmt: ThinkingFormat,
) -> Spans | None:
    """Split a trace at the last closing marker of its generated part.

    - Whitespace tokens around the closing marker belong to the closing span; after it, as many as
      the chat template writes there, so that its last token is always the same place. Further
      blanks begin the response. A token that holds part of a marker belongs to the marker.
    - Text before an opener, or a closer without an opener, counts as thinking.
    - In formats of several channels (gpt-oss) the closing span runs from the marker that ends
      the last analysis to the marker of the last answer; a preamble to a tool call between them
      is in it. An answer marker alone is an answer with empty thinking.
    - A model that opens its thinking itself and writes neither opener nor closer has answered
      without thinking; so has one whose prompt already closes an empty thinking. A model without
      thinking always does. The closing span is then the end of the prompt: the closer in it, or
      else what the template writes after the user's text (``fmt.tail``; one token at least).
    - A thought that is open at the end is never read as an answer: no closer after a prompt that
      opens the thinking, an opener (or the beginning of one) without a closer, an opener after
      the last closer, no answer marker in a format of channels, nothing written at all.

    Args:
        token_ids: The whole trace, prompt first; the ids as generated, not re-tokenised.
        prompt_length: Number of prompt tokens; markers in the user's text are ignored.
        tokenizer: The tokenizer the ids belong to.
        fmt: The model's thinking format.

    Returns:
        The spans, or ``None`` if the thinking never closes. Empty thinking has
        ``thinking == prompt``.
    """
    codes = MarkerCodes(tokenizer, fmt)
    written = Reading(codes, token_ids[prompt_length:])
    openers, closers = written.find(fmt.opener), written.find(fmt.answer or fmt.closer)
    if closers:
        ends = _written_spans(written, fmt, openers, closers[-1])
        return None if ends is None else Spans(*(prompt_length + end for end in ends))
    window = max(0, prompt_length - len(fmt.tail) - _ROOM_FOR_MARKERS)
    prompt = Reading(codes, token_ids[window:prompt_length])
    closed = fmt.tail != "" and prompt.ends_with(fmt.answer or fmt.closer)
    if fmt.thinks and (openers or not (closed or _answers_at_once(prompt, written, fmt))):
        return None
    if prompt_length == 0:
        return None
    if closed:
        start, closing = _closed_in_prompt(prompt, fmt), written.after(fmt.trailer, 0)
    else:
        start = _tail_start(tokenizer, token_ids[window:prompt_length], fmt.tail)
        closing = written.after(fmt.trailer, 0) if written.find(fmt.trailer) else 0
    return Spans(window + start, window + start, prompt_length + closing, len(token_ids))


def tokenise_trace(
    tokenizer: PreTrainedTokenizerBase,
    fmt: ThinkingFormat,
    prompt: str,
    thinking: str | None,
    response: str,
) -> tuple[list[int], Spans | None]:
    """Token ids and spans of a trace that exists as text only.

    The rendered prompt and what the model would have written are tokenised once, as a whole; a
    token over the border belongs to the prompt. The spans are those of :func:`split_spans`, so
    that closing markers inside the texts count as if the model had written them: the split is at
    the last one.

    Args:
        tokenizer: A fast tokenizer, one that gives offsets.
        fmt: The model's thinking format.
        prompt: The user's message.
        thinking: The thinking without markers; empty for an answer without thinking; ``None`` where
            ``response`` is all that the model wrote, markers and thinking included.
        response: The answer; no end-of-sequence token is added.

    Raises:
        RefusalCliffError: A text holds half a surrogate pair, the format has no place for the
            thinking, or the tokenizer gives no offsets.
    """
    refuse_surrogates(thinking or "", "The thinking")
    refuse_surrogates(response, "The response")
    if not tokenizer.is_fast:
        raise RefusalCliffError(
            f"The tokenizer of {tokenizer.name_or_path or 'this model'} gives no offsets, so a "
            "trace of text cannot be split into spans. Use the fast version of the tokenizer."
        )
    head = prompt_text(tokenizer, prompt)
    written = response if thinking is None else fmt.completion(thinking, response)
    encoded = tokenizer(head + written, add_special_tokens=False, return_offsets_mapping=True)
    token_ids = [int(token) for token in encoded["input_ids"]]
    prompt_length = sum(1 for begin, _ in encoded["offset_mapping"] if begin < len(head))
    return token_ids, split_spans(token_ids, prompt_length, tokenizer, fmt)


def thinking_text(
    tokenizer: PreTrainedTokenizerBase, token_ids: Sequence[int], spans: Spans
) -> str:
    """The thinking as text, without the markers around it."""
    return _decode(tokenizer, token_ids[spans.prompt : spans.thinking])


def response_text(
    tokenizer: PreTrainedTokenizerBase, token_ids: Sequence[int], spans: Spans
) -> str:
    """The response as text, without the end-of-sequence token."""
    return _decode(tokenizer, token_ids[spans.closing : spans.total])


def _decode(tokenizer: PreTrainedTokenizerBase, token_ids: Sequence[int]) -> str:
    return str(tokenizer.decode(list(token_ids), skip_special_tokens=True))


def _written_spans(
    written: Reading,
    fmt: ThinkingFormat,
    openers: Sequence[tuple[int, int]],
    closer: tuple[int, int],
) -> tuple[int, int, int, int] | None:
    """The ends of the spans, counted from the first generated token."""
    begin, end = closer
    if openers and openers[-1][0] >= end:
        return None
    start = min(_after_opener(written, openers), begin)
    thinking = _end_of_thought(written, fmt, openers, begin) if fmt.answer else begin
    start = min(start, thinking)
    closing = written.after(fmt.trailer, end, fmt.gap)
    return start, written.before_blanks(thinking, start), closing, len(written)


def _after_opener(written: Reading, openers: Sequence[tuple[int, int]]) -> int:
    """The first token of the thinking: after an opener that the output begins with, else 0."""
    if not openers or written.after_blanks(0) < openers[0][0]:
        return 0
    return written.after_blanks(openers[0][1])


def _end_of_thought(
    written: Reading, fmt: ThinkingFormat, openers: Sequence[tuple[int, int]], answer: int
) -> int:
    """Where the last thought before the answer ends in a format of channels; 0 without one."""
    before = [end for _, end in openers if end <= answer]
    if not before:
        return 0
    enders = (begin for begin, _ in written.find(fmt.ender) if before[-1] <= begin <= answer)
    return next(enders, answer)


def _answers_at_once(prompt: Reading, written: Reading, fmt: ThinkingFormat) -> bool:
    """Whether an output without any marker is an answer, not a thought."""
    opened = fmt.opened_by_prompt or (fmt.tail != "" and prompt.ends_with(fmt.opener))
    return not (opened or fmt.answer or written.is_start_of(fmt.opener))


def _closed_in_prompt(prompt: Reading, fmt: ThinkingFormat) -> int:
    """The first closing token of a prompt that ends with a closer."""
    closer = prompt.find(fmt.answer or fmt.closer)[-1][0]
    start = prompt.before_blanks(closer)
    opened = any(end >= start for _, end in prompt.find(fmt.opener) if end <= closer)
    return closer if opened else start


def _tail_start(tokenizer: PreTrainedTokenizerBase, prompt: Sequence[int], tail: str) -> int:
    """The first of the last prompt tokens that hold nothing but the template's tail."""
    start = len(prompt) - 1
    for index in range(len(prompt) - 1, -1, -1):
        text = str(tokenizer.decode(list(prompt[index:]), clean_up_tokenization_spaces=False))
        if tail.endswith(text):
            start = index
        elif len(text) > len(tail):
            break
    return start
