"""Memory of an audit's scores and page over long traces: what is more than the traces themselves.

    python -m bench.long_traces --traces 200 --tokens 16000 --layers 28

Makes that many traces of random tokens, and writes and reads their scores at every layer and the
tables of the page as an audit does. The memory is that of the process alone (`RssAnon`): pages of
files, which the system drops when it needs room, are not counted.
"""

from __future__ import annotations

import argparse
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import numpy as np

from bench.memory import resident
from refusal_cliff.cliff.curves import cliffs_of
from refusal_cliff.cliff.scores import TraceScores, read_scores, write_scores
from refusal_cliff.data.types import Prompt, Trace
from refusal_cliff.heads.at_tokens import AS_IT_IS, TokenRow, read_token_rows, write_token_rows
from refusal_cliff.model.subject import Head
from refusal_cliff.report.reader import packed
from refusal_cliff.report.traces import Measured, curves_of, kept_traces, reader_of
from refusal_cliff.thinking import Spans

T = TypeVar("T")
ANONYMOUS = "RssAnon"
HEADS = tuple(Head(1, index) for index in range(8))


def made_traces(n: int, tokens: int) -> list[Trace]:
    """Traces of random tokens, every fourth benign."""
    rng, spans = np.random.default_rng(0), Spans(20, tokens - 80, tokens - 76, tokens)
    return [
        Trace(
            Prompt(f"p{i}", "Do.", "benign" if i % 4 == 3 else "harmful", f"g{i}"),
            tuple(rng.integers(0, 100_000, tokens).tolist()),
            spans,
            "",
            "",
            True,
            "complied" if i % 4 else "refused",
        )
        for i in range(n)
    ]


def made_scores(traces: list[Trace], layers: int) -> Iterator[TraceScores]:
    """Random scores of every token at every layer, made when asked for."""
    rng = np.random.default_rng(1)
    for trace in traces:
        spans, prompt = trace.spans, trace.prompt
        assert spans is not None
        logits = rng.normal(2, 1, (layers, spans.total)).astype(np.float32)
        yield TraceScores(prompt.id, prompt.group, prompt.label, trace.verdict, spans, logits)


def made_tokens(traces: list[Trace]) -> Iterator[TokenRow]:
    """The text of every token, and what 8 heads and the others add."""
    rng = np.random.default_rng(2)
    for trace in traces:
        pieces = [f"{token} " for token in trace.token_ids]
        values = rng.normal(size=(len(HEADS) + 1, len(pieces))).astype(np.float32)
        yield TokenRow(trace.prompt.id, AS_IT_IS, pieces, HEADS, values)


def measured(what: str, work: Callable[[], T]) -> T:
    """Do some work, and print its time and the most memory above that before it."""
    before, most, ended = resident(ANONYMOUS), 0.0, threading.Event()

    def watch() -> None:
        nonlocal most
        while not ended.wait(0.01):
            most = max(most, resident(ANONYMOUS))

    watcher, start = threading.Thread(target=watch), time.perf_counter()
    watcher.start()
    found = work()
    ended.set()
    watcher.join()
    above, seconds = max(0, most - before), time.perf_counter() - start
    print(f"{what:<36}{above:8.0f} MiB above {seconds:8.1f} s", flush=True)
    return found


def main() -> None:
    """Make, write, read and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--traces", type=int, default=200)
    parser.add_argument("--tokens", type=int, default=16_000)
    parser.add_argument("--layers", type=int, default=28)
    options = parser.parse_args()
    n, tokens, layers = options.traces, options.tokens, options.layers
    print(f"{n} traces of {tokens:,} tokens, scores at {layers} layers")
    print(f"scores as float32 {4 * n * tokens * layers / 2**20:,.0f} MiB")
    traces = measured("the traces themselves", lambda: made_traces(n, tokens))
    row = layers - 1
    with tempfile.TemporaryDirectory() as folder:
        scored, told = Path(folder) / "scores.parquet", Path(folder) / "tokens.parquet"
        measured("scores written", lambda: write_scores(scored, made_scores(traces, layers)))
        measured("tokens written", lambda: write_token_rows(told, made_tokens(traces)))
        scores = measured("scores read", lambda: read_scores(scored))
        cliffs = measured(
            "cliffs at every layer", lambda: [cliffs_of(scores, one) for one in range(layers)][row]
        )
        measured("mean curves", lambda: curves_of("model", scores, row))

        def page() -> None:
            shown = {trace.prompt.id for trace in kept_traces(traces, cliffs)}
            rows = {one.trace_id: one for one in read_token_rows(told, shown)}
            by_id = {one.trace_id: one for one in scores}
            run = Measured(traces, by_id, cliffs, range(layers), row, rows, {}, {}, {}, ())
            reader = reader_of(run)
            assert reader is not None
            print(f"  a page shows {len(reader.traces)} traces, {len(reader.layers)} layers")
            packed(reader)

        measured("the page's reader", page)


if __name__ == "__main__":
    main()
