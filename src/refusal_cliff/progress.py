"""How long work tells where it is."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Protocol, TypeAlias

Progress: TypeAlias = Callable[[int, int], None]
"""Called with (done, total), now and then, and at the end."""
Count: TypeAlias = Callable[[int], None]
"""Called with all that is done so far."""
More: TypeAlias = Callable[[int], None]
"""Called with how many were just done."""


class Watch(Protocol):
    """What is told of work of several parts."""

    def __call__(self, what: str, done: int, total: int | None = None, note: str = "", /) -> None:
        """So much of a part is done.

        Args:
            what: The part.
            done: How much of it.
            total: Of how much; ``None`` where nobody knows.
            note: What else there is to say of it now.
        """


def unwatched(what: str, done: int, total: int | None = None, note: str = "") -> None:
    """Tell nobody."""


_listener: ContextVar[Callable[[str], None] | None] = ContextVar("listener", default=None)


def meanwhile(note: str) -> None:
    """Say what is at work between two steps of progress, to whoever listens.

    One step can take minutes, such as a batch of long answers; whoever watches then sees that it
    moves. No result depends on it, so that it is not handed from function to function. Who listens
    in one thread or process does not hear what another says.
    """
    listen = _listener.get()
    if listen is not None:
        listen(note)


@contextmanager
def heard_by(listen: Callable[[str], None]) -> Iterator[None]:
    """Let someone hear what `meanwhile` is told."""
    token = _listener.set(listen)
    try:
        yield
    finally:
        _listener.reset(token)
