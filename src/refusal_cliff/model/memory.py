"""Work in parts that fit into memory; where a batch does not, half as much is tried."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

import torch

T = TypeVar("T")

_SIGNS = (
    "out of memory",
    "not enough memory",
    "can't allocate memory",
    "cannot allocate memory",
    "cublas_status_alloc_failed",
)
"""What devices say; on a processor it is no exception of its own kind."""


class BatchLimit:
    """The most that a batch may hold, in whatever unit; it only ever falls.

    Attributes:
        size: The limit.
    """

    def __init__(self, size: int) -> None:
        self.size = size

    def run(self, work: Callable[[], T], used: int) -> T | None:
        """What a batch's work returns; ``None`` where memory ran out.

        The limit is then half of what the batch ``used``: try again with a smaller one, unless it
        cannot be smaller.
        """
        try:
            return work()
        except (RuntimeError, MemoryError) as error:
            if not ran_out_of_memory(error):
                raise
        # Here the error is gone, and with it its traceback, which held all that the batch made.
        self.size = max(1, used // 2)
        give_back()
        return None


def give_back() -> None:
    """Free what nothing needs any more, and give it back to the device."""
    gc.collect()  # what holds itself, such as a trainer and all of its states
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def ran_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that a device, or this machine, has no memory left."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return any(sign in str(error).lower() for sign in _SIGNS)


def in_parts(items: Iterable[T], size: Callable[[T], int], enough: int) -> Iterator[list[T]]:
    """Items in their order, a few at a time.

    Args:
        items: One item is not divided, however large.
        size: How large one is.
        enough: A part ends as soon as its items together are so large.
    """
    part, total = list[T](), 0
    for item in items:
        part.append(item)
        total += size(item)
        if total >= enough:
            yield part
            part, total = [], 0
    if part:
        yield part
