"""What each head adds to the refusal score at every token of a trace: ``tokens.parquet``.

A page that shows traces reads this table, and needs neither the model nor its tokenizer.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from refusal_cliff.data.types import Trace
from refusal_cliff.errors import RefusalCliffError
from refusal_cliff.heads.table import HeadRow
from refusal_cliff.model.capture import TokenContributions, capture
from refusal_cliff.model.memory import in_parts
from refusal_cliff.model.subject import Head, Subject, parse_head
from refusal_cliff.probe.fit import Probe
from refusal_cliff.progress import Progress
from refusal_cliff.tables import read_parquet_parts, write_parquet_parts

_UNFINISHED = "\ufffd"
_LONGEST_CHARACTER = 4
_PIECES_KNOWN = 1 << 16


class Pieces:
    """Token ids to the text that each adds.

    A token cannot be decoded alone: some tokenizers drop a blank in front of the first one, and a
    character may be spread over several. So each is decoded after the tokens before it, and what is
    already known is not decoded again.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        def decoded(token_ids: tuple[int, ...]) -> str:
            return str(tokenizer.decode(list(token_ids), clean_up_tokenization_spaces=False))

        self._decoded = lru_cache(_PIECES_KNOWN)(decoded)

    def of(self, token_ids: Sequence[int]) -> list[str]:
        """The text of each token.

        Args:
            token_ids: Of one trace, from its beginning on.

        Returns:
            One text a token; the last of the tokens that make up a character has it, and the others
            have nothing.
        """
        pieces: list[str] = []
        before, start = 0, 0
        for end in range(1, len(token_ids) + 1):
            old = self._decoded(tuple(token_ids[before:start]))
            new = self._decoded(tuple(token_ids[before:end]))
            last = end - start == _LONGEST_CHARACTER or end == len(token_ids)
            whole = last or not new.endswith(_UNFINISHED)
            pieces.append(new[len(old) :] if whole else "")
            if whole:
                before, start = start, end
        return pieces


SHOWN = 8
"""Heads that are told one by one; the others are summed."""
AS_IT_IS, HEADS_OUT = "as it is", "heads out"
_FLOATS_AT_ONCE = 1 << 26
_TOKENS_AT_ONCE = 1 << 16

SCHEMA = pa.schema(
    [
        ("trace_id", pa.string()),
        ("side", pa.string()),
        ("pieces", pa.list_(pa.string())),
        ("heads", pa.list_(pa.string())),
        ("values", pa.list_(pa.list_(pa.float32()))),
    ]
)


@dataclass(frozen=True, slots=True)
class TokenRow:
    """The tokens of one trace.

    Attributes:
        trace_id: Id of its prompt.
        side: Whether it was written by the model ``AS_IT_IS`` or with the ``HEADS_OUT``.
        pieces: Text of each token.
        heads: Heads told one by one; empty where none was measured.
        values: [heads + 1, tokens] direct contributions to the probe's logit; the last row is the
            sum over all other heads. Empty where ``heads`` is.
    """

    trace_id: str
    side: str
    pieces: Sequence[str]
    heads: tuple[Head, ...] = ()
    values: NDArray[np.float32] | None = None


def told_heads(
    rows: Sequence[HeadRow], found: Sequence[Head], most: int = SHOWN
) -> tuple[Head, ...]:
    """The heads to tell one by one: those taken out, then the others, the strongest first.

    Args:
        rows: Every head; how strong one is, its mean direct contribution says.
        found: The heads taken out.
        most: How many heads at most.
    """
    ordered = sorted(rows, key=lambda row: (row.head not in found, -abs(row.direct.mean)))
    return tuple(row.head for row in ordered[:most])


def head_contributions(
    subject: Subject,
    traces: Sequence[Trace],
    probe: Probe,
    heads: Sequence[Head],
    progress: Progress | None = None,
) -> Iterator[NDArray[np.float32]]:
    """Direct contribution of heads to a probe's logit at every token, in one pass over the model.

    What a head adds is ``w · W_O · head output``, see `heads.effects`; heads after the probe's
    block add nothing to it. Embeddings and MLPs add the rest of the logit.

    Args:
        subject: The model.
        traces: Closed or not.
        probe: At whose layer and along whose weight.
        heads: Those told one by one.
        progress: Called with (traces done, traces).

    Yields:
        For each trace [heads + 1, tokens], in logits; the last row sums all other heads.
    """
    layers = [head.layer - 1 for head in heads]
    places = [head.index for head in heads]
    per_token, done = subject.n_layers * subject.n_heads, 0
    for part in in_parts(traces, lambda t: per_token * len(t.token_ids), _FLOATS_AT_ONCE):
        lengths = [len(trace.token_ids) for trace in part]
        reader = TokenContributions(subject, lengths, probe.weight, probe.layer)
        names = [trace.prompt.id for trace in part]
        capture(subject, [trace.token_ids for trace in part], [reader], names=names)
        for values in reader.values:
            told = values[layers, places]
            others = values.sum(axis=(0, 1)) - told.sum(axis=0)
            yield np.concatenate([told, others[None]]).astype(np.float32)
        done += len(part)
        if progress is not None:
            progress(done, len(traces))


def write_token_rows(path: Path, rows: Iterable[TokenRow]) -> None:
    """Write one row a trace and side, atomically; a few rows are in memory at a time."""
    parts = in_parts(rows, lambda row: len(row.pieces), _TOKENS_AT_ONCE)
    write_parquet_parts(path, SCHEMA, (_table(part) for part in parts))


def _table(rows: Sequence[TokenRow]) -> pa.Table:
    table = [
        {
            "trace_id": row.trace_id,
            "side": row.side,
            "pieces": [piece.encode(errors="replace").decode() for piece in row.pieces],
            "heads": [str(head) for head in row.heads],
            "values": [] if row.values is None else list(row.values),
        }
        for row in rows
    ]
    return pa.Table.from_pylist(table, schema=SCHEMA)


def read_token_rows(path: Path, wanted: Collection[str]) -> list[TokenRow]:
    """Read what `write_token_rows` wrote, of some traces.

    Args:
        path: The file.
        wanted: Ids of the traces.

    Raises:
        RefusalCliffError: The file is missing or damaged.
    """
    return [
        _row(path, table, place)
        for table in read_parquet_parts(path, SCHEMA)
        for place, trace_id in enumerate(table.column("trace_id").to_pylist())
        if trace_id in wanted
    ]


def _row(path: Path, table: pa.Table, place: int) -> TokenRow:
    told = ("trace_id", "side", "pieces", "heads")
    trace_id, side, pieces, heads = (table.column(name)[place].as_py() for name in told)
    row = TokenRow(trace_id, side, pieces, tuple(map(parse_head, heads or ())))
    if not row.heads:
        return row
    values = table.column("values")[place].values
    flat = values.flatten() if values is not None else pa.array([], pa.float32())
    lengths = [] if values is None else values.value_lengths().to_pylist()
    if lengths != [len(pieces)] * (len(heads) + 1) or flat.null_count:
        raise RefusalCliffError(
            f"{path} is damaged: what heads add does not fit the tokens of {trace_id!r}. Make the "
            "file again."
        )
    # A copy: a view would keep the rows around it in memory.
    return replace(row, values=flat.to_numpy().copy().reshape(len(lengths), -1))
