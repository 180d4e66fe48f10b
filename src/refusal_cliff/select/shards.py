"""Scoring shards of candidates: each shard is read, scored and written on its own, whole or not.

So any number of processes can score the shards of one folder, in any order, and a shard that is
there is never scored again. Beside ``scores/scores-00000.parquet`` stand the candidates that could
not be scored, with the reason: ``scores/left-out-00000.jsonl``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from refusal_cliff.data.types import LeftOut, SafetyExample, Trace
from refusal_cliff.errors import RefusalCliffError
from refusal_cliff.generate import generate
from refusal_cliff.io import write_json_lines
from refusal_cliff.judges import RulesJudge, judge_traces
from refusal_cliff.judges.choose import judge_of
from refusal_cliff.model.subject import Subject, load
from refusal_cliff.probe.files import probes_of
from refusal_cliff.probe.fit import ProbeSet
from refusal_cliff.select.candidates import measure
from refusal_cliff.select.pool import Numbered, read_candidates, scores_path, shard_path
from refusal_cliff.select.strategies import Candidate
from refusal_cliff.select.targets import own_refusals
from refusal_cliff.settings import BY_RULES, GenerationConfig, JudgeSettings, Loading, Selecting
from refusal_cliff.tables import read_parquet, write_parquet
from refusal_cliff.thinking import Spans, render_prompt, tokenise_trace

TOO_LONG = "longer than the context"
NEVER_CLOSED = "its own thinking never closed"
_SCORES = ("plateau", "final", "plateau_logit", "final_logit")
_COLUMNS = (
    ("row", pa.int64()),
    ("category", pa.string()),
    ("tokens", pa.int32()),
    ("written", pa.int32()),
    ("answer", pa.int32()),
    *((name, pa.float64()) for name in _SCORES),
    ("verdict", pa.string()),
    ("refusal_words", pa.bool_()),
    ("state", pa.list_(pa.float32())),
    ("thinking", pa.string()),
    ("response", pa.string()),
)
_OF_CANDIDATE = ("category", "tokens", *_SCORES, "verdict")
_NARROW = ("row", *_OF_CANDIDATE, "refusal_words")


@dataclass(frozen=True, slots=True)
class ScoringPlan:
    """How candidates are scored, and all that another process needs to do the same.

    Attributes:
        model: See `load_subject`.
        probe: Folder of the probe.
        out: Folder of the selection.
        selecting: Whose thinking is scored and whose answers are trained on, see `own_refusals`;
            and which candidates are chosen then.
        generation: How the model writes.
        loading: How it is loaded.
        judge: Who says what the model's own answers do.
    """

    model: str
    probe: Path
    out: Path
    selecting: Selecting = Selecting()
    generation: GenerationConfig = GenerationConfig()
    loading: Loading = Loading()
    judge: JudgeSettings = BY_RULES

    def __post_init__(self) -> None:
        if self.own_target and not self.own_thinking:
            raise RefusalCliffError(
                "A refusal in the model's own words follows its own thinking. Use --thinking own "
                "with --target own."
            )

    @property
    def own_thinking(self) -> bool:
        """Whether what the model itself thinks is scored, and not the thinking of the data."""
        return self.selecting.thinking == "own"

    @property
    def own_target(self) -> bool:
        """Whether refusals in the model's own words are trained on, and not the data's answers."""
        return self.selecting.target == "own"


class ShardScorer:
    """Scores shards with one replica of the model.

    Args:
        plan: How.
        subject: The model, if it is loaded already.
    """

    def __init__(self, plan: ScoringPlan, subject: Subject | None = None) -> None:
        self._plan = plan
        self._subject = subject or load(plan.model, plan.loading)
        probes = probes_of(plan.probe, self._subject)
        self._probes: ProbeSet = replace(probes, probes=(probes.chosen,))
        self._judge = judge_of(plan.judge) if plan.own_thinking else RulesJudge()

    def __call__(self, number: int) -> None:
        """Score one shard and write it; the scores come last, so that they vouch for the rest."""
        plan = self._plan
        rows = read_candidates(shard_path(plan.out, number))
        made = self._written(rows) if plan.own_thinking else [self._tokenised(*row) for row in rows]
        left_out = [one for one in made if isinstance(one, LeftOut)]
        numbers = [row for (row, _), one in zip(rows, made, strict=True) if isinstance(one, Trace)]
        traces = [one for one in made if isinstance(one, Trace)]
        if plan.own_thinking:
            traces = judge_traces(traces, self._judge)
        taken = list(zip(numbers, traces, self._targets(traces), strict=True))
        if plan.own_target:
            left_out += [_no_target(row, trace) for row, trace, target in taken if not target]
            taken = [one for one in taken if one[2]]
        measured = measure(self._subject, self._probes, [trace for _, trace, _ in taken])
        left_out.sort(key=lambda why: why.row or 0)
        write_json_lines(unscored_path(plan.out, number), map(asdict, left_out))
        found = [_row(*one, scores, plan) for one, scores in zip(taken, measured, strict=True)]
        table = pa.Table.from_pylist(found, schema=pa.schema(_COLUMNS))
        write_parquet(scores_path(plan.out, number), table)

    def _targets(self, traces: Sequence[Trace]) -> list[Trace | None]:
        """What is trained on: its own answer where it refuses, or a refusal from its plateau."""
        if not self._plan.own_target:
            return [trace if self._plan.own_thinking else None for trace in traces]
        complied = [trace for trace in traces if trace.verdict != "refused"]
        most = self._plan.generation.max_new_tokens
        made = iter(own_refusals(self._subject, self._probes, complied, most, self._judge))
        return [trace if trace.verdict == "refused" else next(made) for trace in traces]

    def _written(self, rows: Sequence[Numbered]) -> list[Trace | LeftOut]:
        """What the model itself thinks and answers."""
        context = self._subject.context
        room = math.inf if context is None else context
        fits = [len(render_prompt(self._subject.tokenizer, e.prompt.text)) < room for _, e in rows]
        asked = [e.prompt for (_, e), fit in zip(rows, fits, strict=True) if fit]
        made = iter(generate(self._subject, asked, self._plan.generation) if asked else [])
        return [
            self._usable(n, next(made)) if fit else _too_long(n, e, "its prompt")
            for (n, e), fit in zip(rows, fits, strict=True)
        ]

    def _usable(self, row: int, trace: Trace) -> Trace | LeftOut:
        identity = trace.prompt.id
        if trace.spans is None:
            within = f"in {self._plan.generation.max_new_tokens} tokens"
            return LeftOut(identity, row, NEVER_CLOSED, within)
        if trace.spans.thinking == trace.spans.prompt:
            return LeftOut(identity, row, "no thinking", "the model answered at once")
        return trace

    def _tokenised(self, row: int, example: SafetyExample) -> Trace | LeftOut:
        """The thinking and answer of the data, as the model would have written them."""
        subject, identity = self._subject, example.prompt.id
        try:
            ids, spans = tokenise_trace(
                subject.tokenizer,
                subject.format,
                example.prompt.text,
                example.thinking,
                example.response,
            )
        except RefusalCliffError as error:
            return LeftOut(identity, row, "other format", str(error))
        if spans is None:
            marked = "the model's markers stand in the texts"
            return LeftOut(identity, row, "thinking never closes", marked)
        context = self._subject.context
        if context is not None and len(ids) > context:
            return _too_long(row, example, f"with {len(ids)} tokens it")
        return Trace(
            example.prompt, tuple(ids), spans, example.thinking, example.response, complete=True
        )


def unscored_path(out: Path, number: int) -> Path:
    """Candidates of one shard that could not be scored."""
    return out / "scores" / f"left-out-{number:05}.jsonl"


def is_scored(out: Path, number: int) -> bool:
    """Whether the scores of a shard are there and can be read, and its list too."""
    try:
        whole = set(_NARROW) <= set(pq.read_schema(scores_path(out, number)).names)
    except (OSError, pa.ArrowException):
        return False
    return whole and unscored_path(out, number).is_file()


def _too_long(row: int, example: SafetyExample, what: str) -> LeftOut:
    return LeftOut(example.prompt.id, row, TOO_LONG, f"{what} would not fit; it is never cut")


def _no_target(row: int, trace: Trace) -> LeftOut:
    why = "wherever its thinking was closed, it complied"
    return LeftOut(trace.prompt.id, row, "no refusal of its own", why)


def _row(
    row: int, trace: Trace, target: Trace | None, candidate: Candidate, plan: ScoringPlan
) -> dict[str, Any]:
    own = plan.own_thinking
    spans = trace.spans or Spans(0, 0, 0, 0)
    return {
        **{name: getattr(candidate, name) for name in _OF_CANDIDATE},
        "row": row,
        "written": len(trace.token_ids) - spans.prompt if own else 0,
        "answer": spans.total - spans.closing if own else 0,
        "refusal_words": candidate.refusal_words and own,
        "state": candidate.state,
        "thinking": None if target is None else target.thinking.strip(),
        "response": target.response.strip() if target is not None and plan.own_target else None,
    }


def scored_candidates(out: Path, shards: int, *, states: bool = False) -> list[Candidate]:
    """All scored candidates of a folder, their row numbers as ids.

    Args:
        out: Folder of the selection.
        shards: How many it has.
        states: Read the model's states too, 256 bytes a row.
    """
    found: list[Candidate] = []
    for number in range(shards):
        names = [*_NARROW, "state"] if states else list(_NARROW)
        for row in read_parquet(scores_path(out, number), names).to_pylist():
            state = row.pop("state", None)
            found.append(
                Candidate(
                    id=f"{row.pop('row'):012}",
                    state=None if state is None else np.array(state, dtype=np.float32),
                    **row,
                )
            )
    return found


def own_words(path: Path, rows: set[int]) -> dict[int, tuple[str | None, str | None]]:
    """The model's own thinking and answer, by row; ``None`` where those of the data are wanted."""
    table = read_parquet(path, ["row", "thinking", "response"]).to_pylist()
    return {row["row"]: (row["thinking"], row["response"]) for row in table if row["row"] in rows}


def tokens_spent(out: Path, shards: int) -> tuple[int, int]:
    """Tokens that went through the early-exit pass, and tokens that were generated for it."""
    passed = written = 0
    for number in range(shards):
        table = read_parquet(scores_path(out, number), ["tokens", "written"])
        passed += sum(table.column("tokens").to_pylist())
        written += sum(table.column("written").to_pylist())
    return passed, written
