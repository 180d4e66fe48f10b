"""Stages at once: the same results, really at once, and no child outlives a failure or a kill."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from toy_run import Bomb, toy_stages

from refusal_cliff.errors import RefusalCliffError
from refusal_cliff.run.folder import MANIFEST, Headline, RunInfo
from refusal_cliff.run.forks import CAN_FORK, Fork, _child
from refusal_cliff.run.pipeline import Job, Silent, Stage, run_pipeline

pytestmark = pytest.mark.skipif(not CAN_FORK, reason="processes are forked on Linux only")
INFO = RunInfo(command="toy")
FOREVER = 600


def stage(name: str, work: object, inputs: tuple[str, ...] = ()) -> Stage:
    def run(job: Job) -> Headline:
        assert callable(work)
        work(job)
        job.output(f"{name}.txt").write_text(name)
        return {"pid": os.getpid()}

    return Stage(name, inputs, (f"{name}.txt",), {}, run)


def files_of(folder: Path) -> dict[str, str]:
    found = [path for path in folder.rglob("*") if path.is_file() and path.suffix == ".txt"]
    return {path.relative_to(folder).as_posix(): path.read_text() for path in found}


def test_the_results_are_those_of_one_process(tmp_path: Path) -> None:
    one = run_pipeline(tmp_path / "one", toy_stages(Bomb(0)), INFO)
    two = run_pipeline(tmp_path / "two", toy_stages(Bomb(0)), INFO, workers=2)
    assert files_of(tmp_path / "one") == files_of(tmp_path / "two")
    assert {n: r.key for n, r in one.stages.items()} == {n: r.key for n, r in two.stages.items()}


def test_independent_stages_are_at_work_at_the_same_time(tmp_path: Path) -> None:
    meeting = multiprocessing.get_context("fork").Barrier(2)

    def meet(job: Job) -> None:
        meeting.wait(FOREVER)

    done = run_pipeline(tmp_path, [stage("a", meet), stage("b", meet)], INFO, workers=2)
    pids = {record.headline["pid"] for record in done.stages.values()}
    assert len(pids | {os.getpid()}) == 3


def test_a_stage_waits_for_its_inputs_and_for_a_free_worker(tmp_path: Path) -> None:
    events: list[str] = []

    class Log(Silent):
        def stage_started(self, name: str) -> None:
            events.append(f"+{name}")

        def stage_finished(self, name: str, seconds: float, headline: Headline) -> None:
            events.append(f"-{name}")

        def progress(self, name: str, done: int, total: int) -> None:
            events.append(f"{name} {done}/{total}")

    stages = [
        stage("a", lambda job: job.progress(1, 2)),
        stage("b", lambda job: job.input("a.txt"), ("a.txt",)),
        *(stage(name, lambda job: None) for name in "cd"),
    ]
    run_pipeline(tmp_path, stages, INFO, Log(), workers=2)
    assert events.index("-a") < events.index("+b")
    assert "a 1/2" in events
    running = [sum(1 if e[0] == "+" else -1 for e in events[:n] if e[0] in "+-") for n in range(11)]
    assert max(running) == 2
    again: list[str] = []
    Log.stage_started = lambda self, name: again.append(name)  # type: ignore[method-assign]
    run_pipeline(tmp_path, stages, INFO, Log(), workers=2)
    assert again == []


def test_a_failure_stops_the_others_and_keeps_what_was_finished(tmp_path: Path) -> None:
    def fail(job: Job) -> None:
        job.input("a.txt")
        raise RefusalCliffError("row 3 is broken")

    stages = [
        stage("a", lambda job: None),
        stage("long", lambda job: time.sleep(FOREVER)),
        stage("bad", fail, ("a.txt",)),
    ]
    with pytest.raises(RefusalCliffError, match="row 3") as caught:
        run_pipeline(tmp_path, stages, INFO, workers=2)
    assert "in fail" in caught.value.__notes__[0]
    assert files_of(tmp_path) == {"a.txt": "a"}
    assert sorted(path.name for path in tmp_path.iterdir()) == [".lock", "a.txt", MANIFEST]


def test_a_killed_worker_is_explained(tmp_path: Path) -> None:
    stages = [stage("a", lambda job: os.kill(os.getpid(), signal.SIGKILL))]
    with pytest.raises(RefusalCliffError, match=r"was killed .* run the same command again"):
        run_pipeline(tmp_path, stages, INFO, workers=2)


def test_an_error_that_cannot_be_sent_is_told_in_words() -> None:
    class Local(Exception):
        pass

    def work(progress: object) -> None:
        raise Local("what happened")

    fork = Fork(work)
    error = fork.news().error
    fork.stop()
    assert isinstance(error, RuntimeError)
    assert str(error) == "what happened"


def test_a_child_dies_with_its_parent() -> None:
    code = (
        "import time\nfrom refusal_cliff.run.forks import Fork\n"
        "fork = Fork(lambda progress: time.sleep(60))\n"
        "print(fork._process.pid, flush=True)\ntime.sleep(60)"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    assert state_of(child) not in ("", "Z")
    parent.kill()
    parent.wait()
    end = time.monotonic() + FOREVER
    while state_of(child) not in ("", "Z") and time.monotonic() < end:
        time.sleep(0.01)
    assert state_of(child) in ("", "Z")


def test_work_is_done_where_the_parent_is_process_1_of_a_container() -> None:
    namespace = ["unshare", "--user", "--map-root-user", "--pid", "--fork", "--mount-proc"]
    if shutil.which("unshare") is None or subprocess.run([*namespace, "true"]).returncode:
        pytest.skip("namespaces of processes cannot be made here")
    code = (
        "import os\nfrom refusal_cliff.run.forks import Fork\n"
        "fork = Fork(lambda progress: os.getppid())\nprint(os.getpid(), fork.news().result)"
    )
    command = [*namespace, sys.executable, "-c", code]
    assert subprocess.check_output(command, text=True).split() == ["1", "1"]


def test_a_child_that_lost_its_parent_before_it_began_does_nothing() -> None:
    receiver, sender = multiprocessing.Pipe(duplex=False)
    stranger = 0  # no process is the child of this
    child = multiprocessing.get_context("fork").Process(
        target=_child, args=(lambda progress: 7, sender, stranger)
    )
    child.start()
    sender.close()
    child.join(FOREVER)
    with pytest.raises(EOFError):
        receiver.recv()


def state_of(pid: int) -> str:
    """R, S, Z …; empty where there is no such process."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return ""
