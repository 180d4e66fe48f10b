"""Every row of every source is yielded, as columns or as a reason, and memory stays bounded."""

from __future__ import annotations

import datetime
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from refusal_cliff.data.reading import Reading, source_rows, usable
from refusal_cliff.data.rows import (
    MAX_ROW_BYTES,
    Found,
    chunks,
    read_rows,
    rows_of_batches,
    sizes_of,
    source_digest,
)
from refusal_cliff.data.types import LeftOut
from refusal_cliff.errors import RefusalCliffError

LARGE = MAX_ROW_BYTES + 1000
HOLE = 800 << 20


def write_lines(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def reasons(found: list[Found]) -> dict[int, str]:
    return {number: row for number, row in found if isinstance(row, str)}


def test_a_line_that_is_too_long_costs_itself_alone(tmp_path: Path) -> None:
    file = write_lines(tmp_path / "rows.jsonl", [{"a": 1}, {"a": "x" * LARGE}, {"a": 3}])
    found = list(read_rows(file))
    assert [number for number, _ in found] == [1, 2, 3]
    assert set(reasons(found)) == {2}
    assert "larger than 8 MiB" in reasons(found)[2]


def test_a_record_that_escapes_quotes_with_backslashes_costs_itself_alone(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text(
        'prompt,response\n"A?","He said \\"no\\" to me.\nSecond line, sorry"\n"B?","Yes."\n'
    )
    (first, why), second = list(read_rows(path))
    assert first == 1 and "not CSV" in str(why)
    assert second == (2, {"prompt": "B?", "response": "Yes."})


@pytest.mark.parametrize("first", [r'"C:\dir\","say "hi""', r'"see C:\","x"y', r'"a\\" b,"x"'])
def test_a_bad_record_never_takes_the_rest_of_the_file(tmp_path: Path, first: str) -> None:
    path = tmp_path / "rows.csv"
    path.write_text(f'prompt,response\n{first}\nq2,r2\nq3,r3\nq4,"r4"\nq5,r5\n')
    found = list(read_rows(path))
    assert [n for n, row in found if isinstance(row, str)] == [1]
    assert [row["prompt"] for _, row in found[1:] if not isinstance(row, str)] == [
        *("q2", "q3", "q4", "q5")
    ]


@pytest.mark.parametrize("piece", ["x", "many lines\n" * 1000, 'say ""so""\n' * 1000])
def test_a_record_of_csv_that_is_too_long_costs_itself_alone(tmp_path: Path, piece: str) -> None:
    cell = piece * (LARGE // len(piece) + 1)
    file = tmp_path / "rows.csv"
    file.write_text(f'prompt,label\nfirst,benign\n"{cell}",benign\n"a\nb",harmful\n')
    found = list(read_rows(file))
    assert [number for number, _ in found] == [1, 2, 3]
    assert set(reasons(found)) == {2}
    assert found[2][1] == {"prompt": "a\nb", "label": "harmful"}


def test_long_thoughts_in_csv_are_read(tmp_path: Path) -> None:
    file = tmp_path / "rows.csv"
    file.write_text(f"prompt,thinking\r\na,{'x' * 1_000_000}\r\rb,c\n\n")
    rows = [row for _, row in read_rows(file)]
    assert rows == [{"prompt": "a", "thinking": "x" * 1_000_000}, {"prompt": "b", "thinking": "c"}]


def test_cells_without_a_value_in_python_cost_themselves_alone(tmp_path: Path) -> None:
    """Dates, times and durations out of range, dictionaries, lists in lists, texts not in UTF-8."""
    far = 2**62
    columns = {
        "when": pa.array([far, 0], pa.timestamp("us")),
        "nanoseconds": pa.array([far, 1], pa.timestamp("ns")),
        "day": pa.array([2**31 - 1, 0], pa.date32()),
        "took": pa.array([far, 0], pa.duration("s")),
        "time": pa.array([far, 0], pa.time64("us")),
        "word": pa.array(["a", "a"]).dictionary_encode(),
        "nested": pa.array([[["a"], []], None], pa.list_(pa.list_(pa.string()))),
        "map": pa.array([[("k", 1)], []], pa.map_(pa.string(), pa.int64())),
        "bytes": pa.array([b"\xff", b"a"]).cast(pa.binary()),
        "prompt": pa.array(["one", "two"]),
    }
    pq.write_table(pa.table(columns), tmp_path / "rows.parquet")
    rows = [row for _, row in read_rows(tmp_path / "rows.parquet")]
    assert [row["prompt"] for row in rows if not isinstance(row, str)] == ["one", "two"]
    first = rows[0]
    assert not isinstance(first, str)
    assert "unreadable" in repr(first["when"])
    assert (first["word"], first["nested"]) == ("a", [["a"], []])
    assert rows[1]["day"] == datetime.date(1970, 1, 1)  # type: ignore[index]
    del columns["map"]  # datasets has none
    datasets.Dataset(pa.table(columns)).save_to_disk(tmp_path / "folder")
    folder = [row for _, row in read_rows(tmp_path / "folder") if not isinstance(row, str)]
    assert [row["prompt"] for row in folder] == ["one", "two"]
    assert {name: repr(first[name]) for name in columns} == {
        n: repr(v) for n, v in folder[0].items()
    }


def test_sizes_are_those_of_what_is_unpacked() -> None:
    texts = ["", "abc", None, "de" * 50, "abc"]
    plain = pa.array(texts)
    lists = pa.array([["abc", "de"], None, [], ["x" * 90]])
    assert sizes_of(plain).tolist() == [0, 3, 0, 100, 3]
    assert sizes_of(plain.dictionary_encode()).tolist() == [0, 3, 0, 100, 3]
    assert sizes_of(plain.slice(2)).tolist() == [0, 100, 3]
    assert sizes_of(lists).tolist() == [3 + 2 + 16, 0, 0, 98]
    assert sizes_of(lists.slice(3)).tolist() == [98]
    for indices in ([0, 2], [-1], [None, 7]):
        beyond = pa.DictionaryArray.from_arrays(pa.array(indices), pa.array(["benign"]), safe=False)
        with pytest.raises(pa.ArrowInvalid, match="outside the dictionary"):
            list(rows_of_batches([pa.RecordBatch.from_arrays([beyond], ["label"])]))
    nulls = pa.DictionaryArray.from_arrays(pa.array([None, None], pa.int32()), pa.array(["benign"]))
    assert sizes_of(nulls).tolist() == [0, 0]
    assert sizes_of(pa.array([{"a": "xy", "b": ["z"]}, None])).tolist()[0] == 2 + 1 + 8
    assert sizes_of(pa.array([[("k", "v" * 9)]], pa.map_(pa.string(), pa.string())))[0] == 18
    fixed = pa.array([["a", "b"], ["cc", "d"]], pa.list_(pa.string(), 2))
    assert sizes_of(fixed.slice(1)).tolist() == [3 + 16]


def bombs(folder: Path) -> list[Path]:
    """Small files whose rows unpack to more than the limit below, each with two good rows."""
    text = "x" * (LARGE * 2)
    column = pa.DictionaryArray.from_arrays(pa.array([1, *[0] * 200, 1], pa.int32()), [text, "ok"])
    pq.write_table(pa.table({"prompt": column}), folder / "dictionary.parquet", compression="zstd")
    nested = pa.ListArray.from_arrays(pa.array([0, 1, 201, 202], pa.int32()), column)
    pq.write_table(pa.table({"prompt": nested}), folder / "nested.parquet", compression="zstd")
    with (folder / "line.jsonl").open("wb") as file:
        file.write(b'{"prompt": "ok"}\n')
        file.seek(HOLE, 1)  # which reads as zeros
        file.write(b'\n{"prompt": "ok"}\n')
    with (folder / "line.csv").open("wb") as file:
        file.write(b"prompt\nok\n")
        file.seek(HOLE, 1)
        file.write(b"\nok\n")
    return sorted(path for path in folder.iterdir() if path.is_file())


LIMITED = """
import resource, sys
from refusal_cliff.data.rows import read_rows
def used():
    return int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
most = used() + (768 << 20)
resource.setrlimit(resource.RLIMIT_AS, (most, most))
for source in sys.argv[1:]:
    rows = [row if isinstance(row, str) else "good" for _, row in read_rows(source)]
    print(rows[0], rows[-1], len(rows), sum("larger than" in row for row in rows))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="limits on memory are Linux's")
def test_what_unpacks_to_more_than_memory_is_left_out(tmp_path: Path) -> None:
    files = bombs(tmp_path)
    assert all(path.stat().st_blocks * 512 < 1 << 20 for path in files)
    command = [sys.executable, "-c", LIMITED, *map(str, files)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-2000:]
    expected = {"dictionary.parquet": "202 200", "line.csv": "3 1", "line.jsonl": "3 1"}
    expected["nested.parquet"] = "3 1"
    assert done.stdout.splitlines() == [f"good good {expected[path.name]}" for path in files]


def test_a_device_without_an_end_is_refused(tmp_path: Path) -> None:
    (tmp_path / "zero.jsonl").symlink_to("/dev/zero")
    for source in (tmp_path / "zero.jsonl", tmp_path / "gone.jsonl"):
        with pytest.raises(RefusalCliffError, match=r"not a regular file|No such file"):
            list(read_rows(source))


@pytest.mark.parametrize(
    ("name", "wrong"),
    [("rows.txt", "the ending '.txt'"), ("./rows", "the ending ''"), ("a/b/c", "the ending ''")],
)
def test_what_can_only_be_a_path_is_not_asked_of_the_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, wrong: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rows.txt").touch()
    with pytest.raises(RefusalCliffError, match=wrong):
        list(read_rows(name))


def test_a_mended_row_changes_its_own_chunk_alone(tmp_path: Path) -> None:
    rows = [{"id": i, "text": "x" * i} for i in range(10)]
    whole = [c.digest for c in chunks(read_rows(write_lines(tmp_path / "a.jsonl", rows)), 4)]
    rows[5]["text"] = "mended"
    mended = [c.digest for c in chunks(read_rows(write_lines(tmp_path / "b.jsonl", rows)), 4)]
    assert [a == b for a, b in zip(whole, mended, strict=True)] == [True, False, True]
    assert len(whole) == 3


def test_large_rows_are_held_a_few_at_a_time(tmp_path: Path) -> None:
    rows = [{"text": "x" * (MAX_ROW_BYTES - 100)}] * 20
    found = list(chunks(read_rows(write_lines(tmp_path / "rows.jsonl", rows)), 256))
    assert [len(chunk.rows) for chunk in found] == [9, 9, 2]


def test_a_folder_is_known_by_all_that_it_holds(tmp_path: Path) -> None:
    datasets.Dataset.from_list([{"a": 1}]).save_to_disk(tmp_path / "one")
    datasets.Dataset.from_list([{"a": 2}]).save_to_disk(tmp_path / "two")
    digests = {source_digest(str(tmp_path / name)) for name in ("one", "two")}
    assert len(digests) == 2
    assert source_digest("owner/name") is None


def test_the_second_row_of_an_id_is_left_out(tmp_path: Path) -> None:
    rows = [{"id": 1}, {"id": "1"}, {"id": [1]}, {"id": [1]}, {}, {}, {"key": "k"}, {"key": "k"}]
    file = write_lines(tmp_path / "rows.jsonl", rows)
    assert set(reasons(list(source_rows(file)))) == {2}
    assert set(reasons(list(source_rows(file, Reading(columns={"id": "key"}))))) == {8}
    made = dict(usable(file, source_rows(file), lambda _, row: row))
    assert isinstance(made[2], LeftOut)
    assert "already used by row 1" in made[2].why
