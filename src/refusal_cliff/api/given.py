"""What callers give to the steps, checked before any work, and how a step has a model to itself."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Concatenate, ParamSpec, TypeVar

import numpy as np
import torch

from refusal_cliff.data.types import Prompt, Trace
from refusal_cliff.errors import RefusalCliffError
from refusal_cliff.model.subject import Subject, in_turn

P = ParamSpec("P")
T = TypeVar("T")


def on_model(
    step: Callable[Concatenate[Subject, P], T],
) -> Callable[Concatenate[Subject, P], T]:
    """A step that may be called from any thread, and in any gradient or autocast context."""

    @wraps(step)
    def run(model: Subject, *args: P.args, **kwargs: P.kwargs) -> T:
        if not isinstance(model, Subject):
            raise RefusalCliffError(
                f"{step.__name__} was given {_kind(model)} as the model. Give what load_model "
                "returns."
            )
        plain = torch.autocast(model.device.type, enabled=False)
        with in_turn(model), torch.inference_mode(False), torch.enable_grad(), plain:
            return step(model, *args, **kwargs)

    return run


def all_of(kind: type[T], given: Iterable[T], what: str) -> list[T]:
    """All that is given, once each of it is known to be of a kind.

    Args:
        kind: Its class.
        given: A list, a result of a step, a generator.
        what: How to get it, for the error.

    Raises:
        RefusalCliffError: Something else is among it.
    """
    try:
        found = list(given)
    except TypeError as error:
        raise RefusalCliffError(f"Give a list of {kind.__name__}, not {_kind(given)}.") from error
    wrong = [one for one in found if not isinstance(one, kind)]
    if wrong:
        raise RefusalCliffError(f"Give {kind.__name__}s, not {_kind(wrong[0])}: {what}.")
    return found


def prompts_of(given: Iterable[Prompt]) -> list[Prompt]:
    """Prompts, each with an id of its own.

    Raises:
        RefusalCliffError: Something else is among them, or two have one id.
    """
    found = all_of(Prompt, given, "what read_prompts returns")
    _each_once(found)
    return found


def traces_of(given: Iterable[Trace]) -> list[Trace]:
    """Judged traces of different prompts.

    Raises:
        RefusalCliffError: Something else is among them, two have one id, or nobody judged them.
    """
    found = all_of(Trace, given, "what ask and generate_traces return")
    _each_once([trace.prompt for trace in found])
    if found and all(t.verdict == "unscored" and not t.judge for t in found):
        raise RefusalCliffError("These traces are not judged yet. Call judge_traces first, or ask.")
    return found


def _each_once(prompts: list[Prompt]) -> None:
    """Ids tell states, scores and pairs apart."""
    seen: set[str] = set()
    for prompt in prompts:
        if prompt.id in seen:
            raise RefusalCliffError(
                f"The id {prompt.id!r} is used twice. Give each prompt an id of its own "
                "(dataclasses.replace(prompt, id=...)). For several answers to each prompt, ask "
                "repeated(prompts, n)."
            )
        seen.add(prompt.id)


@contextmanager
def own_randomness() -> Iterator[None]:
    """Leave the random numbers of the process as they were: training seeds all of them."""
    python, numpy = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(range(torch.cuda.device_count())):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)


def _kind(value: object) -> str:
    return f"a {type(value).__name__}"
