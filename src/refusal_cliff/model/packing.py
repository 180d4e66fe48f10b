"""Weights of linear layers laid out for the processor, while a model only reads them.

PyTorch multiplies float32 matrices on a processor by MKL, which lays the weights out anew in every
call and uses only half of what some processors can do. oneDNN multiplies weights that were laid out
once; ``torch.compile`` does the same. A model that writes 16 answers at once is several times
faster so (docs/results/performance.md). What is computed stays the same but for rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial, wraps
from typing import Any, Concatenate, ParamSpec, TypeVar, cast

import psutil
import torch
from torch.nn.functional import linear

from refusal_cliff.model.subject import Subject

P = ParamSpec("P")
T = TypeVar("T")
_ROWS = 16
"""Rows that the layout is chosen for; others are as fast."""
_SPARE = 2
"""Memory that must be free, in sizes of what is laid out: the copy, and as much for the work."""


def on_packed_weights(
    work: Callable[Concatenate[Subject, P], T],
) -> Callable[Concatenate[Subject, P], T]:
    """Let a function that only reads the weights of its first argument work as in `packed`."""

    @wraps(work)
    def packing(subject: Subject, *arguments: P.args, **named: P.kwargs) -> T:
        with packed(subject):
            return work(subject, *arguments, **named)

    return packing


@contextmanager
def packed(subject: Subject) -> Iterator[None]:
    """Multiply by weights that are laid out once, until the block ends.

    Does nothing but for float32 on a processor, where there is memory for a copy of the weights.
    In the block the weights must not change: the copies would not.
    """
    layers = _layers(subject)
    copied = sum(layer.weight.nbytes for layer in layers)
    if copied and _SPARE * copied > psutil.virtual_memory().available:
        layers = []
    try:
        for layer in layers:
            weight = torch.ops.mkldnn._reorder_linear_weight(layer.weight.detach(), _ROWS)
            cast("Any", layer).forward = partial(_forward, layer, weight)
        yield
    finally:
        for layer in layers:
            vars(layer).pop("forward", None)


def _layers(subject: Subject) -> list[torch.nn.Linear]:
    """What can be laid out; a layer whose ``forward`` is replaced already stays as it is."""
    if subject.device.type != "cpu" or not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        return []
    if _limited():
        return []
    return [
        module
        for module in subject.model.modules()
        if type(module) is torch.nn.Linear
        and "forward" not in vars(module)
        and module.weight.dtype == torch.float32
        and module.weight.device.type == "cpu"
    ]


def _limited() -> bool:
    """Whether the process may not grow as it likes: oneDNN crashes where it is refused memory."""
    try:
        import resource
    except ImportError:  # Windows has no such limit
        return False
    return resource.getrlimit(resource.RLIMIT_AS)[0] != resource.RLIM_INFINITY


def _forward(layer: torch.nn.Linear, weight: torch.Tensor, states: torch.Tensor) -> torch.Tensor:
    if not torch.is_grad_enabled():  # nothing flows back through a packed weight
        # Short of memory, oneDNN says only that it cannot: then PyTorch's own product says why.
        with suppress(RuntimeError):
            return torch.ops.mkldnn._linear_pointwise(states, weight, layer.bias, "none", [], "")
    return linear(states, layer.weight, layer.bias)
