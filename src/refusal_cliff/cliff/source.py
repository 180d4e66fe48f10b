"""Traces in the tokens of a model, out of rows of any shape.

Of an answer that a server tells as text alone, the tokens are not certain. Servers that tell
thinking and answer apart often strip the blanks around both, and the text alone does not say which;
a word without its blank is other tokens, too. The server's count of tokens may say that something
is missing. The model, which is here, says what: an answer decoded greedily is one that the model
itself would write again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from refusal_cliff.data.fields import bad
from refusal_cliff.data.reading import DEFAULT, Reading
from refusal_cliff.data.said import REFUSAL_FIELD, told_of
from refusal_cliff.data.shapes import trace_of_row
from refusal_cliff.data.types import Row, Told, Trace, without_verdict
from refusal_cliff.judges import RulesJudge, judge_traces
from refusal_cliff.model.blocks import decoder_of
from refusal_cliff.model.final_norm import logits_in_pieces
from refusal_cliff.model.subject import Subject
from refusal_cliff.thinking import (
    Spans,
    ThinkingFormat,
    render_prompt,
    response_text,
    split_spans,
    thinking_text,
    tokenise_trace,
)
from refusal_cliff.thinking.written import BLANKS, WITHOUT_WIDTH, read_message

_ENDED = ("stop", "eos_token")
"""Words of servers for: the model wrote its end-of-sequence token."""
_NEAR = 0.1
"""Logits closer than this to the highest may have been the highest where the server computed."""
_MOST = 256
"""Tokens put right at most."""
_AHEAD = 512
"""Tokens looked at before all others are: answers that were sampled seldom get further."""


def read_trace(
    source: str | Path, number: int, row: Row, subject: Subject, reading: Reading = DEFAULT
) -> Trace:
    """One trace out of a row, see `told_trace` and `in_tokens`.

    Raises:
        RefusalCliffError: The row is not usable; the message says why.
    """
    return in_tokens(told_trace(source, number, row, subject, reading), subject)


def told_trace(
    source: str | Path, number: int, row: Row, subject: Subject, reading: Reading = DEFAULT
) -> Trace:
    """What a row says that a model wrote, its thinking between that model's markers or others.

    Args:
        source: File or data set; names rows without an id.
        number: Number of the row.
        row: Its columns.
        subject: The model that wrote it.
        reading: How rows are read.

    Raises:
        BadRow: The row is not usable.
    """
    fmt = subject.format
    thinks = fmt.thinks and fmt.opened_by_prompt
    reading = reading.of_model(fmt)
    return trace_of_row(source, number, row, reading, asked_again=True, thinks=thinks)


def answered_trace(told: Trace, subject: Subject) -> Trace:
    """An unjudged trace in the tokens that the model wrote.

    Args:
        told: What was read.
        subject: The model that wrote it.

    Raises:
        RefusalCliffError: As for `in_tokens`; or it is longer than the model's context, or the text
            does not give back the tokens that its server counted.
    """
    trace = in_tokens(told, subject)
    if subject.context is not None and len(trace.token_ids) > subject.context:
        raise bad("it is longer than the model's context", "drop it")
    if trace.spans is not None:
        trace = as_written(subject, trace, told)
    if trace.spans is not None and not agrees(trace, told_of(told)):
        raise bad(
            "its text does not give back the tokens that the server counted",
            "let the server tell token ids, or let the model here answer the prompt",
        )
    return without_verdict(trace)


def in_tokens(told: Trace, subject: Subject) -> Trace:
    """A trace in tokens: those that it has, else its text tokenised once.

    One that no judge has seen is judged by the phrase rules. Of a text, ``written`` is all that the
    model wrote, ``finish`` says whether the end-of-sequence token followed, and ``token_ids`` with
    ``prompt_tokens`` are the tokens themselves, where the server told them.

    Args:
        told: What was read.
        subject: The model that wrote it.

    Raises:
        RefusalCliffError: The tokens are not the model's, or the text cannot be one of its traces.
    """
    _check_vocabulary(told, subject)
    trace = told if told.told is None else _tokenised(told, subject)
    if trace.verdict != "unscored" or trace.judge:  # no other judge steps in for one
        return trace
    if told_of(told).status == REFUSAL_FIELD:
        return replace(trace, verdict="refused")
    return judge_traces([trace], RulesJudge())[0]


def _tokenised(told: Trace, subject: Subject) -> Trace:
    ids, spans = _ids_and_spans(told, subject)
    trace = replace(told, token_ids=tuple(ids), spans=None, told=None)
    if spans is None or not told.closed:
        return trace
    thinking = thinking_text(subject.tokenizer, ids, spans)
    response = response_text(subject.tokenizer, subject.ending.without(ids), spans)
    return replace(trace, spans=spans, thinking=thinking, response=_answer(told, response, subject))


def _answer(told: Trace, in_tokens: str, subject: Subject) -> str:
    """The answer that was told, which is what is judged; in tokens it may have further blanks.

    The tokens may hold more, such as a wrapper; and the text, where whoever read it did not know
    the model's own markers.
    """
    fmt, answer = subject.format, told.response
    if fmt.thinks and (fmt.answer or fmt.closer) in answer:
        answer = read_message(answer, told.thinking, markers=(fmt,)).response or answer
    return in_tokens if in_tokens.strip() == answer.strip() else answer


def _written(trace: Trace, fmt: ThinkingFormat) -> tuple[str | None, str]:
    """Thinking and response, or ``None`` and all that the model wrote.

    What it wrote in one piece stays as it is, blanks included; thinking that is marked in another
    way than the model's own, or stands apart, is put between the model's own markers.
    """
    told = told_of(trace)
    whole = told.written
    closer = fmt.answer or fmt.closer
    marked = not trace.thinking or not told.closed or (closer != "" and closer in (whole or ""))
    if whole is not None and marked:
        return None, _without_opener(_line_ends(whole, fmt), fmt)
    if not told.closed:  # a thought that never ended, in a field of its own
        return None, fmt.opening + trace.thinking
    again = trace.thinking != "" and closer != "" and told.beside.startswith(closer)
    return trace.thinking, _line_ends(told.beside, fmt) if again else trace.response


def _line_ends(whole: str, fmt: ThinkingFormat) -> str:
    """The text with the model's line ends, where its file or server has put others in their place.

    Templates end the lines around a marker with a line feed: a file that has a carriage return
    there has them everywhere. No model begins with a byte order mark.
    """
    whole = whole.lstrip(WITHOUT_WIDTH)
    marks = [mark for mark in (fmt.opener, fmt.closer) if mark]
    foreign = any(f"{mark}\r\n" in whole or f"\r\n{mark}" in whole for mark in marks)
    return whole.replace("\r\n", "\n") if foreign else whole


def _without_opener(whole: str, fmt: ThinkingFormat) -> str:
    """The text without an opener that the prompt has written already: servers may put it back."""
    text = whole.lstrip(BLANKS)
    if not (fmt.opened_by_prompt and text.startswith(fmt.opener)):
        return whole
    return text.removeprefix(fmt.opener).removeprefix(fmt.tail.rpartition(fmt.opener)[2])


def _ids_and_spans(trace: Trace, subject: Subject) -> tuple[list[int], Spans | None]:
    """The tokens that a server told, or else those of the text with the token that ended it."""
    tokenizer, fmt = subject.tokenizer, subject.format
    told = told_of(trace)
    if trace.token_ids and told.prompt_tokens is not None:
        ids = list(trace.token_ids)
        return ids, split_spans(ids, told.prompt_tokens, tokenizer, fmt)
    ids, spans = tokenise_trace(tokenizer, fmt, trace.prompt.text, *_written(trace, fmt))
    if told.finish in _ENDED and not subject.ending.ends(ids):
        ids = [*ids, *subject.ending.written[:1]]  # unless the server left it in the text
        spans = None if spans is None else replace(spans, total=len(ids))
    return ids, spans


def _check_vocabulary(trace: Trace, subject: Subject) -> None:
    size = subject.vocabulary
    if trace.token_ids and max(trace.token_ids) >= size:
        raise bad(
            f"token {max(trace.token_ids)} is not among the {size} of {subject.name}",
            "score the traces with the model that wrote them, or drop the column token_ids",
        )


def agrees(trace: Trace, told: Told) -> bool:
    """Whether a text gave back as many tokens as its server counted, or the server did not count.

    One more is agreement too: not every server counts the end-of-sequence token.
    """
    return told.tokens is None or 0 <= len(trace.token_ids) - told.tokens <= 1


def as_written(subject: Subject, trace: Trace, told: Trace) -> Trace:
    """The trace in the tokens that the model wrote, as far as they can be known.

    The model is asked only about texts whose server counted the tokens and did not tell them; of
    any other there is nothing to hold an answer against. Where `put_back` finds no tokens the trace
    stays as it is, for what was sampled need not be what the model would write; `agrees` says
    whether to believe it.

    Args:
        subject: The model that wrote it.
        trace: As it was tokenised.
        told: As it was read.
    """
    server = told_of(told)
    if told.token_ids or server.tokens is None:
        return trace
    return put_back(subject, trace, server) or trace


def put_back(subject: Subject, trace: Trace, told: Told) -> Trace | None:
    """The trace with the blanks that its server stripped; ``None`` if they cannot be known.

    From the first written token on, wherever the model would greedily have written another token
    that differs from the text in blanks alone, that token takes the place of what it says, and the
    rest of the text is tokenised again. The result counts only if every token of it is then what
    the model writes, to within rounding, and if prompt and whole have exactly the tokens that the
    server counted: it is what the model writes to this prompt, and the text told, blanks aside.
    There is none for an answer that was sampled, or written by another model.

    Args:
        subject: The model that wrote it.
        trace: Tokenised from text; given back itself where nothing was missing.
        told: What the server told, its count of tokens included.
    """
    prompt = tuple(render_prompt(subject.tokenizer, trace.prompt.text))
    start = len(prompt)
    if told.prompt_tokens not in (None, start) or trace.token_ids[:start] != prompt:
        return None
    total = len(trace.token_ids) if told.tokens is None else told.tokens
    ids = _greedy(subject, trace.token_ids, start, total, near=0.0)  # ties as they fall here
    if ids is None:
        ids = _greedy(subject, trace.token_ids, start, total, near=_NEAR)  # ties as the text says
    if ids is None:
        return None
    if tuple(ids) == trace.token_ids:
        return trace
    spans = split_spans(ids, start, subject.tokenizer, subject.format)
    return replace(trace, token_ids=tuple(ids), spans=None if trace.spans is None else spans)


def blanks_put_back(subject: Subject, told: Trace, trace: Trace) -> int:
    """How many blank characters more a trace has than the text told; less than 0 if fewer."""
    before, after = (_text(subject, ids) for ids in (told.token_ids, trace.token_ids))
    return sum(map(str.isspace, after)) - sum(map(str.isspace, before))


def _greedy(
    subject: Subject, token_ids: Sequence[int], start: int, total: int, near: float
) -> list[int] | None:
    """The same text, blanks aside, in ``total`` tokens: from ``start`` on the model's own.

    A token whose logit is within ``near`` of the highest is the model's own, too.
    """
    ids, place, stop, edits = list(token_ids), start, start + _AHEAD, 0
    while place < min(len(ids), total):
        wrong = _first_other(subject, ids[: min(stop, total)], place, near)
        if wrong is None:
            place, stop = stop, total
            continue
        place, token = wrong
        rest = _after(_text(subject, ids[place:]), _text(subject, [token]))
        if rest is None or edits == _MOST:
            return None
        ids[place:] = [token, *subject.tokenizer(rest, add_special_tokens=False)["input_ids"]]
        place, stop, edits = place + 1, place + 1 + _AHEAD, edits + 1
    return ids if len(ids) == total else None


def _after(text: str, token: str) -> str | None:
    """What is left of a text after a token that it begins with, blanks aside; else ``None``."""
    for character in token:
        if character.isspace():
            text = text[1:] if text[:1].isspace() else text
            continue
        text = text.lstrip()
        if not text.startswith(character):
            return None
        text = text[1:]
    return text


@torch.inference_mode()
def _first_other(
    subject: Subject, ids: Sequence[int], start: int, near: float
) -> tuple[int, int] | None:
    """The first place from ``start`` on where the model would write another token, and which."""
    inputs = torch.tensor([ids], device=subject.device)
    states = decoder_of(subject.model)(input_ids=inputs, use_cache=False)[0]
    for piece, logits in logits_in_pieces(subject, states[0, start - 1 : -1]):
        highest, best = logits.max(-1)
        written = inputs[0, start:][piece, None].to(logits.device)
        other = (highest - logits.gather(-1, written)[:, 0] > near).nonzero()
        if len(other):
            at = int(other[0, 0])
            return start + piece.start + at, int(best[at])
    return None


def _text(subject: Subject, ids: Sequence[int]) -> str:
    return str(subject.tokenizer.decode(list(ids), clean_up_tokenization_spaces=False))
