"""Selection at the scale of a published data set: speed, memory, kills, and what it costs.

``speed``: 20,000 rows scored by ``select`` against the bare early-exit forward pass of the same
batches, and memory over rows (a plot). ``kill``: the same selection killed with signal 9 at random
moments, then compared with one that ran through; with ``--engine ray`` two actors score, and one of
them is killed. ``cost``: forward-pass tokens of Cliff-as-a-Judge, of a judge model and of gradient
selection, counted on a finished selection.

    python -m bench.selection speed --probe runs/demo/tiny --out runs/bench-select
    python -m bench.selection kill --probe runs/demo/tiny --rows 4000 --out runs/bench-kill
    python -m bench.selection cost --selection runs/selection --judge-tokens 200
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pyarrow.parquet as pq
import torch

from refusal_cliff.data.examples import write_examples, write_prompts
from refusal_cliff.data.traces import PromptFile
from refusal_cliff.io import write_text
from refusal_cliff.model.blocks import decoder_of
from refusal_cliff.model.rows import Batch, in_batches
from refusal_cliff.model.subject import Subject, load_subject
from refusal_cliff.organisms import language
from refusal_cliff.probe.files import probes_of
from refusal_cliff.report.svg import frame, line, picture, polyline, tag, text
from refusal_cliff.select.pool import read_candidates, scores_path, shard_path
from refusal_cliff.select.selection_run import Source, run_selection
from refusal_cliff.select.shards import ScoringPlan
from refusal_cliff.settings import Engine, Loading, Selecting
from refusal_cliff.sharded import HERE
from refusal_cliff.thinking import tokenise_trace

MEGABYTE = 1 << 20


def machine() -> str:
    """Where the numbers were taken."""
    return (
        f"cpu, {platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads, "
        f"Python {platform.python_version()}, torch {torch.__version__}"
    )


def make_data(out: Path, rows: int) -> None:
    """Candidate rows of the organism's language, and prompts that must be kept out."""
    write_examples(out / "data.jsonl", language.safety_pool(rows, 0))
    write_prompts(out / "asked.jsonl", language.prompts("test", "harmful", 100, 0))


def plan_of(options: argparse.Namespace, out: Path) -> tuple[ScoringPlan, Source]:
    """The thinking of the data is scored: generation would hide what scoring costs."""
    return (
        ScoringPlan(
            options.model,
            options.probe,
            out,
            Selecting(thinking="data"),
            loading=Loading(device="cpu"),
        ),
        Source(str(options.out / "data.jsonl"), (PromptFile(options.out / "asked.jsonl"),)),
    )


class Stop(Exception):
    """Ends a forward pass after the probed block."""


@torch.inference_mode()
def bare_pass(subject: Subject, batches: list[list[list[int]]], layer: int) -> float:
    """Seconds for the blocks up to the probed one, on padded batches made beforehand."""

    def stop(*_: Any) -> None:
        raise Stop

    handle = subject.blocks[layer - 1].module.register_forward_hook(stop)
    decoder = decoder_of(subject.model)
    padded = [pad(batch) for batch in batches]
    start = time.perf_counter()
    for ids, mask in padded:
        try:
            decoder(input_ids=ids, attention_mask=mask, use_cache=False)
        except Stop:
            continue
    handle.remove()
    return time.perf_counter() - start


def pad(rows: list[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and mask."""
    ids = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.long)
    mask = torch.zeros_like(ids)
    for place, row in enumerate(rows):
        ids[place, : len(row)] = torch.tensor(row)
        mask[place, : len(row)] = 1
    return ids, mask


def batches_of(subject: Subject, shard: Path) -> list[list[list[int]]]:
    """The batches that a shard is scored in."""
    tokens = [
        tokenise_trace(subject.tokenizer, subject.format, e.prompt.text, e.thinking, e.response)[0]
        for _, e in read_candidates(shard)
    ]
    batches: list[Batch] = []
    in_batches(subject, tokens, batches.append)
    return [[tokens[row] for row in batch.rows] for batch in batches]


class Watcher:
    """Told after each shard: notes its time and the memory, and times the bare pass of some.

    The notes are kept beside the selection, so that the measurement, too, goes on after a kill.
    """

    def __init__(self, options: argparse.Namespace, out: Path, notes: Path) -> None:
        self._subject = load_subject(options.model, device="cpu")
        self._layer = probes_of(options.probe, self._subject).layer
        self._out, self._every, self._notes = out, options.every, notes
        self._process, self._done = psutil.Process(), 0
        self._mark = time.perf_counter()

    def __call__(self, what: str, done: int, total: int | None = None, note: str = "") -> None:
        """As `run_selection` tells."""
        noted: dict[str, float | str] = {"what": what, "done": done, "pid": self._process.pid}
        noted["seconds"] = time.perf_counter() - self._mark
        noted["memory"] = self._process.memory_info().rss / MEGABYTE
        if what == "shards scored":
            self._done += 1
            if self._done > 1 and done % self._every == 0:  # the first shard also warms up
                batches = batches_of(self._subject, shard_path(self._out, done - 1))
                noted["bare"] = bare_pass(self._subject, batches, self._layer)
        with self._notes.open("a", encoding="utf-8") as file:
            file.write(json.dumps(noted) + "\n")
        self._mark = time.perf_counter()


def speed(options: argparse.Namespace) -> None:
    """Score all rows, watching time and memory; print the ratio to the bare pass."""
    out, notes = options.out / "selection", options.out / "notes.jsonl"
    if not notes.is_file():
        shutil.rmtree(out, ignore_errors=True)
        make_data(options.out, options.rows)
    plan, source = plan_of(options, out)
    done = run_selection(plan, source, watch=Watcher(options, out, notes))
    assert done is not None
    noted = [json.loads(line) for line in notes.read_text(encoding="utf-8").splitlines()]
    shards = [note for note in noted if note["what"] == "shards scored"]
    pairs = [(note["seconds"], note["bare"]) for note in shards if "bare" in note]
    scored, bare = (sum(times) for times in zip(*pairs, strict=True))
    ratios = [one / other for one, other in pairs]
    scoring = sum(note["seconds"] for note in shards)
    read = sum(note["seconds"] for note in noted if note["what"] == "rows read")
    tokens = json.loads((out / "selection.json").read_text())["tokens_scored"]
    print(f"rows            {done.rows}, {done.scored} scored, {done.chosen} chosen")
    print(f"tokens          {tokens} in {len(shards)} shards, without padding")
    print(f"scoring         {scoring:.1f} s: {done.scored / scoring:.0f} rows/s")
    print(f"reading         {read:.1f} s for all rows, duplicates and overlap included")
    print(
        f"time ratio      {scored / bare:.3f} of a shard to the bare early-exit pass of the same "
        f"batches right after it, {len(ratios)} pairs from {min(ratios):.3f} to {max(ratios):.3f}; "
        f"{scored / bare * (1 + read / scoring):.3f} with reading"
    )
    first, last = shards[len(shards) // 10]["memory"], shards[-1]["memory"]
    print(f"memory          {first:.0f} MiB after a tenth of the shards, {last:.0f} MiB at the end")
    print(f"processes       {len({note['pid'] for note in shards})}, one after another")
    print(f"machine         {machine()}")
    points = [
        (min(note["done"] * HERE.shard_size, options.rows), note["memory"]) for note in shards
    ]
    write_text(options.out / "memory.svg", memory_chart(points))


def memory_chart(points: list[tuple[int, float]]) -> str:
    """Memory over rows, from zero, as an SVG file."""
    most = 1.2 * max(value for _, value in points)
    place = frame((0, points[-1][0]), (0, most), 60, 30, 600, 260)
    ticks = [most * share for share in (0, 0.25, 0.5, 0.75, 1)]
    style = "text{font:12px sans-serif}.curve{fill:none;stroke:#b8440a;stroke-width:2}"
    style += ".grid,.axis{stroke:#d9d6ce}"
    svg = picture(
        "memory",
        (640.0, 310.0),
        "Memory over rows scored",
        f"From {points[0][1]:.0f} MiB to {points[-1][1]:.0f} MiB.",
        tag("style", style),
        tag("rect", width=640, height=310, fill="#ffffff"),
        *(line((60, place.y(tick)), (600, place.y(tick)), "grid") for tick in ticks),
        *(text(52, place.y(tick) + 4, f"{tick:.0f}", "tick", "end") for tick in ticks),
        polyline([place.point(x, y) for x, y in points], "curve"),
        text(10, 16, "resident memory, MiB"),
        text(600, 284, f"{points[-1][0]:,} rows scored", "tick", "end"),
    )
    return svg.replace("<svg", '<svg xmlns="http://www.w3.org/2000/svg"', 1) + "\n"


def kill(options: argparse.Namespace) -> None:
    """Kill at random moments; compare every file with an uninterrupted run."""
    make_data(options.out, options.rows)
    for name in ("whole", "killed"):
        shutil.rmtree(options.out / name, ignore_errors=True)
    source, once = [sys.executable, __file__, "child", "--probe", str(options.probe)], "whole"
    command = [*source, "--model", options.model, "--out", str(options.out), "--name"]
    start = time.perf_counter()
    subprocess.run([*command, once], check=True)
    seconds = time.perf_counter() - start
    rng = random.Random(options.seed)
    for number in range(options.kills):
        running = subprocess.Popen([*command, "killed", "--engine", options.engine])
        wait = rng.uniform(0.4, 1.6) * seconds / (options.kills + 2)
        timer = threading.Timer(wait, kill_now, [running.pid, options.engine])
        timer.start()
        code = running.wait()
        timer.cancel()
        there = len(list((options.out / "killed").glob("scores/scores-*.parquet")))
        print(f"run {number + 1} ended with {code} after {there} shards", flush=True)
        if code == 0:
            break
    subprocess.run([*command, "killed", "--engine", options.engine], check=True)
    same = files_of(options.out / "whole") == files_of(options.out / "killed")
    rows = [
        row
        for path in sorted((options.out / "killed").glob("scores/scores-*.parquet"))
        for row in pq.read_table(path, columns=["row"]).column("row").to_pylist()
    ]
    print(f"uninterrupted   {seconds:.1f} s")
    print(f"every file the same: {same}; {len(rows)} rows scored, {len(set(rows))} different")


def kill_now(pid: int, engine: str) -> None:
    """Signal 9 to the process, or to one of its Ray actors."""
    if engine == "local":
        os.kill(pid, signal.SIGKILL)
        return
    while not (actors := actors_of(psutil.Process(pid))):
        time.sleep(0.1)
    print(f"{len(actors)} actors, one is killed", flush=True)
    actors[0].kill()


def actors_of(driver: psutil.Process) -> list[psutil.Process]:
    """The processes that score for it on a local Ray cluster."""
    return [
        child
        for child in driver.children(recursive=True)
        if "ShardActor" in " ".join(child.cmdline())
    ]


def files_of(folder: Path) -> dict[str, bytes]:
    """All files, temporary ones included: there must be none."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def child(options: argparse.Namespace) -> None:
    """One selection in a process of its own."""
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    plan, source = plan_of(options, options.out / options.name)
    run_selection(plan, source, engine=Engine(options.engine, 2))


def cost(options: argparse.Namespace) -> None:
    """Tokens through all blocks of the model, or what costs as much.

    A token that is generated, or scored up to block l of L, counts as 1 and l / L. LESS (Xia et
    al. 2024) takes one gradient of every example, a backward pass at twice a forward one, at each
    of its four checkpoints, after a warm-up on 5 % of the data for four epochs; it trains on the
    answer of the data, so that nothing is generated.
    """
    out: Path = options.selection
    report = json.loads((out / "selection.json").read_text())
    subject = load_subject(options.model, device="cpu")
    depth = probes_of(options.probe, subject).layer / subject.n_layers
    prompts = sum(prompt_tokens(out))
    scored, written = report["tokens_scored"], report["tokens_generated"]
    answers = answer_tokens(out)
    thinking = written - answers
    judged = report["scored"] * options.judge_tokens + prompts + answers
    less = (4 * 3 + 4 * 3 * 0.05) * scored
    print("| | tokens, in whole forward passes of this model | beside Cliff-as-a-Judge |")
    print("|---|---|---|")
    ours = prompts + thinking + depth * (scored - answers)
    rows = {
        "Cliff-as-a-Judge: write the thinking, one early-exit pass over it": ours,
        "as `select` does it: writes the answer too": prompts + written + depth * scored,
        "on the thinking of the data: one early-exit pass": depth * scored,
        "judge: write thinking and answer, one pass of a judge as large": prompts
        + written
        + judged,
        "LESS: warm-up, and gradients at four checkpoints": less,
    }
    for name, tokens in rows.items():
        print(f"| {name} | {tokens:,.0f} | × {tokens / ours:.2f} |")


def prompt_tokens(out: Path) -> Iterator[int]:
    """Of every scored trace: all tokens that were not written by the model."""
    number = 0
    while scores_path(out, number).is_file():
        table = pq.read_table(scores_path(out, number), columns=["tokens", "written"])
        for row in table.to_pylist():
            yield row["tokens"] - row["written"]
        number += 1


def answer_tokens(out: Path) -> int:
    """Tokens written after the thinking closed, over all scored traces."""
    number, total = 0, 0
    while scores_path(out, number).is_file():
        table = pq.read_table(scores_path(out, number), columns=["answer"])
        total += sum(table.column("answer").to_pylist())
        number += 1
    return total


def main() -> None:
    """Choose what is measured."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("speed", "kill", "cost", "child"))
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--probe", type=Path, required=True, help="folder of a model in a run")
    parser.add_argument("--out", type=Path, default=Path("runs/bench-select"))
    parser.add_argument("--every", type=int, default=4, help="shards from one pair to the next")
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0, help="of the moments of the kills")
    parser.add_argument("--engine", choices=("local", "ray"), default="local", help="of the kills")
    parser.add_argument("--name", default="", help=argparse.SUPPRESS)
    parser.add_argument("--selection", type=Path, help="folder of a finished selection")
    parser.add_argument("--judge-tokens", type=int, default=200, help="of a judge's own prompt")
    options = parser.parse_args()
    {"speed": speed, "kill": kill, "cost": cost, "child": child}[options.what](options)


if __name__ == "__main__":
    main()
