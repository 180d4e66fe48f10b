"""Prompts are read strictly; traces come back as they were written."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from refusal_cliff.data.traces import read_prompts, read_traces, write_traces
from refusal_cliff.data.types import Prompt, Trace
from refusal_cliff.errors import RefusalCliffError
from refusal_cliff.thinking import Spans

ROWS: list[dict[str, object]] = [
    {"id": "a", "prompt": "Pick a “lock”,\nplease", "label": "harmful", "category": "theft"},
    {"id": "b", "prompt": "Bake bread", "label": "benign", "group": "bread"},
]


def write_file(path: Path, rows: list[dict[str, object]]) -> Path:
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif path.suffix == ".csv":
        header = list(dict.fromkeys(name for row in rows for name in row))
        cells = [[str(row.get(name, "")) for name in header] for row in rows]
        lines = [",".join(f'"{cell}"' for cell in line) for line in [header, *cells]]
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.mark.parametrize("ending", ["jsonl", "csv", "parquet"])
def test_prompts_of_every_format(tmp_path: Path, ending: str) -> None:
    columns = ("id", "prompt", "label", "category", "group")
    rows = [{name: row.get(name, "") for name in columns} for row in ROWS]
    assert read_prompts(write_file(tmp_path / f"p.{ending}", rows)) == [
        Prompt("a", "Pick a “lock”,\nplease", "harmful", "a", "theft"),
        Prompt("b", "Bake bread", "benign", "bread"),
    ]


def test_column_names_default_label_and_tags(tmp_path: Path) -> None:
    rows: list[dict[str, object]] = [
        {"instruction": "One", "tags": ["framed"]},
        {"text": "Two", "label": "benign", "tags": "framed hard-benign"},
    ]
    prompts = read_prompts(write_file(tmp_path / "mine.jsonl", rows), label="harmful")
    assert [(p.id, p.label, p.tags) for p in prompts] == [
        ("mine-1", "harmful", ("framed",)),
        ("mine-2", "benign", ("framed", "hard-benign")),
    ]


@pytest.mark.parametrize(
    ("row", "wrong"),
    [
        ({"label": "benign"}, "none of the columns"),
        ({"prompt": "  ", "label": "benign"}, "not a non-empty text"),
        ({"prompt": 3, "label": "benign"}, "not a non-empty text"),
        ({"prompt": "x"}, "label is None"),
        ({"prompt": "x", "label": "bad"}, "label is 'bad'"),
        ({"prompt": "x", "label": "benign", "id": "a"}, "already used by row 1"),
        ({"prompt": "x", "label": "benign", "group": 1.5}, "'group' is 1.5"),
        ({"prompt": "x", "label": "benign", "tags": 1}, "'tags' is 1"),
    ],
)
def test_a_bad_row_is_named(tmp_path: Path, row: dict[str, object], wrong: str) -> None:
    path = write_file(tmp_path / "p.jsonl", [ROWS[0], row])
    with pytest.raises(RefusalCliffError) as caught:
        read_prompts(path)
    message = str(caught.value)
    assert f"{path}, row 2:" in message
    assert wrong in message
    assert "Remedy:" in message


@pytest.mark.parametrize(
    ("name", "content", "wrong"),
    [
        ("p.jsonl", b"{]\n", "row 1: it is not JSON"),
        ("p.jsonl", b"[1]\n", "row 1: it is not an object"),
        ("p.jsonl", b"\xff\xfe\n", "UTF-8"),
        ("p.jsonl", b"\n", "holds no prompts"),
        ("p.csv", b"prompt,label\na,benign,b\n", "row 1: it has more cells"),
        ("p.parquet", b"no", "Could not read"),
        ("p.xlsx", b"", "is not known"),
    ],
)
def test_a_bad_file_is_named(tmp_path: Path, name: str, content: bytes, wrong: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(RefusalCliffError, match=wrong) as caught:
        read_prompts(path)
    assert str(path) in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    for name in ("p.jsonl", "p.csv", "p.parquet"):
        with pytest.raises(RefusalCliffError, match="Could not read"):
            read_prompts(tmp_path / name)


def trace(identity: str, spans: Spans | None) -> Trace:
    prompt = Prompt(identity, "Hi “there”", "harmful", "g", "c", ("framed", "x y"))
    return Trace(prompt, (1, 2, 3, 4, 5), spans, "Hm…", "Sorry.", spans is not None, "refused")


def test_traces_come_back(tmp_path: Path) -> None:
    traces = [trace("a", Spans(1, 2, 4, 5)), trace("b", None)]
    path = tmp_path / "new" / "traces.parquet"
    write_traces(path, traces)
    assert read_traces(path) == traces
    assert [file.name for file in path.parent.iterdir()] == ["traces.parquet"]


def test_no_traces_come_back(tmp_path: Path) -> None:
    write_traces(tmp_path / "t.parquet", [])
    assert read_traces(tmp_path / "t.parquet") == []


def test_contradicting_traces_are_named(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    write_traces(path, [trace("a", None), trace("b", Spans(1, 2, 4, 9))])
    with pytest.raises(RefusalCliffError, match=r"t.parquet, row 2: .*do not partition its 5"):
        read_traces(path)


def test_another_table_is_not_traces(tmp_path: Path) -> None:
    path = write_file(tmp_path / "p.parquet", ROWS)
    with pytest.raises(RefusalCliffError, match="lacks the column"):
        read_traces(path)
