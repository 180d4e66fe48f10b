"""From prompts to judged answers in a folder; killed at any moment, it goes on where it was.

A folder holds ``generate.json`` (what was asked of whom; for answers from elsewhere ``judge.json``,
whose they are), ``answers.journal`` (every finished answer, in the order of finishing),
``judge-….journal`` (every verdict), ``left-out.jsonl`` (rows without an answer and why),
``traces.jsonl`` (the judged answers, in the order of the prompts) and ``rates.json``.

Several processes do it in parts. While they work, ``.tmp-parts-N`` holds a folder for each part of
what is missing, made by the same functions as the whole: it has their journals, so that a kill
costs what it costs there. `join` puts the rows of all of them into the journals of the whole; then
nothing is missing there.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import astuple, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Generic, TypeVar

from refusal_cliff import __version__
from refusal_cliff.data.examples import PromptSet
from refusal_cliff.data.journal import Journal, kept_rows
from refusal_cliff.data.reading import every
from refusal_cliff.data.shapes import trace_of_row
from refusal_cliff.data.traces import row_of_trace, write_answers, write_left_out
from refusal_cliff.data.types import LeftOut, Prompt, Trace
from refusal_cliff.folders import TEMPORARY, claim, locked, remove_temporary, require_output
from refusal_cliff.generate.backend import Backend
from refusal_cliff.io import write_text
from refusal_cliff.judges import Judge, answer_of, kept_judgements
from refusal_cliff.judges.choose import full_name, judge_of
from refusal_cliff.judges.interface import digest, judgement_of, with_judgement
from refusal_cliff.progress import Count
from refusal_cliff.settings import Engine, JudgeSettings
from refusal_cliff.sharded import Rank, Work, run_shards, workers

GENERATE = "generate"
ANSWERS = "answers.journal"
LEFT_OUT = "left-out.jsonl"
TRACES = "traces.jsonl"
_PARTS = f"{TEMPORARY}parts-"
_DONE = "done"
_EACH = 4
"""Parts of every process, so that none waits long for another."""
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Collected:
    """What a folder holds: traces in the order of the prompts, and rows without one."""

    traces: list[Trace]
    left_out: list[LeftOut]


def generate_answers(
    backend: Backend,
    prompts: PromptSet,
    out: Path,
    *,
    source: str,
    progress: Count | None = None,
) -> Collected:
    """Ask every prompt that has no answer in the folder yet.

    Args:
        backend: Who answers.
        prompts: What to ask, with the rows that cannot be asked.
        out: The folder; made if absent.
        source: File or benchmark, recorded.
        progress: Called with the number of answers so far.

    Raises:
        RefusalCliffError: The folder holds answers to something else, or nobody answers.
    """
    require_output(out, GENERATE, (source,))
    with locked(out):
        claim(out, GENERATE, made_from(backend, prompts, source), "answers")
        join(out)
        with Journal(out / ANSWERS) as journal:
            failed = _ask_missing(backend, prompts.prompts, journal, progress)
            rows = dict(journal.rows)
        asked = enumerate((p.id for p in prompts.prompts), start=1)
        finished = ((number, rows[identity]) for number, identity in asked if identity in rows)
        traces = list(every(out / ANSWERS, finished, partial(trace_of_row, out / ANSWERS)))
        left_out = [*prompts.left_out, *failed]
        write_left_out(out / LEFT_OUT, left_out)
        write_answers(out / TRACES, traces)
    return Collected(traces, left_out)


def _ask_missing(
    backend: Backend, prompts: Sequence[Prompt], journal: Journal, progress: Count | None
) -> list[LeftOut]:
    failed: list[LeftOut] = []

    def finished(result: Trace | LeftOut) -> None:
        if isinstance(result, LeftOut):
            failed.append(result)
        else:
            journal.add(row_of_trace(result))
        if progress is not None:
            progress(len(journal.rows) + len(failed))

    if progress is not None:
        progress(len(journal.rows))
    missing = [prompt for prompt in prompts if prompt.id not in journal.rows]
    if missing:
        backend.answer(missing, finished)
    return failed


def made_from(backend: Backend, prompts: PromptSet, source: str) -> dict[str, Any]:
    """All that the answers in a folder depend on."""
    asked = json.dumps([(prompt.id, prompt.text, prompt.label) for prompt in prompts.prompts])
    return {
        **backend.description(),
        "source": source,
        "n": len(prompts.prompts),
        "prompts_sha256": hashlib.sha256(asked.encode()).hexdigest(),
        "version": __version__,
    }


def judge_answers(
    judge: Judge | JudgeSettings,
    traces: Sequence[Trace],
    out: Path,
    *,
    progress: Count | None = None,
) -> list[Trace]:
    """Judge every trace that this judge has not given a verdict in the folder yet.

    Args:
        judge: Who judges; or its settings, where parts have judged, see `in_parts`: it is loaded
            only if it has said nothing of some trace, and not asked again what it left unscored.
        traces: What to judge.
        out: Folder of the verdicts; ``traces.jsonl`` in it is written with them.
        progress: Called with the number of verdicts so far.

    Returns:
        The same traces with their verdicts.

    Raises:
        RefusalCliffError: Nothing can be judged, for example because a server is down.
    """
    late = isinstance(judge, JudgeSettings)
    name = full_name(judge) if late else judge.name
    with locked(out):
        join(out)
        with Journal(_verdicts(out, name)) as journal:
            keyed = [(_key(trace), answer_of(trace)) for trace in traces]
            asked = [pair for pair in keyed if not (late and pair[0] in journal.rows)]
            told = None if progress is None else lambda: progress(len(journal.rows))
            if asked:
                kept_judgements(judge_of(judge) if late else judge, asked, journal, told)
            said = [judgement_of(journal.rows[key]) for key, _ in keyed]
        judged = [with_judgement(t, name, one) for t, one in zip(traces, said, strict=True)]
        write_answers(out / TRACES, judged)
    return judged


def unanswered(prompts: PromptSet, out: Path) -> dict[str, Prompt]:
    """Prompts that have no answer in a folder yet, by their ids."""
    known = kept_rows(out / ANSWERS)
    return {prompt.id: prompt for prompt in prompts.prompts if prompt.id not in known}


def unjudged(judge: str, traces: Sequence[Trace], out: Path) -> dict[str, Trace]:
    """Records on which a judge has said nothing in a folder yet, or nothing that can be read."""
    known = kept_rows(_verdicts(out, judge))
    said = {key for key, row in known.items() if row["verdict"] != "unscored"}
    return {key: trace for trace in traces if (key := _key(trace)) not in said}


def _verdicts(out: Path, judge: str) -> Path:
    name = re.sub(r"[^A-Za-z0-9.-]+", "-", judge)[:40]
    return out / f"judge-{name}-{hashlib.sha256(judge.encode()).hexdigest()[:8]}.journal"


def _key(trace: Trace) -> str:
    return f"{trace.prompt.id} {digest(astuple(answer_of(trace)))}"


@dataclass(frozen=True, slots=True)
class Part(Generic[T]):
    """What one process does at a time, and where."""

    folder: Path
    items: tuple[T, ...]


def in_parts(
    out: Path,
    missing: Callable[[], Mapping[str, T]],
    start: Callable[[], Callable[[Part[T]], object]],
    engine: Engine,
    progress: Count | None = None,
) -> bool:
    """Do this process's share of what is missing in a claimed folder; `join` is still to be called.

    Args:
        out: The folder.
        missing: What is to be done, by the names that its journals have; the same in all processes.
        start: Makes what does a part, see `Work`.
        engine: Where.
        progress: Called with the number of items that are done.

    Returns:
        Whether this process is the first, which goes on when all parts are done.
    """
    rank, mine = Rank.here(), out / f"{_PARTS}{workers(engine)}"

    def others() -> list[Path]:
        return [folder for folder in out.glob(f"{_PARTS}*") if folder != mine]

    if rank.first:  # what another number of processes has left
        join(out, others())
    else:
        rank.wait_for(lambda: not others() or None)
    items = missing()
    size = max(1, math.ceil(len(items) / (_EACH * workers(engine))))
    names = list(items)
    parts = [
        Part(
            mine / f"{at:07}-{digest(names[at : at + size])}",
            tuple(items[name] for name in names[at : at + size]),
        )
        for at in range(0, len(names), size)
    ]
    done = 0

    def told(part: Part[T]) -> None:
        nonlocal done
        done += len(part.items)
        if progress is not None:
            progress(done)

    run_shards(lambda: parts, Work(partial(_marking, start), _is_done), engine, told)
    return rank.first


def _marking(start: Callable[[], Callable[[Part[T]], object]]) -> Callable[[Part[T]], None]:
    do = start()

    def marked(part: Part[T]) -> None:
        do(part)
        write_text(part.folder / _DONE, "")

    return marked


def _is_done(part: Part[T]) -> bool:
    return (part.folder / _DONE).is_file()


def join(out: Path, folders: list[Path] | None = None) -> None:
    """Put the rows of parts into the journals of the whole, and remove the parts.

    Args:
        out: The folder, which no other process writes into.
        folders: Of parts; all that are there by default.
    """
    for folder in out.glob(f"{_PARTS}*") if folders is None else folders:
        for path in sorted(folder.glob("*/*.journal")):
            with Journal(path) as part, Journal(out / path.name) as whole:
                whole.add(*(r for key, r in part.rows.items() if whole.rows.get(key) != r))
        remove_temporary(folder)
