"""Select on real files: what is chosen, what is left out, and that no kill or engine changes it."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from tiny_chat import save_tiny
from tiny_families import WIDTH, linear_probe
from typer.testing import CliRunner

from refusal_cliff.cli import app
from refusal_cliff.cliff.curves import cliff_of
from refusal_cliff.cliff.scores import score_traces
from refusal_cliff.data.examples import read_examples
from refusal_cliff.data.traces import PromptFile
from refusal_cliff.data.types import Prompt, Trace
from refusal_cliff.errors import RefusalCliffError
from refusal_cliff.judges import Answer, Judgement
from refusal_cliff.model.subject import Subject, load_subject
from refusal_cliff.probe.files import probes_of, write_probes
from refusal_cliff.probe.fit import ProbeSet, Provenance
from refusal_cliff.select import shards as candidate_shards
from refusal_cliff.select.pool import scores_path, shard_path
from refusal_cliff.select.selection_run import Source, run_selection
from refusal_cliff.select.shards import ScoringPlan, scored_candidates
from refusal_cliff.settings import Engine, GenerationConfig, Loading, Selecting
from refusal_cliff.sharded import Rank
from refusal_cliff.thinking import tokenise_trace

N, SHARD = 30, 4
ENGINE = Engine(shard_size=SHARD)
ROWS: list[dict[str, Any]] = [
    {
        "id": f"r{number}",
        "prompt": f"Please do thing number {number}",
        "response": (
            f"<think>\nThis is {'quite ' * (number % 5)}bad.\n</think>\n\nNo, not {number}."
        ),
        "category": "ab"[number % 2],
    }
    for number in range(N)
]
BAD: dict[str, dict[str, Any]] = {
    "no thinking": {"prompt": "No thoughts", "response": "No."},
    "other format": {"question_text": "x", "reply": "y"},
    "duplicate": {"prompt": "please do thing number 3!", "response": "<think>a</think>No."},
    "empty": {"prompt": "Nothing", "response": "<think>a</think>"},
    "longer than the context": {
        "prompt": "Long",
        "response": f"<think>{'word ' * 200}</think>No.",
    },
    "overlaps with the evaluation": {"prompt": "ASKED later", "response": "<think>a</think>No."},
    "thinking never closes": {"prompt": "Open", "response": "<think>on and on"},
}
BAD_AT = (2, 5, 9, 14, 19, 24, 33)


def write_lines(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, a probe fitted on it, a data set with one bad row of each kind, an evaluation."""
    folder = tmp_path_factory.mktemp("select")
    subject = load_subject(str(save_tiny(folder / "model")), device="cpu")
    rng = np.random.default_rng(0)
    probe = linear_probe(2, (rng.normal(size=WIDTH) / 4).astype(np.float32))
    origin = Provenance("model", subject.fingerprint, "0")
    (folder / "probe").mkdir()
    write_probes(
        folder / "probe" / "probes.safetensors",
        folder / "probe" / "probes.json",
        ProbeSet((probe,), 2, "refused-vs-benign", "logistic", 9, origin),
    )
    rows = list(ROWS)
    for at, bad in zip(BAD_AT, BAD.values(), strict=True):
        rows.insert(at, bad)
    write_lines(folder / "data.jsonl", rows)
    write_lines(folder / "asked.jsonl", [{"prompt": "Asked  later?", "label": "harmful"}])
    return folder


@pytest.fixture(scope="module")
def subject(root: Path) -> Subject:
    return load_subject(str(root / "model"), device="cpu")


def plan_of(root: Path, out: Path, **chosen: Any) -> ScoringPlan:
    return ScoringPlan(
        str(root / "model"),
        root / "probe",
        out,
        Selecting(**{"thinking": "data", **chosen}),
        GenerationConfig(max_new_tokens=40),
        Loading(device="cpu"),
    )


def source_of(root: Path) -> Source:
    return Source(str(root / "data.jsonl"), (PromptFile(root / "asked.jsonl"),))


@pytest.fixture(scope="module")
def whole(root: Path) -> Path:
    out = root / "whole"
    assert run_selection(plan_of(root, out, n=5), source_of(root), engine=ENGINE) is not None
    return out


def outputs(out: Path) -> dict[str, bytes]:
    """All files of a folder that tell what was scored and chosen."""
    return {
        str(path.relative_to(out)): path.read_bytes()
        for path in sorted(out.rglob("*"))
        if path.is_file()
    }


def test_every_bad_row_is_left_out_counted_and_listed(whole: Path) -> None:
    report = json.loads((whole / "selection.json").read_text())
    assert report["left_out"] == dict.fromkeys(BAD, 1)
    assert (report["rows"], report["scored"], report["chosen"]) == (N + len(BAD), N, 5)
    listed = [json.loads(line) for line in (whole / "left-out.jsonl").read_text().splitlines()]
    rows = {entry["reason"]: entry["row"] for entry in listed}
    assert rows == {reason: at + 1 for at, reason in zip(BAD_AT, BAD, strict=True)}


def test_scores_are_those_of_the_traces_and_the_largest_cliffs_are_chosen(
    root: Path, whole: Path, subject: Subject
) -> None:
    probes = probes_of(root / "probe", subject)
    expected: dict[str, float] = {}
    for row in ROWS:
        thinking = row["response"].split("\n")[1]
        answer = row["response"].split("\n\n")[1]
        ids, spans = tokenise_trace(
            subject.tokenizer, subject.format, row["prompt"], thinking, answer
        )
        trace = Trace(
            Prompt(row["id"], row["prompt"], "harmful"), tuple(ids), spans, "", "", True, "refused"
        )
        expected[row["id"]] = cliff_of(score_traces(subject, [trace], probes)[0], 0).cliff
    chosen = [json.loads(line) for line in (whole / "selected.jsonl").read_text().splitlines()]
    order = sorted(expected, key=lambda name: -expected[name])
    assert [row["id"] for row in chosen] == order[:5]
    for row in chosen:
        assert row["cliff"] == pytest.approx(expected[row["id"]], abs=1e-5)
    examples = read_examples(whole / "selected.jsonl")
    assert examples[0].thinking.startswith("This is")
    assert examples[0].response.startswith("No, not")
    assert [e.prompt.category for e in examples] == [row["category"] for row in chosen]


def test_another_choice_scores_nothing_again(root: Path, tmp_path: Path, whole: Path) -> None:
    before = {n: scores_path(whole, n).stat().st_mtime_ns for n in range(10)}

    def choose(**chosen: Any) -> int:
        done = run_selection(plan_of(root, whole, **chosen), source_of(root), engine=ENGINE)
        assert done is not None
        return done.chosen

    for strategy in ("diverse", "longest", "random"):
        assert choose(strategy=strategy, n=4) == 4
    assert choose(strategy="full") == N
    with pytest.raises(RefusalCliffError, match="--thinking own"):
        choose(strategy="judge", n=4)
    choose(n=5)
    assert before == {n: scores_path(whole, n).stat().st_mtime_ns for n in range(10)}


def test_killed_at_any_shard_the_result_is_the_same(
    root: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = candidate_shards.write_json_lines
    out, calls = tmp_path / "killed", 0

    def die(path: Path, rows: Any) -> None:
        nonlocal calls
        calls += 1
        if calls in (1, 3, 6):
            raise KeyboardInterrupt
        written(path, rows)

    monkeypatch.setattr(candidate_shards, "write_json_lines", die)
    for _ in range(3):
        with pytest.raises(KeyboardInterrupt):
            run_selection(plan_of(root, out, n=5), source_of(root), engine=ENGINE)
    assert run_selection(plan_of(root, out, n=5), source_of(root), engine=ENGINE) is not None
    assert calls == 3 + 10, "a finished shard was scored again"
    assert outputs(out) == outputs(whole)


def test_own_thinking_is_generated_where_the_data_has_none(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "own"
    asked: list[Answer] = []

    class InTurn:
        name, measures_harm = "in turn", False

        def judge(self, answers: Sequence[Answer]) -> list[Judgement]:
            asked.extend(answers)
            first = len(asked) - len(answers)
            turns = range(first, len(asked))
            return [Judgement("refused" if turn % 2 else "complied") for turn in turns]

    monkeypatch.setattr("refusal_cliff.select.shards.judge_of", lambda _: InTurn())
    done = run_selection(
        plan_of(root, out, thinking="own", strategy="full"), source_of(root), engine=ENGINE
    )
    assert done is not None
    assert done.rows == N + len(BAD)
    assert done.scored + sum(done.left_out.values()) == done.rows
    unread = {"other format", "duplicate", "empty", "overlaps with the evaluation"}
    assert unread <= set(done.left_out)
    verdicts = [candidate.verdict for candidate in scored_candidates(out, 10)]
    assert verdicts == ["complied" if n % 2 == 0 else "refused" for n in range(len(asked))]
    assert len(verdicts) == done.scored > 0


def test_other_scores_and_unchecked_contamination_are_refused(
    root: Path, whole: Path, tmp_path: Path
) -> None:
    with pytest.raises(RefusalCliffError, match="thinking, generation, judge differ"):
        run_selection(plan_of(root, whole, thinking="own"), source_of(root), engine=ENGINE)
    unchecked = replace(source_of(root), evaluation=())
    with pytest.raises(RefusalCliffError, match="--evaluation FILE"):
        run_selection(plan_of(root, tmp_path / "a"), unchecked, engine=ENGINE)
    write_lines(tmp_path / "none.jsonl", [BAD["empty"]])
    nothing = replace(source_of(root), name=str(tmp_path / "none.jsonl"))
    with pytest.raises(RefusalCliffError, match="1 empty"):
        run_selection(plan_of(root, tmp_path / "b"), nothing, engine=ENGINE)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").touch()
    with pytest.raises(RefusalCliffError, match="not empty"):
        run_selection(plan_of(root, tmp_path / "mine"), source_of(root), engine=ENGINE)


def test_once_a_row_is_mended_only_its_shard_is_scored_again(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows: list[dict[str, Any]] = [dict(row) for row in ROWS[:12]]
    rows[5] = {**rows[5], "category": "\ud800"}
    source = replace(source_of(root), name=str(write_lines(tmp_path / "rows.jsonl", rows)))
    plan, scored = plan_of(root, tmp_path / "out", n=3), []
    done = run_selection(plan, source, engine=ENGINE)
    assert done is not None
    assert (done.scored, done.left_out) == (11, {"not readable": 1})
    write_lines(tmp_path / "rows.jsonl", ROWS[:12])
    original = candidate_shards.ShardScorer.__call__

    def counted(self: candidate_shards.ShardScorer, number: int) -> None:
        scored.append(number)
        original(self, number)

    monkeypatch.setattr(candidate_shards.ShardScorer, "__call__", counted)
    done = run_selection(plan, source, engine=ENGINE)
    assert done is not None
    assert (done.scored, done.left_out, scored) == (12, {}, [1])
    scores_path(plan.out, 2).write_bytes(b"")
    assert run_selection(plan, source, engine=ENGINE) == done
    assert scored == [1, 2]
    write_lines(tmp_path / "rows.jsonl", [*ROWS[:11], {**ROWS[11], "category": "other"}])
    shard_path(plan.out, 0).write_bytes(b"damaged")  # read again: it is made anew
    assert run_selection(plan, source, engine=ENGINE) is not None
    assert scored == [1, 2, 0, 2]


def command(root: Path, out: Path, *more: str) -> list[str]:
    named = ["select", "--model", str(root / "model"), "--probe", str(root / "probe")]
    data = ["--data", str(root / "data.jsonl"), "--evaluation", str(root / "asked.jsonl")]
    sizes = ["--shard-size", str(SHARD), "--n", "5", "--thinking", "data", "--device", "cpu"]
    return [*named, *data, *sizes, "--out", str(out), *more]


def test_the_command(root: Path, whole: Path, tmp_path: Path) -> None:
    result = CliRunner().invoke(app, command(root, tmp_path / "out"))
    assert result.exit_code == 0, result.output
    assert "37 rows, 30 scored, 5 chosen by cliff" in result.output
    assert "1 left out: longer than the context" in result.output
    assert (tmp_path / "out" / "selected.jsonl").read_bytes() == (
        whole / "selected.jsonl"
    ).read_bytes()
    result = CliRunner().invoke(app, command(root, tmp_path / "out", "--strategy", "best"))
    assert result.exit_code == 1
    assert "Unknown strategy 'best'" in result.output


def process(root: Path, out: Path) -> subprocess.Popen[bytes]:
    source = f"from refusal_cliff.cli import app; app({command(root, out)!r})"
    return subprocess.Popen(
        [sys.executable, "-c", source],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
    )


def rank_of_two(rank: int, root: Path, out: Path) -> tuple[bool, int]:
    """One process of a launch: whether it puts the results together, and the shards it scored."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
    scored: list[int] = []
    original = candidate_shards.ShardScorer.__call__

    def counted(self: candidate_shards.ShardScorer, number: int) -> None:
        scored.append(number)
        original(self, number)

    candidate_shards.ShardScorer.__call__ = counted
    result = run_selection(plan_of(root, out, n=5), source_of(root), engine=ENGINE)
    return result is not None, len(scored)


def test_ranks_share_the_shards_and_write_the_same(root: Path, whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with ProcessPoolExecutor(2, multiprocessing.get_context("spawn")) as pool:
        ranks = pool.map(rank_of_two, (0, 1), (root, root), (out, out), timeout=240)
        assert list(ranks) == [(True, 5), (False, 5)]
    assert_equal_scores(out, whole)


def test_a_rank_is_what_the_launcher_says(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    assert Rank.here() == Rank(0, 0, 1)
    for name, value in (("RANK", "5"), ("LOCAL_RANK", "1"), ("WORLD_SIZE", "8")):
        monkeypatch.setenv(name, value)
    assert Rank.here() == Rank(5, 1, 8)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert (Rank.here().device("auto"), Rank.here().device("cpu")) == ("cuda:1", "cpu")
    assert Rank().device("auto") == "auto"


def assert_equal_scores(out: Path, whole: Path) -> None:
    """Every row once, in the same shard, with the same scores; the same rows chosen."""
    for number in range(10):
        mine, other = (pq.read_table(scores_path(folder, number)) for folder in (out, whole))
        assert mine.column("row").to_pylist() == other.column("row").to_pylist()
        for name in ("plateau", "final", "plateau_logit", "final_logit"):
            np.testing.assert_allclose(mine.column(name), other.column(name), rtol=1e-5, atol=1e-6)
    assert (out / "selected.jsonl").read_text().split('"plateau"')[0] == (
        (whole / "selected.jsonl").read_text().split('"plateau"')[0]
    )
    assert (out / "left-out.jsonl").read_bytes() == (whole / "left-out.jsonl").read_bytes()


def test_kill_nine_while_scoring_loses_nothing(root: Path, whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    running = process(root, out)
    while running.poll() is None and not scores_path(out, 3).is_file():
        time.sleep(0.001)
    running.send_signal(signal.SIGKILL)
    assert running.wait() == -signal.SIGKILL
    assert run_selection(plan_of(root, out, n=5), source_of(root), engine=ENGINE) is not None
    assert_equal_scores(out, whole)
