"""Every way that data comes in, and the promise that each must keep."""

from __future__ import annotations

import copy
import gzip
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import peft
import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import strategies as st

from bench.fuzz.inputs import (
    ALMOST,
    CHANGES,
    DAMAGE,
    KEY,
    ROWS,
    VALUES,
    WHOLE,
    Drawn,
    bodies,
    changed,
    damaged,
)
from refusal_cliff.answers.correction import SHIPPED, read_error
from refusal_cliff.cliff.scores import TraceScores, write_scores
from refusal_cliff.cliff.shards import measure_shards
from refusal_cliff.cliff.source import read_trace
from refusal_cliff.data.examples import prompt_set, read_examples, write_examples, write_prompts
from refusal_cliff.data.journal import Journal
from refusal_cliff.data.reading import Reading, source_rows, usable
from refusal_cliff.data.shapes import (
    example_of_row,
    prompt_of_row,
    trace_of_row,
)
from refusal_cliff.data.traces import read_prompts, read_traces, row_of_trace, write_traces
from refusal_cliff.data.types import LeftOut, Prompt, Row, SafetyExample, Trace
from refusal_cliff.errors import RefusalCliffError
from refusal_cliff.generate.endpoint import EndpointBackend, EndpointConfig
from refusal_cliff.generate.http import JsonServer, _Unpacking
from refusal_cliff.heads.at_tokens import TokenRow, read_token_rows, write_token_rows
from refusal_cliff.heads.proof import Proof
from refusal_cliff.heads.table import Estimate, HeadRow, read_heads, write_heads
from refusal_cliff.io import write_json, write_json_lines
from refusal_cliff.judges import RulesJudge, answer_of
from refusal_cliff.model.adapters import merged
from refusal_cliff.model.subject import Head, Subject
from refusal_cliff.model.weights import check_files
from refusal_cliff.probe.files import read_probes, write_probes
from refusal_cliff.probe.fit import Probe, ProbeSet, Provenance
from refusal_cliff.probe.quality import Quality
from refusal_cliff.run.folder import RunInfo, open_run_folder
from refusal_cliff.settings import Server
from refusal_cliff.thinking import Spans

Check = Callable[[Any], object]
ROWS_FILE = Path("rows.jsonl")
READING = Reading(label="harmful")
_MOST_MESSAGE = 3000


@dataclass(frozen=True, slots=True)
class Reader:
    """A way that data comes in.

    Attributes:
        drawn: What it is given.
        check: Raises for an input with which the promise is broken.
    """

    drawn: Drawn
    check: Check


def readers(folder: Path, subject: Subject) -> dict[str, Reader]:
    """All readers by name; their files are put into a folder."""
    return {
        **_row_readers(folder, subject),
        **_file_readers(folder, subject),
        "a server's body": Reader(bodies(), partial(_check_bodies, folder)),
    }


NAMES = (
    *(
        f"{kind} in {rows} row"
        for kind in ("prompt", "answer", "example", "trace")
        for rows in ("any", "almost right")
    ),
    *("rows as jsonl", "rows as csv", "rows as parquet", "lines of JSON"),
    *("prompts", "examples", "traces.parquet", "journal", "judge error"),
    *("probes.json", "probes.safetensors", "adapter_config.json", "adapter weights", "weights"),
    *("folder of scores", "scores.parquet", "tokens.parquet", "heads.parquet", "manifest"),
    "a server's body",
)
"""Names of all readers, without making them."""


def _row_readers(folder: Path, subject: Subject) -> dict[str, Reader]:
    makers: dict[str, Callable[[int, Row], Any]] = {
        "prompt": partial(prompt_of_row, ROWS_FILE, reading=READING),
        "answer": partial(trace_of_row, ROWS_FILE, reading=READING),
        "example": partial(example_of_row, ROWS_FILE, reading=READING.of_model(subject.format)),
        "trace": partial(read_trace, ROWS_FILE, subject=subject, reading=READING),
    }
    drawn = {"any": ROWS, "almost right": ALMOST}
    return {
        f"{kind} in {how} row": Reader(rows, partial(_check_row, folder, make))
        for kind, make in makers.items()
        for how, rows in drawn.items()
    }


def _check_row(folder: Path, make: Callable[[int, Row], Any], row: Row) -> None:
    """A row is used, or listed with a short reason; what is used can be written and read again."""
    _, found = next(usable(ROWS_FILE, [(1, row)], make))
    if isinstance(found, LeftOut):
        assert 0 < len(found.reason) < 40, found
        assert 0 < len(found.detail) < 400, found
        write_json_lines(folder / "left-out.jsonl", [{"id": found.id, "why": found.why}])
    elif isinstance(found, Trace):
        RulesJudge().judge([answer_of(found)])
        path = folder / "traces.jsonl"
        write_json_lines(path, [row_of_trace(found)])
        again = usable(path, source_rows(path), partial(trace_of_row, path, reading=READING))
        assert [made for _, made in again] == [found]


def _file_readers(folder: Path, subject: Subject) -> dict[str, Reader]:
    return {
        **_files_of_rows(folder),
        **_own_files(folder),
        **_probe_readers(folder),
        **_adapter_readers(folder, subject),
        **_run_readers(folder),
    }


def _damaged_file(path: Path, read: Callable[[], object]) -> Reader:
    """A file whose bytes are damaged is read, or refused in a paragraph that names a file."""
    whole = path.read_bytes()

    def check(damage: tuple[int, bytes, int]) -> None:
        path.write_bytes(damaged(whole, damage))
        try:
            _refused_or(read)
        finally:
            path.write_bytes(whole)

    return Reader(DAMAGE, check)


def _changed_json(path: Path, read: Callable[[], object]) -> Reader:
    """The same of JSON whose values are replaced."""
    text = path.read_bytes()
    whole = json.loads(text)

    def check(changes: Any) -> None:
        path.write_text(json.dumps(changed(whole, changes)))
        try:
            _refused_or(read)
        finally:
            path.write_bytes(text)

    return Reader(CHANGES, check)


def _refused_or(read: Callable[[], object]) -> None:
    try:
        read()
    except RefusalCliffError as error:
        assert "\n" not in str(error), error
        assert 0 < len(str(error)) < _MOST_MESSAGE, error


def _files_of_rows(folder: Path) -> dict[str, Reader]:
    rows = [{**WHOLE, "id": f"r{n}", "score": n / 2, "tags": ["a"]} for n in range(6)]
    write_json_lines(folder / "rows.jsonl", rows)
    pq.write_table(pa.Table.from_pylist(rows), folder / "rows.parquet")
    lines = ["prompt,response,label", *['"a, b",no,benign', '"a ""b""\nc",no,harmful'] * 3]
    (folder / "rows.csv").write_text("\r\n".join(lines))

    def read(path: Path) -> None:
        found = list(usable(path, source_rows(path), partial(trace_of_row, path)))
        assert all(isinstance(made, Trace | LeftOut) for _, made in found)

    paths = [folder / f"rows.{ending}" for ending in ("jsonl", "csv", "parquet")]
    found = {f"rows as {p.suffix[1:]}": _damaged_file(p, partial(read, p)) for p in paths}
    lines_of_json = Reader(st.lists(ALMOST | VALUES, max_size=5), partial(_check_lines, folder))
    return {**found, "lines of JSON": lines_of_json}


def _check_lines(folder: Path, rows: Sequence[Any]) -> None:
    """As many rows in and out as lines, whatever stands in them."""
    path = folder / "lines.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = dict(usable(path, source_rows(path), partial(trace_of_row, path)))
    assert list(found) == [*range(1, len(rows) + 1)]
    asked = prompt_set(path, source_rows(path), READING)
    assert len(asked.prompts) + len(asked.left_out) == len(rows)


def _own_files(folder: Path) -> dict[str, Reader]:
    asked = [Prompt(f"p{n}", "Copy it", "harmful", tags=("a",)) for n in range(3)]
    prompts, examples, traces, error = (
        folder / name
        for name in ("prompts.jsonl", "examples.jsonl", "traces.parquet", "error.json")
    )
    write_prompts(prompts, asked)
    write_examples(examples, [SafetyExample(prompt, "Hm.", "No.") for prompt in asked])
    spans = Spans(1, 2, 3, 4)
    write_traces(traces, [Trace(p, (1, 2, 3, 4), spans, "Hm.", "No.", True) for p in asked])
    error.write_bytes(SHIPPED.read_bytes())
    journal = folder / "journal.jsonl"
    with Journal(journal) as begun:
        begun.add({"id": "a", "written": [1, 2]}, {"id": "b", "written": []})
    return {
        "prompts": _damaged_file(prompts, partial(read_prompts, prompts)),
        "examples": _damaged_file(examples, partial(read_examples, examples)),
        "traces.parquet": _damaged_file(traces, partial(read_traces, traces)),
        "journal": _damaged_file(journal, partial(_go_on, journal)),
        "judge error": _changed_json(error, partial(read_error, error)),
    }


def _go_on(path: Path) -> None:
    """A journal that can be opened takes rows and gives them back."""
    with Journal(path) as begun:
        begun.add({"id": "new", "written": [3]})
    with Journal(path) as again:
        assert again.rows["new"]["written"] == [3]


def _probe_readers(folder: Path) -> dict[str, Reader]:
    weights, description = folder / "probes.safetensors", folder / "probes.json"
    quality = Quality(0.9, (0.8, 1.0), 0.85, (0.7, 0.95), 0.05, (0.02, 0.1))
    row = np.linspace(-1, 1, 8, dtype=np.float32)
    found = tuple(Probe(n, row, 0.25, 0.01, 0.9, quality, 0.5, 0.02) for n in (3, 4))
    origin = Provenance("tiny", "f" * 64, "d" * 64)
    write_probes(
        weights, description, ProbeSet(found, 4, "refused-vs-benign", "logistic", 99, origin)
    )

    def read() -> None:
        for probe in read_probes(weights, description).probes:
            assert np.isfinite([*probe.weight, probe.bias]).all()

    return {
        "probes.json": _changed_json(description, read),
        "probes.safetensors": _damaged_file(weights, read),
    }


def _adapter_readers(folder: Path, subject: Subject) -> dict[str, Reader]:
    adapter, base = folder / "adapter", folder / "base"
    model: Any = copy.deepcopy(subject.model)
    base.mkdir(exist_ok=True)
    assert subject.source is not None
    for file in subject.source.iterdir():
        (base / file.name).write_bytes(file.read_bytes())
    config = peft.LoraConfig(r=2, target_modules=["o_proj"], layers_to_transform=[0])
    peft.get_peft_model(copy.deepcopy(model), config).save_pretrained(str(adapter))

    def merge() -> None:
        merged(copy.deepcopy(model), adapter)

    return {
        "adapter_config.json": _changed_json(adapter / "adapter_config.json", merge),
        "adapter weights": _damaged_file(adapter / "adapter_model.safetensors", merge),
        "weights": _damaged_file(base / "model.safetensors", partial(check_files, base)),
    }


def _run_readers(folder: Path) -> dict[str, Reader]:
    scores, heads, run = folder / "scores", folder / "heads.parquet", folder / "run"
    logits = np.linspace(3, -3, 8, dtype=np.float32)[None]
    found = [
        TraceScores(f"p{n}", f"p{n}", "harmful", "complied", Spans(1, 5, 7, 8), logits)
        for n in range(4)
    ]
    scores.mkdir(exist_ok=True)
    write_scores(scores / "scores-00000.parquet", found, "made")
    tokens = folder / "tokens.parquet"
    values = np.ones((3, 8), np.float32)
    told = [
        TokenRow(f"p{n}", "as it is", list("abcdefgh"), (Head(1, 0), Head(2, 1)), values)
        for n in range(4)
    ]
    write_token_rows(tokens, told)
    write_json(scores / "trace.json", {"command": "trace", "layer": 3, "layers": [3]})
    write_json(scores / "shards.json", {"scored": [4]})
    one = Estimate(0.5, 0.1, 0.9, 0.8, 7)
    proof = Proof(0.9, 0.5, 0.01, proven=True)
    names = [name for name in HeadRow.__slots__ if name not in ("layer", "index", "proof")]
    row = HeadRow(layer=1, index=0, proof=proof, **dict.fromkeys(names, one))
    write_heads(heads, [row], "f" * 64)

    def opened() -> None:
        with open_run_folder(run, RunInfo(command="demo")):
            pass

    opened()
    return {
        "folder of scores": _changed_json(scores / "trace.json", partial(measure_shards, scores)),
        "scores.parquet": _damaged_file(
            scores / "scores-00000.parquet", partial(measure_shards, scores)
        ),
        "tokens.parquet": _damaged_file(tokens, partial(read_token_rows, tokens, {"p1", "p3"})),
        "heads.parquet": _damaged_file(heads, partial(read_heads, heads)),
        "manifest": _changed_json(run / "manifest.json", opened),
    }


def _check_bodies(folder: Path, bodies: Sequence[tuple[int, str, bytes]]) -> None:
    """Every prompt has an answer or a reason, or the run stops in a paragraph, without the key."""
    sent = iter([*bodies, *bodies, *bodies, *bodies])

    async def once(*_: Any) -> tuple[int, Mapping[str, str], bytes]:
        status, packing, body = next(sent, bodies[0])
        unpacked = _Unpacking(packing)
        unpacked.add(gzip.compress(body) if packing == "gzip" else body)
        return status, {"Retry-After": "nonsense"}, unpacked.text()

    prompts = [Prompt(f"p{n}", "Copy it", "benign") for n in range(len(bodies))]
    found: list[Trace | LeftOut] = []
    with patch.object(JsonServer, "_once", once), _quick():
        config = EndpointConfig("m", Server("http://localhost:1/v1", concurrency=1, retries=0))
        try:
            EndpointBackend(config).answer(prompts, found.append)
        except RefusalCliffError as error:
            assert KEY not in str(error)
        else:
            assert len(found) == len(prompts)
    rows = [row_of_trace(one) if isinstance(one, Trace) else {"why": one.why} for one in found]
    write_json_lines(folder / "answers.jsonl", rows)
    assert KEY not in (folder / "answers.jsonl").read_text()


@contextmanager
def _quick() -> Iterator[None]:
    """The key in the environment, and no pauses."""
    with (
        patch.dict(os.environ, {"OPENAI_API_KEY": KEY}),
        patch("refusal_cliff.generate.endpoint._FIRST_PAUSE", 0.0),
    ):
        yield
