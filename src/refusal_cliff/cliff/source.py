"""Traces out of any file or data set, one at a time, as the model would have written them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from refusal_cliff.data.traces import (
    VERDICTS,
    Label,
    Row,
    Trace,
    Verdict,
    prompt_of_row,
    read_rows,
    row_error,
    trace_of_row,
)
from refusal_cliff.errors import RefusalCliffError
from refusal_cliff.judges import judge
from refusal_cliff.model.subject import Subject
from refusal_cliff.thinking import (
    Spans,
    response_text,
    split_spans,
    thinking_text,
    tokenise_trace,
)

THINKING_COLUMNS = ("thinking", "reasoning", "reasoning_content")
RESPONSE_COLUMNS = ("response", "answer", "completion", "output")


def source_rows(source: str, split: str = "train") -> Iterator[tuple[int, Row]]:
    """Rows with their numbers, counted from 1, never all in memory.

    Args:
        source: A JSON Lines, CSV or Parquet file; a folder written by ``save_to_disk`` of datasets;
            or the name of a data set on the Hugging Face hub.
        split: Split of a data set that has several.

    Raises:
        RefusalCliffError: There is no such file or data set, or it has no such split.
    """
    path = Path(source)
    if path.is_file() or path.suffix.lower() in (".jsonl", ".csv", ".parquet"):
        yield from read_rows(path)
        return
    try:
        yield from enumerate(_dataset(path, source, split), start=1)
    except (OSError, ValueError, KeyError, ConnectionError) as error:
        raise RefusalCliffError(
            f"Could not read the data set {source!r}, split {split!r}: {_first_line(error)} Give a "
            "JSON Lines, CSV or Parquet file, a folder written by save_to_disk, or a data set of "
            "the Hugging Face hub; choose the split with --split."
        ) from error


def _dataset(path: Path, source: str, split: str) -> Any:
    import datasets

    if not path.is_dir():
        return datasets.load_dataset(source, split=split, streaming=True)
    found = datasets.load_from_disk(str(path))
    return found[split] if isinstance(found, datasets.DatasetDict) else found


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".") + "."


def read_trace(
    source: Path, number: int, row: Row, subject: Subject, label: Label | None = None
) -> Trace:
    """One trace out of a row: its token ids where the row has them, else its text tokenised once.

    A row holds a prompt (``prompt``, ``text`` or ``instruction``) and a response (``response``,
    ``answer``, ``completion`` or ``output``), with its thinking apart (``thinking``, ``reasoning``,
    ``reasoning_content``) or before it, between the model's markers. A row without a verdict is
    judged by the phrase rules. Of the answers that `generate` got from an endpoint, ``written`` is
    all that the model wrote, ``finish`` says whether the end-of-sequence token followed,
    ``closed`` and ``complete`` whether thinking and answer ended, and ``token_ids`` with
    ``prompt_tokens`` are the tokens themselves, where the server told them.

    Args:
        source: File or data set, for messages.
        number: Number of the row.
        row: Its columns.
        subject: The model that wrote it.
        label: Label of a row without one.

    Raises:
        RefusalCliffError: The row is not usable; the message says which and why.
    """
    if row.get("token_ids") is not None and "spans" in row:
        trace = trace_of_row(source, number, row)
    else:
        trace = _tokenised(source, number, row, subject, label)
    _check_vocabulary(source, number, trace, subject)
    return replace(trace, verdict=judge(trace)) if trace.verdict == "unscored" else trace


def _tokenised(source: Path, number: int, row: Row, subject: Subject, label: Label | None) -> Trace:
    prompt = prompt_of_row(source, number, row, label)
    verdict = row.get("verdict") or "unscored"
    if verdict not in VERDICTS:
        raise row_error(
            source, number, f"the verdict is {verdict!r}", f"use one of {', '.join(VERDICTS)}"
        )
    thinking = _text(source, number, row, THINKING_COLUMNS)
    response = _text(source, number, row, RESPONSE_COLUMNS)
    if response is None:
        columns = ", ".join(RESPONSE_COLUMNS)
        raise row_error(
            source,
            number,
            f"it has none of the columns {columns}",
            "put what the model wrote into 'response'",
        )
    written, told = row.get("written"), thinking or ""
    if isinstance(written, str):  # thinking and answer in one text, markers and blanks included
        told, thinking, response = "", None, written
    elif told and row.get("closed") is False:  # a thought that never ended, in a field of its own
        thinking, response = None, subject.format.opening + told
    elif told and isinstance(row.get("beside"), str):
        response = str(row["beside"]) or response
    tokenizer = subject.tokenizer
    ids, spans = _ids_and_spans(row, subject, prompt.text, thinking, response)
    if spans is not None and row.get("closed") is False:
        spans = None
    if spans is not None:
        told = thinking_text(tokenizer, ids, spans)
        response = response_text(tokenizer, subject.ending.without(ids), spans)
    complete = row.get("complete") is not False
    return Trace(prompt, tuple(ids), spans, told, response, complete, cast("Verdict", verdict))


def _ids_and_spans(
    row: Row, subject: Subject, prompt: str, thinking: str | None, response: str
) -> tuple[list[int], Spans | None]:
    """The tokens that a server told, or else those of the text with the token that ended it."""
    tokenizer, fmt = subject.tokenizer, subject.format
    told, prompt_length = row.get("token_ids"), row.get("prompt_tokens")
    if told is not None and isinstance(prompt_length, int):
        ids = list(cast("list[int]", told))
        return ids, split_spans(ids, prompt_length, tokenizer, fmt)
    ids, spans = tokenise_trace(tokenizer, fmt, prompt, thinking, response)
    if row.get("finish") == "stop" and not subject.ending.ends(ids):
        ids = [*ids, *subject.ending.written[:1]]  # unless the server left it in the text
        spans = None if spans is None else replace(spans, total=len(ids))
    return ids, spans


def _text(source: Path, number: int, row: Row, columns: tuple[str, ...]) -> str | None:
    column = next((name for name in columns if row.get(name) is not None), None)
    if column is None:
        return None
    value = row[column]
    if not isinstance(value, str):
        raise row_error(source, number, f"{column!r} is {value!r}, not a text", "write it as text")
    return value


def _check_vocabulary(source: Path, number: int, trace: Trace, subject: Subject) -> None:
    size = subject.vocabulary
    if trace.token_ids and max(trace.token_ids) >= size:
        raise row_error(
            source,
            number,
            f"token {max(trace.token_ids)} is not among the {size} of {subject.name}",
            "score the traces with the model that wrote them, or drop the column token_ids",
        )
