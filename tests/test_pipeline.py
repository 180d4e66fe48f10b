"""Runs skip what is finished, resume after a kill, and refuse folders that they cannot trust."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from toy_run import Bomb, toy_stages

from refusal_cliff.errors import RefusalCliffError
from refusal_cliff.run.folder import MANIFEST, Headline, Manifest, RunInfo, open_run_folder
from refusal_cliff.run.pipeline import Job, Silent, Stage, run_pipeline, stage_key

SCRIPT = Path(__file__).with_name("toy_run.py")
INFO = RunInfo(command="toy", seeds={"all": 0})
RESULTS = {
    "squares.txt": "0 1 4 9 16 25 36 49 64 81",
    "deep/count.txt": "10",
    "total.txt": "285",
    "report.txt": "285/10",
}
# 3 in the stages, 2 a rename: 4 outputs, 4 manifests, 1 atomic write inside the last stage
MOMENTS = 3 + 2 * (4 + 4 + 1)


class Log(Silent):
    """Remembers what it was told."""

    def __init__(self) -> None:
        self.started: list[str] = []
        self.skipped: list[str] = []
        self.headlines: dict[str, Headline] = {}

    def stage_started(self, name: str) -> None:
        self.started.append(name)

    def stage_finished(self, name: str, seconds: float, headline: Headline) -> None:
        assert seconds >= 0
        self.headlines[name] = headline

    def stage_skipped(self, name: str, headline: Headline) -> None:
        self.skipped.append(name)
        self.headlines[name] = headline


def run_toy(folder: Path) -> tuple[Manifest, Log]:
    log = Log()
    return run_pipeline(folder, toy_stages(Bomb(0)), INFO, log), log


def one_stage(work: Callable[[Job], Headline], name: str = "one") -> Stage:
    return Stage(name, (), ("a.txt",), {}, work)


def write_a(job: Job) -> Headline:
    job.output("a.txt").write_text("a")
    return {"n": 1}


def visible_files(folder: Path) -> set[str]:
    files = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    return {file.as_posix() for file in files} - {".lock"}


def assert_complete(folder: Path, manifest: Manifest) -> None:
    assert visible_files(folder) == {*RESULTS, MANIFEST}
    assert {name: (folder / name).read_text() for name in RESULTS} == RESULTS
    assert list(manifest.stages) == ["squares", "total", "group/report"]


def test_a_run_writes_outputs_and_manifest(tmp_path: Path) -> None:
    manifest, log = run_toy(tmp_path / "run")
    assert_complete(tmp_path / "run", manifest)
    assert log.started == ["squares", "total", "group/report"]
    assert log.headlines["total"] == {"total": 285}
    stored = Manifest.model_validate_json((tmp_path / "run" / MANIFEST).read_text())
    assert stored == manifest
    assert stored.versions["torch"] != "not installed"


def test_a_second_run_does_nothing(tmp_path: Path) -> None:
    first, _ = run_toy(tmp_path)
    second, log = run_toy(tmp_path)
    assert log.started == []
    assert log.skipped == ["squares", "total", "group/report"]
    assert log.headlines["group/report"] == {"text": "285/10"}
    assert second == first


def test_a_changed_output_is_made_again_with_what_depends_on_it(tmp_path: Path) -> None:
    run_toy(tmp_path)
    (tmp_path / "total.txt").write_text("286")
    manifest, log = run_toy(tmp_path)
    assert log.started == ["total"]  # its output is as before, so the report stands
    assert_complete(tmp_path, manifest)


def test_a_missing_output_is_made_again(tmp_path: Path) -> None:
    run_toy(tmp_path)
    (tmp_path / "report.txt").unlink()
    assert run_toy(tmp_path)[1].started == ["group/report"]


def test_a_changed_config_runs_the_stage_and_those_whose_inputs_it_changes(tmp_path: Path) -> None:
    run_toy(tmp_path)
    stages = toy_stages(Bomb(0))

    def fewer(job: Job) -> Headline:
        job.output("squares.txt").write_text("0 1")
        job.output("deep/count.txt").write_text("2")
        return {"n": 2}

    stages[0] = Stage("squares", (), stages[0].outputs, {"n": 2}, fewer)
    log = Log()
    run_pipeline(tmp_path, stages, INFO, log)
    assert log.started == ["squares", "total", "group/report"]
    assert (tmp_path / "report.txt").read_text() == "1/2"


def test_the_key_depends_on_config_and_inputs() -> None:
    stage = Stage("a", ("x",), ("y",), {"k": 1}, write_a)
    other = Stage("a", ("x",), ("y",), {"k": 2}, write_a)
    assert stage_key(stage, {"x": "1"}) == stage_key(stage, {"x": "1"})
    assert stage_key(stage, {"x": "1"}) != stage_key(stage, {"x": "2"})
    assert stage_key(stage, {"x": "1"}) != stage_key(other, {"x": "1"})


def run_killed(folder: Path, moment: int) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPT), str(folder), str(moment)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("moment", range(1, MOMENTS + 1))
def test_a_run_killed_at_any_moment_resumes(tmp_path: Path, moment: int) -> None:
    killed = run_killed(tmp_path, moment)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    manifest_file = tmp_path / MANIFEST
    finished = list(json.loads(manifest_file.read_text())["stages"]) if moment > 1 else []
    manifest, log = run_toy(tmp_path)
    assert_complete(tmp_path, manifest)
    assert log.skipped == finished
    assert not set(log.started) & set(finished)


def test_the_moments_are_all_there_are(tmp_path: Path) -> None:
    assert run_killed(tmp_path, MOMENTS + 1).returncode == 0


def test_a_folder_in_use_is_refused_and_free_afterwards(tmp_path: Path) -> None:
    with open_run_folder(tmp_path, INFO), pytest.raises(RefusalCliffError, match="Another"):
        run_toy(tmp_path)
    assert_complete(tmp_path, run_toy(tmp_path)[0])


def test_a_failing_stage_keeps_what_was_finished_and_leaves_nothing_else(tmp_path: Path) -> None:
    def fail(job: Job) -> Headline:
        job.output("total.txt").write_text("half")
        raise RefusalCliffError("row 3 is broken")

    stages = toy_stages(Bomb(0))
    stages[1] = Stage("total", ("squares.txt",), ("total.txt",), {}, fail)
    with pytest.raises(RefusalCliffError, match="row 3"):
        run_pipeline(tmp_path, stages, INFO)
    assert visible_files(tmp_path) == {"squares.txt", "deep/count.txt", MANIFEST}
    assert run_toy(tmp_path)[1].skipped == ["squares"]


def change_manifest(folder: Path, **changes: object) -> str:
    content = json.loads((folder / MANIFEST).read_text())
    text = json.dumps(content | changes)
    (folder / MANIFEST).write_text(text)
    return text


@pytest.mark.parametrize("found", [2, 0, None, "1"])
def test_a_folder_of_another_format_is_refused_untouched(tmp_path: Path, found: object) -> None:
    run_toy(tmp_path)
    before = change_manifest(tmp_path, format=found)
    with pytest.raises(RefusalCliffError, match=r"format.*--out"):
        run_toy(tmp_path)
    assert (tmp_path / MANIFEST).read_text() == before


def test_a_damaged_manifest_is_refused_untouched(tmp_path: Path) -> None:
    run_toy(tmp_path)
    before = change_manifest(tmp_path, stages={"squares": {"key": 3}})
    with pytest.raises(RefusalCliffError, match="damaged"):
        run_toy(tmp_path)
    assert (tmp_path / MANIFEST).read_text() == before
    (tmp_path / MANIFEST).write_text("{")
    with pytest.raises(RefusalCliffError, match=MANIFEST):
        run_toy(tmp_path)


def test_a_folder_of_other_things_is_refused_untouched(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(RefusalCliffError, match=r"not a run folder.*thesis\.tex"):
        run_toy(tmp_path)
    assert visible_files(tmp_path) == {"thesis.tex"}


def test_a_folder_that_cannot_be_made_is_explained(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RefusalCliffError, match=r"Could not write.*--out"):
        run_toy(tmp_path / "file" / "run")


def test_a_read_only_folder_is_explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.open

    def read_only(path: object, flags: int, *rest: int, **named: int) -> int:
        if flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        return real(str(path), flags, *rest, **named)

    monkeypatch.setattr(os, "open", read_only)
    with pytest.raises(RefusalCliffError, match=r"Read-only file system.*--out"):
        run_toy(tmp_path)
    assert visible_files(tmp_path) == set()


@pytest.mark.parametrize("allowed", range(8))
def test_a_disk_that_fills_at_any_rename_loses_nothing(tmp_path: Path, allowed: int) -> None:
    real, left = os.replace, [allowed]

    def filling(source: Path, target: Path) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(source, target)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "replace", filling)
        with pytest.raises(RefusalCliffError, match=r"No space left on device.*--out"):
            run_toy(tmp_path)
    assert not list(tmp_path.glob(".tmp-*"))
    assert_complete(tmp_path, run_toy(tmp_path)[0])


def test_a_disk_that_fills_inside_a_stage_is_explained(tmp_path: Path) -> None:
    def fill(job: Job) -> Headline:
        raise RuntimeError("I/O error: No space left on device (os error 28)")

    with pytest.raises(RefusalCliffError, match="No space left"):
        run_pipeline(tmp_path, [one_stage(fill)], INFO)


def test_a_missing_input_says_what_to_run(tmp_path: Path) -> None:
    stage = Stage("late", ("probes.json",), ("a.txt",), {}, write_a)
    with pytest.raises(RefusalCliffError, match=r"probes\.json.*run that step first"):
        run_pipeline(tmp_path, [stage], INFO)


def test_mistakes_in_a_plan_are_found_before_anything_runs(tmp_path: Path) -> None:
    for stages in (
        [one_stage(write_a), one_stage(write_a)],
        [one_stage(write_a), one_stage(write_a, "two")],
        [one_stage(write_a, "../x")],
        [Stage("one", ("../secret",), (), {}, write_a)],
        [Stage("one", (), ("/etc/x",), {}, write_a)],
    ):
        with pytest.raises(ValueError, match=r"."):
            run_pipeline(tmp_path / "run", stages, INFO)
    assert not (tmp_path / "run").exists()


def test_a_stage_touches_only_what_it_declares(tmp_path: Path) -> None:
    def read_undeclared(job: Job) -> Headline:
        job.input("b.txt")
        return {}

    def write_undeclared(job: Job) -> Headline:
        job.output("b.txt")
        return {}

    def write_nothing(job: Job) -> Headline:
        return {}

    for work, problem in (
        (read_undeclared, "input"),
        (write_undeclared, "output"),
        (write_nothing, "did not write"),
    ):
        with pytest.raises(ValueError, match=problem):
            run_pipeline(tmp_path, [one_stage(work)], INFO)


def test_results_of_one_model_are_not_replaced_by_those_of_another(tmp_path: Path) -> None:
    asked = RunInfo(command="toy", seeds={"all": 0}, subjects={"one": "f1"})
    run_pipeline(tmp_path, toy_stages(Bomb(0)), asked)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    for other in (
        asked.model_copy(update={"seeds": {"all": 1}}),
        asked.model_copy(update={"subjects": {"one": "f2"}}),
        asked.model_copy(update={"subjects": {"two": "f1"}}),
    ):
        with pytest.raises(RefusalCliffError, match=r"a run of one \(seed 0\)"):
            run_pipeline(tmp_path, toy_stages(Bomb(0)), other)
    after = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert after == before
    more = asked.model_copy(update={"subjects": {"one": "f1", "two": "f2"}})
    run_pipeline(tmp_path, toy_stages(Bomb(0)), more)
