"""Long commands killed at random moments, and the same command again: are the files the same?

    PYTHONPATH=tests python -m bench.kills --kills 12 --out runs/kills > table.md

Each command runs whole twice on the embedded `tiny`; files that already differ between these two
(they hold the time) are not compared, and are named. Then it is started anew, killed with SIGKILL
at moments drawn uniformly over the time that a whole run takes, three in a row on one folder, and
run to its end: every other file must be that of a whole run, byte for byte, and no file may be
missing or left over.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

from lora_server import LoraServer
from served import serving, transformers_serve

from refusal_cliff.data.examples import write_examples, write_prompts
from refusal_cliff.data.types import LABELS
from refusal_cliff.organisms import embedded_path, language

IN_A_ROW = 3
"""Kills of one folder before the command is left alone."""
ENDS = (0, 3)
"""Exit statuses of a run that did its work; 3: a gate does not pass, or a proof fails."""
DEADLINE = 1800
"""Seconds after which a run counts as hanging."""
MODEL = "tiny"
HERE = "{out}"
"""Stands for the output folder in a command."""
LENGTH = ("--max-new-tokens", "110", "--batch-size", "8")
SPLITS: tuple[language.Split, ...] = ("validation", "test")


def commands(inputs: Path, address: str, lora: str) -> Mapping[str, Sequence[str]]:
    """The commands that are killed, without ``--out``; later ones read what `prepare` made.

    Args:
        inputs: Folder of what they read.
        address: Of a server of any model.
        lora: Of a server of the model that loads adapters.
    """
    audit = ["audit", "--model", MODEL, "--quick", "--max-new-tokens", "110"]
    audit += ["--harmful", f"{inputs}/harmful.jsonl", "--benign", f"{inputs}/benign.jsonl"]
    probe = ["--model", MODEL, "--probe", f"{inputs}/audit/model"]
    asked = ["--prompts", f"{inputs}/asked.jsonl", "--model", MODEL, *LENGTH]
    served = ["--endpoint", address, "--endpoint-model", str(embedded_path(MODEL))]
    served += ["--temperature", "0"]
    pool = ["--data", f"{inputs}/pool.jsonl"]
    return {
        "generate": ["generate", *asked],
        "generate --endpoint": ["generate", *asked, *served],
        "audit": audit,
        "audit --endpoint": [*audit, *served],
        "audit --adapters-dir": [
            *(*audit, "--traces", f"{inputs}/audit/model/traces-fit.parquet"),
            *("--traces", f"{inputs}/audit/model/traces-test.parquet"),
            *("--endpoint", lora, "--endpoint-model", str(embedded_path(MODEL))),
            *("--temperature", "0", "--adapters-dir", f"{HERE}.adapters"),
        ],
        "trace": ["trace", *probe, "--traces", f"{inputs}/asked/traces.jsonl", "--shard-size", "8"],
        "judge": ["judge", "--traces", f"{inputs}/asked/traces.jsonl"],
        "select": ["select", *probe, *pool, *LENGTH, "--n", "6", "--shard-size", "8"],
        "train": [
            *("train", "--model", MODEL, "--selected", f"{inputs}/pool.jsonl"),
            *("--benign", f"{inputs}/helpful.jsonl", "--steps", "24", "--save-every", "4"),
            *("--max-length", "400"),
        ],
        "repair": [
            *("repair", *probe, *pool, "--benign", f"{inputs}/helpful.jsonl", "--n", "6"),
            *("--steps", "12", "--save-every", "3", *LENGTH),
        ],
        "check": ["check", *probe, "--prompts", f"{inputs}/asked.jsonl", *LENGTH],
    }


def prepare(inputs: Path, made: Mapping[str, Sequence[str]]) -> None:
    """Files and runs that the commands read; what is there already is kept."""
    inputs.mkdir(parents=True, exist_ok=True)
    write_prompts(inputs / "asked.jsonl", language.prompts("test", "harmful", 60, 0))
    for label in LABELS:
        both = [p for split in SPLITS for p in language.prompts(split, label, 150, 0)]
        write_prompts(inputs / f"{label}.jsonl", both)
    write_examples(inputs / "pool.jsonl", language.safety_pool(96, 0))
    write_examples(inputs / "helpful.jsonl", language.examples("train", "benign", 32, 0))
    for name, folder in (("audit", "audit"), ("generate", "asked")):
        status = launched(made[name], inputs / folder).wait(DEADLINE)
        if status:
            raise SystemExit(f"{name} ended with status {status}; see {inputs / folder}.log")


def launched(command: Sequence[str], out: Path) -> subprocess.Popen[bytes]:
    """Start a command in a session of its own, one thread, its output in ``out``.log."""
    quiet = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    command = [part.replace(HERE, str(out)) for part in command]
    with out.with_name(f"{out.name}.log").open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "refusal_cliff", *command, "--out", str(out)],
            env={**os.environ, **quiet},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )


def whole(command: Sequence[str], out: Path) -> tuple[float, int]:
    """Seconds and exit status of a run that nobody kills."""
    start = time.monotonic()
    status = launched(command, out).wait(DEADLINE)
    return time.monotonic() - start, status


def killed(command: Sequence[str], out: Path, seconds: float) -> bool:
    """Start and kill after ``seconds``; whether it was still running then."""
    process = launched(command, out)
    try:
        process.wait(seconds)
        return False
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        return True


def hashes(folder: Path) -> dict[str, str]:
    """Hash of every file below, by its path there.

    Locks are empty, and a journal holds what was said in the order of its saying, which a kill may
    change: neither is a result.
    """
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.suffix not in (".lock", ".journal") and path.name != ".lock"
    }


def try_command(
    name: str, command: Sequence[str], kills: int, folder: Path, draw: Callable[[], float]
) -> dict[str, object]:
    """Two whole runs, then kills three in a row; what differs is named."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    (seconds, status), (_, again) = (whole(command, folder / part) for part in ("a", "b"))
    if status not in ENDS or again != status:
        raise SystemExit(f"{name} ended with status {status} and {again}; see {folder}/a.log")
    first, second = hashes(folder / "a"), hashes(folder / "b")
    same = {path: found for path, found in first.items() if second.get(path) == found}
    done, faults = 0, []
    while done < kills:
        out = folder / f"killed-{done}"
        hit = [killed(command, out, seconds * draw()) for _ in range(min(IN_A_ROW, kills - done))]
        done += sum(hit)
        _, ended = whole(command, out)
        found = hashes(out)
        wrong = sorted(path for path, value in same.items() if found.get(path) != value)
        left = sorted(found.keys() - first.keys())
        if ended != status or wrong or left:
            faults.append({"folder": out.name, "status": ended, "differ": wrong, "left": left})
        else:
            shutil.rmtree(out)
    return {
        "command": name,
        "seconds": round(seconds, 1),
        "status": [status, again],
        "kills": done,
        "files": len(same),
        "not compared": sorted(first.keys() - same.keys()),
        "faults": faults,
    }


def main() -> None:
    """Kill every command, print the table; exit 1 where anything differed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=12, help="of every command")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs/kills"))
    parser.add_argument("--only", nargs="*", help="names of commands")
    given = parser.parse_args()
    random_ = random.Random(given.seed)
    print("| command | s | kills | files the same | faults | not compared |")
    print("|---|---|---|---|---|---|", flush=True)
    faults = 0
    with ExitStack() as stack:
        address = stack.enter_context(transformers_serve())
        lora = LoraServer(embedded_path(MODEL), max_rank=256)
        inputs = (given.out / "inputs").resolve()
        made = commands(inputs, address, stack.enter_context(serving(lora.handler)))
        prepare(inputs, made)
        for name, command in made.items():
            if given.only and name not in given.only:
                continue
            folder = (given.out / name.replace(" --", "-")).resolve()
            told = try_command(name, command, given.kills, folder, random_.random)
            (folder / "kills.json").write_text(json.dumps(told, indent=1))
            broken = len(told["faults"])  # pyright: ignore[reportArgumentType]
            faults += broken
            without = ", ".join(f"`{path}`" for path in told["not compared"])  # pyright: ignore
            cells = (f"`{name}`", told["seconds"], told["kills"], told["files"], broken, without)
            print(f"| {' | '.join(map(str, cells))} |", flush=True)
    raise SystemExit(bool(faults))


if __name__ == "__main__":
    main()
