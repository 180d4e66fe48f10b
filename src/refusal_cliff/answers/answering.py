"""generate, judge and evaluate on files and folders: what the commands call."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from typing import Any

from refusal_cliff.answers.benchmarks import BENCHMARKS, load_benchmark
from refusal_cliff.answers.collect import (
    GENERATE,
    LEFT_OUT,
    Part,
    generate_answers,
    in_parts,
    judge_answers,
    made_from,
    unanswered,
    unjudged,
)
from refusal_cliff.answers.correction import (
    CorrectedOutcomes,
    JudgeError,
    corrected,
    known_error,
    read_error,
)
from refusal_cliff.answers.outcomes import Change, Outcomes, as_rows, compare, evaluate
from refusal_cliff.data.examples import PromptSet, read_prompt_set
from refusal_cliff.data.reading import DEFAULT, Reading
from refusal_cliff.data.traces import read_answers, write_left_out
from refusal_cliff.data.types import LeftOut, Prompt, Trace
from refusal_cliff.errors import RefusalCliffError
from refusal_cliff.folders import require_output
from refusal_cliff.generate.backend import Backend, LocalBackend
from refusal_cliff.generate.endpoint import EndpointBackend, EndpointConfig
from refusal_cliff.generate.sampling import repeated
from refusal_cliff.io import write_json
from refusal_cliff.judges import Judge
from refusal_cliff.judges.choose import full_name, judge_of
from refusal_cliff.model.subject import between, load
from refusal_cliff.progress import Count
from refusal_cliff.settings import Engine, GenerationConfig, JudgeSettings, Loading, Server
from refusal_cliff.sharded import HERE, claim_together, shares
from refusal_cliff.thinking.formats import KNOWN, Markers
from refusal_cliff.user_text import json_object

RATES = "rates.json"
NOT_NAMED = "not named in the file"


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Rates of judged answers.

    Attributes:
        judge: Who judged.
        outcomes: All, then by source and category.
        changes: Against an earlier run of the same prompts.
        left_out: Rows without an answer.
        left_out_before: Those of the earlier run.
        error: How the judge errs; ``None`` where nobody has measured it.
        corrected: The outcomes without that error; empty where it is not known.
    """

    judge: str
    outcomes: list[Outcomes]
    changes: list[Change]
    left_out: list[LeftOut]
    left_out_before: Sequence[LeftOut] = ()
    error: JudgeError | None = None
    corrected: Sequence[CorrectedOutcomes] = ()

    def as_json(self) -> dict[str, Any]:
        """What ``rates.json`` holds."""
        return {
            "judge": self.judge,
            "left_out": len(self.left_out),
            "left_out_before": len(self.left_out_before),
            "outcomes": as_rows(self.outcomes),
            "changes": as_rows(self.changes),
            "judge_error": None if self.error is None else asdict(self.error),
            "corrected": [asdict(row) for row in self.corrected],
        }


def prompts_of(
    source: str,
    *,
    reading: Reading = DEFAULT,
    revision: str | None = None,
    limit: int | None = None,
    samples: int = 1,
) -> PromptSet:
    """Prompts of a benchmark or a file, each as often as it is to be answered.

    Args:
        source: A key of ``BENCHMARKS``, or whatever `read_rows` reads.
        reading: How the rows of what is no benchmark are read.
        revision: Commit of a benchmark's data set.
        limit: Only the first prompts.
        samples: Answers to each.

    Raises:
        RefusalCliffError: There is no such source, or it has no usable prompt.
    """
    if source in BENCHMARKS:
        found = load_benchmark(source, revision)
    else:
        _refuse_misspelt(source)
        found = read_prompt_set(source, reading)
    return PromptSet(repeated(found.prompts[:limit], samples), found.left_out)


def backend_of(
    model: str,
    generation: GenerationConfig,
    loading: Loading,
    server: Server,
    markers: Sequence[Markers] = KNOWN,
) -> Backend:
    """Who answers: a model on this machine, or a server where its address is given.

    Args:
        model: Name of the model, here or there.
        generation: How it writes; no server is given a thinking budget.
        loading: How it is loaded here.
        server: Where it is asked else.
        markers: What stands around a thought in the texts of a server, and, where a user named
            them, in what the model here writes.

    Raises:
        RefusalCliffError: The model cannot be loaded, or the server's settings are wrong.
    """
    if server.url is None:
        return LocalBackend(between(load(model, loading), markers), generation)
    return endpoint_of(model, generation, loading, server, markers)


def endpoint_of(
    model: str,
    generation: GenerationConfig,
    loading: Loading,
    server: Server,
    markers: Sequence[Markers] = KNOWN,
) -> EndpointBackend:
    """A server that answers, see `backend_of`.

    Raises:
        RefusalCliffError: The server's settings are wrong.
    """
    config = EndpointConfig(
        server.model or model,
        server,
        replace(generation, thinking_budget=None),
        loading.system,
        _extra(generation, loading, server),
        tuple(markers),
    )
    return EndpointBackend(config)


def ask_and_judge(
    backend: Backend,
    prompts: PromptSet,
    judge: JudgeSettings,
    out: Path,
    *,
    source: str,
    engine: Engine = HERE,
    loaded: Callable[[], Backend] | None = None,
    progress: Count | None = None,
) -> Evaluation | None:
    """Ask, judge and count; an interrupted run goes on where it was.

    Args:
        backend: Who answers.
        prompts: What is asked.
        judge: Who judges.
        out: The folder, see `collect`.
        source: File or benchmark, recorded.
        engine: Where both is done.
        loaded: Makes the backend in another process, for Ray.
        progress: Called with the number of answers so far.

    Returns:
        The rates; ``None`` in a process that is not the first of its launch.

    Raises:
        RefusalCliffError: Nobody answers, or the folder is about something else.
    """
    chosen = judge if shares(engine) else judge_of(judge)
    if shares(engine):
        claim_together(out, GENERATE, made_from(backend, prompts, source), "answers")
        start = partial(_asking, loaded or (lambda: backend), judge, source)
        if not in_parts(out, partial(unanswered, prompts, out), start, engine, progress):
            return None
    found = generate_answers(backend, prompts, out, source=source, progress=progress)
    return _judged(chosen, found.traces, found.left_out, out, None)


def _asking(
    loaded: Callable[[], Backend], judge: JudgeSettings, source: str
) -> Callable[[Part[Prompt]], None]:
    backend, judging = loaded(), _judging(judge)

    def ask(part: Part[Prompt]) -> None:
        prompts = PromptSet(list(part.items))
        found = generate_answers(backend, prompts, part.folder, source=source)
        judging(Part(part.folder, tuple(found.traces)))

    return ask


def _judging(judge: JudgeSettings) -> Callable[[Part[Trace]], object]:
    chosen = judge_of(judge)
    return lambda part: judge_answers(chosen, part.items, part.folder)


def judge_source(
    source: str | Path,
    judge: JudgeSettings,
    out: Path,
    *,
    reading: Reading = DEFAULT,
    engine: Engine = HERE,
    progress: Count | None = None,
) -> Evaluation | None:
    """Judge the answers in a file; rows that are not usable are listed beside the verdicts.

    Returns:
        The rates; ``None`` in a process that is not the first of its launch.

    Raises:
        RefusalCliffError: The file cannot be read, or holds no answer.
    """
    require_output(out, "judge", (source,))
    traces, left_out = read_answers(source, reading)
    claim_together(out, "judge", {"source": str(source)}, "verdicts")
    chosen = judge if shares(engine) else judge_of(judge)
    if shares(engine):
        missing = partial(unjudged, full_name(judge), traces, out)
        if not in_parts(out, missing, partial(_judging, judge), engine, progress):
            return None
    found = _judged(chosen, traces, left_out, out, progress)
    write_left_out(out / LEFT_OUT, left_out)
    return found


def evaluate_files(
    traces: str | Path,
    before: str | Path | None = None,
    judge_error: Path | None = None,
    reading: Reading = DEFAULT,
) -> Evaluation:
    """Rates of judged answers in a file, and what changed since another.

    Args:
        traces: The judged answers, see `read_rows`.
        before: Those of the same prompts before a change.
        judge_error: What `judge calibrate` wrote of their judge; the error that ships with the
            package if there is one and none is given.
        reading: How the rows of both are read.

    Raises:
        RefusalCliffError: A file holds no judged answers, the two have no prompt in common, or the
            error is that of another judge.
    """
    judged, left_out = read_answers(traces, reading)
    earlier, left_before = ([], []) if before is None else read_answers(before, reading)
    changes = compare(earlier, judged) if earlier else []
    judge = ", ".join(sorted({trace.judge or NOT_NAMED for trace in judged}))
    error = known_error(judge) if judge_error is None else read_error(judge_error)
    found = _counted(judge, judged, changes, left_out, error)
    return replace(found, left_out_before=left_before)


def _judged(
    judge: Judge | JudgeSettings,
    traces: list[Trace],
    left_out: list[LeftOut],
    out: Path,
    progress: Count | None,
) -> Evaluation:
    if not traces:
        raise RefusalCliffError(
            f"No prompt was answered; the reasons are in {out / LEFT_OUT}. The first: "
            f"{left_out[0].reason if left_out else 'there were no prompts'}"
        )
    judged = judge_answers(judge, traces, out, progress=progress)
    name = judged[0].judge
    found = _counted(name, judged, [], left_out, known_error(name))
    write_json(out / RATES, found.as_json())
    return found


def _counted(
    judge: str,
    traces: Sequence[Trace],
    changes: list[Change],
    left_out: list[LeftOut],
    error: JudgeError | None,
) -> Evaluation:
    outcomes = evaluate(traces)
    without = [] if error is None else corrected(traces, outcomes, error)
    return Evaluation(judge, outcomes, changes, left_out, error=error, corrected=without)


def _refuse_misspelt(source: str) -> None:
    """Say which benchmark may be meant, before the network is asked ten times for another."""
    plain = "/" not in source and not Path(source).suffix
    close = get_close_matches(source, BENCHMARKS, 1) if plain else []
    if close and not Path(source).exists():
        raise RefusalCliffError(
            f"There is no benchmark and no file {source!r}. Did you mean {close[0]}? "
            f"The benchmarks are: {', '.join(BENCHMARKS)}."
        )


def _extra(generation: GenerationConfig, loading: Loading, server: Server) -> dict[str, Any]:
    """Fields of a request that only some servers know; what a user names wins."""
    arguments = dict(loading.chat.arguments)
    told = {"chat_template_kwargs": arguments} if arguments else {}
    likely = {"top_k": generation.top_k} if generation.top_k else {}
    return {**told, **likely, **json_object(server.extra_body)}
