"""A data set to the few rows that are worth training on, with an account of all the others.

The folder holds what `pool` and `shards` write, ``select.json`` (what was
scored with what), and for the choice made last ``selected.jsonl``, ``selection.json`` and
``left-out.jsonl``. Scores do not depend on the choice: another strategy or fraction is chosen from
the same scores at once.
"""

from __future__ import annotations

import itertools
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from refusal_cliff import __version__
from refusal_cliff.data.reading import DEFAULT, Reading
from refusal_cliff.data.rows import source_digest
from refusal_cliff.data.traces import PromptFile
from refusal_cliff.data.types import Prompt, SafetyExample, complies
from refusal_cliff.errors import RefusalCliffError
from refusal_cliff.io import (
    atomic_path,
    read_rows_of_ours,
    read_text,
    remove_stale,
    sha256_file,
    write_json,
)
from refusal_cliff.judges.choose import full_name
from refusal_cliff.model.subject import Subject, load
from refusal_cliff.probe.files import DESCRIPTION as PROBE
from refusal_cliff.probe.files import WEIGHTS, probes_of
from refusal_cliff.progress import Watch, unwatched
from refusal_cliff.select.pool import (
    PoolCounts,
    left_out_path,
    read_candidates,
    read_counts,
    read_pool,
    scores_path,
    shard_path,
)
from refusal_cliff.select.shards import (
    ScoringPlan,
    ShardScorer,
    is_scored,
    own_words,
    scored_candidates,
    tokens_spent,
    unscored_path,
)
from refusal_cliff.select.strategies import Candidate, how_many, select
from refusal_cliff.settings import Engine, Selecting
from refusal_cliff.sharded import HERE, Rank, Work, claim_together, loading_here, run_shards

SELECTED, REPORT, LEFT_OUT = "selected.jsonl", "selection.json", "left-out.jsonl"


@dataclass(frozen=True, slots=True)
class Source:
    """The data to choose from.

    Attributes:
        name: See `source_rows`.
        evaluation: Files of prompts that must not be trained on.
        reading: How its rows are read.
    """

    name: str
    evaluation: tuple[PromptFile, ...]
    reading: Reading = DEFAULT


@dataclass(frozen=True, slots=True)
class Selected:
    """What `run_selection` did.

    Attributes:
        rows: Rows of the data set.
        scored: Candidates with scores.
        chosen: Rows of ``selected.jsonl``.
        left_out: Reasons why rows were left out, and how many.
    """

    rows: int
    scored: int
    chosen: int
    left_out: dict[str, int]


def evaluation_of(probe: Path) -> tuple[PromptFile, ...]:
    """The prompts of the run that a probe comes from: those it was fitted on and tested on."""
    folder = probe.resolve().parent / "prompts"
    files = (folder / name for name in ("fit.jsonl", "test.jsonl"))
    return tuple(PromptFile(file) for file in files if file.is_file())


def run_selection(
    plan: ScoringPlan, source: Source, *, engine: Engine = HERE, watch: Watch = unwatched
) -> Selected | None:
    """Read the data, score what is not scored yet, and choose; ``watch`` is told what is done.

    Returns:
        What was done; ``None`` in a process that is not the first of its launch.

    Raises:
        RefusalCliffError: There is nothing to check contamination against, the folder holds scores
            made with other settings, or the data set cannot be read; fewer examples have scores
            than are wanted, or the strategy lacks what it needs.
    """
    rank, subject = Rank.here(), load(plan.model, loading_here(plan.loading, engine))
    digest = source_digest(source.name)
    described = _described(plan, source, subject, engine)
    claim_together(plan.out, "select", described, "scores")
    if rank.first:
        counts = read_counts(plan.out, digest) or read_pool(
            source.name,
            plan.out,
            subject.format,
            _prompts(source.evaluation),
            own_thinking=plan.own_thinking,
            reading=source.reading,
            shard_size=engine.shard_size,
            progress=lambda rows: watch("rows read", rows, None),
        )
    else:
        counts = rank.wait_for(lambda: read_counts(plan.out, digest))
    if counts.kept == 0:
        why = ", ".join(f"{n} {reason}" for reason, n in counts.left_out.items()) or "it is empty"
        raise RefusalCliffError(
            f"{source.name} holds no row that can be scored ({counts.rows} rows; {why}). The rows "
            "and their reasons are in the folder pool of the output."
        )
    done = itertools.count(1)
    run_shards(
        lambda: range(counts.shards),
        Work(
            partial(ShardScorer, plan, None if engine.name == "ray" else subject),
            partial(is_scored, plan.out),
        ),
        engine,
        lambda _: watch("shards scored", next(done), counts.shards),
    )
    if not rank.first:
        return None
    remove_stale(plan.out)  # of a process that was killed while the others went on
    return _choose(plan.out, counts, plan.selecting)


def _prompts(files: Sequence[PromptFile]) -> list[Prompt]:
    if not files:
        raise RefusalCliffError(
            "There are no evaluation prompts to keep out of the training data: the probe's folder "
            "is not part of a run. Name the files of all prompts that the repaired model will be "
            "evaluated on (--evaluation FILE)."
        )
    return [prompt for file in files for prompt in file.prompts("harmful")]


def _content(file: PromptFile) -> str:
    """Its content, and where in it the requests are, if a user had to say so."""
    texts = file.reading.columns.get("text")
    return sha256_file(file.path) + (f" {texts}" if texts else "")


def _described(
    plan: ScoringPlan, source: Source, subject: Subject, engine: Engine
) -> dict[str, Any]:
    """What the folder is about."""
    probes_of(plan.probe, subject)
    return {
        "model": subject.name,
        "fingerprint": subject.fingerprint,
        "probe_sha256": sha256_file(plan.probe / PROBE),
        "probe_weights_sha256": sha256_file(plan.probe / WEIGHTS),
        "source": source.name,
        **source.reading.by_default("harmful").described(),
        "evaluation": sorted(map(_content, source.evaluation)),
        "thinking": plan.selecting.thinking,
        "target": plan.selecting.target,
        "generation": plan.generation.decoding() if plan.own_thinking else None,
        "judge": full_name(plan.judge) if plan.own_thinking else None,
        "shard_size": engine.shard_size,
        "version": __version__,
    }


def _choose(out: Path, counts: PoolCounts, choice: Selecting) -> Selected:
    """Choose from the scores of a folder, and write the rows and the report."""
    pool = scored_candidates(out, counts.shards, states=choice.strategy == "diverse")
    n = how_many(len(pool), choice.fraction) if choice.n is None else choice.n
    left_out = _write_left_out(out, counts.shards)
    chosen = select(choice.strategy, pool, n, choice.seed)
    _write_selected(out, counts.shards, chosen)
    done = Selected(counts.rows, len(pool), len(chosen), left_out)
    write_json(out / REPORT, _report(out, counts, choice, pool, chosen, done))
    return done


def _write_left_out(out: Path, shards: int) -> dict[str, int]:
    """Copy the lists of all shards into one, and count the reasons."""
    reasons = Counter[str]()
    with atomic_path(out / LEFT_OUT) as temporary, temporary.open("w", encoding="utf-8") as file:
        for path in (p(out, n) for n in range(shards) for p in (left_out_path, unscored_path)):
            reasons.update(row["reason"] for row in read_rows_of_ours(path, "reason"))
            file.write(read_text(path))
    return dict(reasons)


def _write_selected(out: Path, shards: int, chosen: Sequence[Candidate]) -> None:
    """The training rows in the order of the choice; texts are read shard by shard."""
    wanted = {int(candidate.id): candidate for candidate in chosen}
    rows: dict[int, dict[str, Any]] = {}
    for number in range(shards):
        words = own_words(scores_path(out, number), set(wanted))
        for row, example in read_candidates(shard_path(out, number)) if words else ():
            if row in words:
                rows[row] = _training_row(row, example, *words[row], wanted[row])
    with atomic_path(out / SELECTED) as temporary, temporary.open("w", encoding="utf-8") as file:
        for candidate in chosen:
            file.write(json.dumps(rows[int(candidate.id)], ensure_ascii=False) + "\n")


def _training_row(
    row: int,
    example: SafetyExample,
    thought: str | None,
    answer: str | None,
    candidate: Candidate,
) -> dict[str, Any]:
    prompt = example.prompt
    return {
        "id": prompt.id,
        "prompt": prompt.text,
        "thinking": example.thinking if thought is None else thought,
        "response": example.response if answer is None else answer,
        "label": prompt.label,
        "group": prompt.group,
        "category": prompt.category,
        "tags": list(prompt.tags),
        "row": row,
        "plateau": candidate.plateau,
        "final": candidate.final,
        "cliff": candidate.cliff,
    }


def _report(
    out: Path,
    counts: PoolCounts,
    choice: Selecting,
    pool: Sequence[Candidate],
    chosen: Sequence[Candidate],
    done: Selected,
) -> dict[str, Any]:
    passed, written = tokens_spent(out, counts.shards)
    return {
        "strategy": choice.strategy,
        "seed": choice.seed,
        **asdict(done),
        "evaluation_prompts": counts.evaluation,
        "smallest_cliff_chosen": min(
            (c.cliff for c in chosen if c.cliff is not None), default=None
        ),
        "complied_in_pool": sum(complies(c.verdict) for c in pool),
        "complied_chosen": sum(complies(c.verdict) for c in chosen),
        "categories_in_pool": dict(Counter(c.category for c in pool).most_common()),
        "categories_chosen": dict(Counter(c.category for c in chosen).most_common()),
        "tokens_scored": passed,
        "tokens_generated": written,
    }
