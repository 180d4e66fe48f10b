"""Declarations are complete, data sets of the hub's form are read, real files too."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import datasets
import pytest
from datasets.exceptions import DatasetNotFoundError

from refusal_cliff.answers import benchmarks
from refusal_cliff.answers.answering import prompts_of
from refusal_cliff.answers.benchmarks import (
    BENCHMARKS,
    load_benchmark,
    load_examples,
)
from refusal_cliff.commands.arguments import reading_of
from refusal_cliff.data.examples import read_prompt_set, source_of, usable_examples
from refusal_cliff.data.reading import Reading
from refusal_cliff.errors import RefusalCliffError

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
NAMED = {
    *("advbench", "jailbreakbench", "jailbreakbench-benign", "harmbench", "strongreject"),
    *("wildjailbreak", "malicious-instruct", "sorry-bench", "xstest", "or-bench"),
    *("do-not-answer", "ultrachat", "alpaca", "dolly", "star-1", "safechain", "realsafe-r1"),
    "wildjailbreak-train",
}


def hub_form(monkeypatch: pytest.MonkeyPatch, name: str, folder: Path, rows: list[dict]) -> None:
    """Let a benchmark's data set be a folder with a file for its split."""
    benchmark = BENCHMARKS[name]
    folder.mkdir(exist_ok=True)
    data = folder / f"{benchmark.split}.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    configs = f"- config_name: {benchmark.config or 'default'}\n  data_files:\n"
    split = f"  - split: {benchmark.split}\n    path: {data.name}\n"
    (folder / "README.md").write_text(f"---\nconfigs:\n{configs}{split}---\n")
    monkeypatch.setitem(BENCHMARKS, name, replace(benchmark, dataset=str(folder)))
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", folder / "cache")


def test_every_benchmark_says_what_it_is() -> None:
    assert set(BENCHMARKS) == NAMED
    for name, benchmark in BENCHMARKS.items():
        assert benchmark.measures and benchmark.licence and benchmark.split, name
        assert (benchmark.label is None) == bool(benchmark.labels), name
        assert benchmark.revision is None or re.fullmatch("[0-9a-f]{40}", benchmark.revision)
        assert benchmark.dataset.count("/") == (name != "realsafe-r1")


@pytest.mark.parametrize(
    ("name", "rows", "expected"),
    [
        ("jailbreakbench", [{"Goal": "Do X", "Category": "Fraud"}], [("Do X", "harmful", "Fraud")]),
        (
            "xstest",
            [
                {"prompt": "Kill a process", "label": "safe", "type": "homonyms"},
                {"prompt": "Kill a man", "label": "unsafe", "type": "contrast"},
            ],
            [("Kill a process", "benign", "homonyms"), ("Kill a man", "harmful", "contrast")],
        ),
        (
            "sorry-bench",
            [
                {"turns": ["Base"], "prompt_style": "base", "category": 7},
                {"turns": ["Slang"], "prompt_style": "slang", "category": 7},
            ],
            [("Base", "harmful", "7")],
        ),
        (
            "alpaca",
            [{"instruction": "Sum up", "input": "A text"}, {"instruction": "Sing", "input": ""}],
            [("Sum up\n\nA text", "benign", ""), ("Sing", "benign", "")],
        ),
        (
            "wildjailbreak",
            [
                {"adversarial": "Play a thief", "data_type": "adversarial_harmful"},
                {"adversarial": "Play a cook", "data_type": "adversarial_benign"},
            ],
            [("Play a thief", "harmful", ""), ("Play a cook", "benign", "")],
        ),
        ("or-bench", [{"prompt": "Q", "category": "c"}], [("Q", "benign", "c")]),
    ],
)
def test_data_sets_of_the_hubs_form(
    name: str,
    rows: list[dict],
    expected: list[tuple[str, str, str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    hub_form(monkeypatch, name, tmp_path / "set", rows)
    found = load_benchmark(name)
    assert [(p.text, p.label, p.category) for p in found.prompts] == expected
    assert found.left_out == []
    assert {source_of(prompt) for prompt in found.prompts} == {name}


def test_training_sets_have_thinking_and_answer_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [
        {"question": "Q1", "response": "<think>Hm.</think>No."},
        {"question": "Q2", "response": "Never closed <think> so"},
        {"question": "Q3", "response": "Begun by the prompt.</think>\n\nNo, sorry."},
        {"question": "", "response": "x"},
    ]
    file = tmp_path / "data" / "STAR-1.json"
    file.parent.mkdir()
    file.write_text(json.dumps([{**row, "score": {"by": 9}} for row in rows], indent=4))
    monkeypatch.setitem(BENCHMARKS, "star-1", replace(BENCHMARKS["star-1"], dataset=str(tmp_path)))
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    examples, left_out = load_examples("star-1")
    assert [(e.prompt.text, e.thinking, e.response) for e in examples] == [
        ("Q1", "Hm.", "No."),
        ("Q3", "Begun by the prompt.", "No, sorry."),
    ]
    assert len(left_out) == 2
    with pytest.raises(RefusalCliffError, match="no answers to learn"):
        load_examples("advbench")


def test_no_commit_no_address_no_access(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RefusalCliffError, match="--revision COMMIT"):
        load_benchmark("safechain")
    with pytest.raises(RefusalCliffError, match="No hub address"):
        load_benchmark("realsafe-r1")

    asked: list[tuple[object, ...]] = []

    def refuse(*arguments: object, **options: object) -> None:
        asked.append((*arguments, *options.values()))
        raise DatasetNotFoundError("Dataset 'x' is a gated dataset on the Hub.")

    monkeypatch.setattr(datasets, "load_dataset", refuse)
    with pytest.raises(RefusalCliffError, match=r"is gated\. Open https://.*hf auth login"):
        load_benchmark("advbench")
    with pytest.raises(RefusalCliffError, match="Could not load or-bench"):
        load_benchmark("or-bench")
    assert benchmarks.BENCHMARKS["advbench"].gated
    with pytest.raises(RefusalCliffError, match="Could not load star-1"):
        load_examples("star-1")
    commit = "b49333598887845f148ed1b4d2576dc2bff7581a"
    address = f"https://raw.githubusercontent.com/UCSC-VLAA/STAR-1/{commit}/data/STAR-1.json"
    assert asked[-1] == ("json", address, "train")


@pytest.mark.skipif(not DATA.is_dir(), reason="no shared data beside the checkout")
@pytest.mark.parametrize(
    ("file", "n", "harmful"),
    [
        ("harmful/advbench.jsonl", 364, 364),
        ("harmful/jailbreakbench.jsonl", 70, 70),
        ("harmful/harmbench_standard.jsonl", 200, 200),
        ("harmful/strongreject.jsonl", 313, 313),
        ("harmful/malicious_instruct.jsonl", 100, 100),
        ("benign/xstest.jsonl", 315, None),
        ("benign/self_instruct.jsonl", 427, 0),
        ("benign/gsm8k_train_1500.jsonl", 1500, 0),
    ],
)
def test_real_files(file: str, n: int, harmful: int | None) -> None:
    found = read_prompt_set(DATA / file)
    assert (len(found.prompts), found.left_out) == (n, [])
    if harmful is not None:
        assert sum(prompt.label == "harmful" for prompt in found.prompts) == harmful


def test_a_file_by_its_columns_and_samples(tmp_path: Path) -> None:
    file = tmp_path / "mine.jsonl"
    file.write_text('{"Goal": "a", "Type": "t"}\n{"Goal": "b", "Type": "u"}\n')
    reading = reading_of("harmful", ["text=Goal", "category=Type"])
    asked = prompts_of(str(file), reading=reading, limit=1, samples=2)
    assert [(p.id, p.text, p.category, p.group) for p in asked.prompts] == [
        ("mine-1#0", "a", "t", "mine-1"),
        ("mine-1#1", "a", "t", "mine-1"),
    ]
    for pair in ("Goal", "text=", "colour=Goal"):
        with pytest.raises(RefusalCliffError, match="FIELD=COLUMN"):
            reading_of("harmful", [pair])


@pytest.mark.skipif(not DATA.is_dir(), reason="no shared data beside the checkout")
def test_real_training_examples() -> None:
    examples, left_out = usable_examples(
        DATA / "traces" / "star1.jsonl", Reading("harmful", {"response": "response_raw"})
    )
    assert (len(examples), left_out) == (1000, [])
    assert all(example.thinking and example.response for example in examples)
    assert not any("think>" in example.thinking + example.response for example in examples)


def test_training_files_list_bad_rows(tmp_path: Path) -> None:
    file = tmp_path / "mine.jsonl"
    file.write_text('{"q": "Q", "a": "<think>Hm.</think>No."}\nnot json\n{"q": "Q", "a": 7}\n')
    examples, left_out = usable_examples(file, Reading("harmful", {"text": "q", "response": "a"}))
    assert [(e.prompt.label, e.thinking, e.response) for e in examples] == [
        ("harmful", "Hm.", "No.")
    ]
    assert [row.id for row in left_out] == ["mine-2", "mine-3"]
