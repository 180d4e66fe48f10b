"""What a model is still good for: tasks of the lm-evaluation-harness, answers judged alone.

Only tasks in which the model writes are allowed: of a reasoning model, the likelihood of a choice
right after the question says nothing about what it answers after thinking.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from refusal_cliff.errors import RefusalCliffError, not_installed
from refusal_cliff.generate.greedy import bare_generation_config
from refusal_cliff.model.packing import on_packed_weights
from refusal_cliff.model.subject import Subject
from refusal_cliff.thinking.formats import added_tokens

_GENERATES = "generate_until"


@dataclass(frozen=True, slots=True)
class TaskScore:
    """One metric of one task.

    Attributes:
        task: Name of the task.
        metric: Name of the metric, its filter included: ``exact_match,none``.
        value: The metric.
        stderr: Its standard error, as the harness gives it; ``None`` if it gives none.
        n: Questions asked.
    """

    task: str
    metric: str
    value: float
    stderr: float | None
    n: int


@on_packed_weights
def utility(
    subject: Subject,
    tasks: Sequence[str],
    *,
    include: Path | None = None,
    limit: int | None = None,
    batch_size: int = 8,
) -> list[TaskScore]:
    """Run tasks with the chat template, and score what follows the thinking.

    Args:
        subject: The model.
        tasks: Names of tasks, such as ``gsm8k``; each must be one in which the model writes.
        include: Folder with task files (YAML), in place of those of the harness.
        limit: Only the first questions of each task.
        batch_size: Questions at once.

    Raises:
        RefusalCliffError: The harness is not installed, a task is unknown, or it compares
            likelihoods.
    """
    harness, hf, manager_type = _harness()
    own = {} if include is None else {"include_path": str(include), "include_defaults": False}
    manager = manager_type(**own)
    unknown = [name for name in tasks if name not in manager.all_tasks]
    if unknown:
        raise RefusalCliffError(
            f"Unknown task(s) {', '.join(unknown)}. List all tasks with: lm-eval ls tasks. For "
            "tasks of your own, give their folder as include."
        )
    for name, task in manager.load(list(tasks))["tasks"].items():
        output_type = task.get_config("output_type")
        if output_type != _GENERATES:
            raise RefusalCliffError(
                f"Task {name} compares likelihoods ({output_type}), which says nothing about an "
                "answer after thinking. Choose a task in which the model writes."
            )
    model = hf(
        pretrained=subject.model,
        tokenizer=subject.tokenizer,
        batch_size=batch_size,
        think_end_token=_end_of_thinking(subject),
    )
    with bare_generation_config(subject.model, subject.ending.stops):
        found = harness(
            model=model,
            tasks=list(tasks),
            task_manager=manager,
            limit=limit,
            apply_chat_template=True,
            log_samples=False,
            bootstrap_iters=0,
        )
    return [
        score
        for name in found["configs"]
        for score in _scores(name, found["results"][name], found["n-samples"][name]["effective"])
    ]


def _scores(task: str, results: dict[str, Any], n: int) -> list[TaskScore]:
    scores = []
    for metric, value in results.items():
        name, comma, rest = metric.partition(",")
        if comma and not name.endswith("_stderr") and isinstance(value, int | float):
            error = results.get(f"{name}_stderr,{rest}")
            stderr = float(error) if isinstance(error, int | float) else None
            scores.append(TaskScore(task, metric, float(value), stderr, n))
    return scores


def _end_of_thinking(subject: Subject) -> int | str | None:
    """The token that ends the thinking, at which the harness cuts; else its text."""
    closer = subject.format.closer
    if not closer:
        return None
    return added_tokens(subject.tokenizer).get(closer, closer)


def _harness() -> tuple[Any, Any, Any]:
    try:
        from lm_eval import simple_evaluate
        from lm_eval.models.huggingface import HFLM
        from lm_eval.tasks import TaskManager
    except ImportError as error:
        what = "Utility is measured with the lm-evaluation-harness"
        raise not_installed(what, "utility") from error
    return simple_evaluate, HFLM, TaskManager
