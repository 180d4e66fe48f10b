"""What a chat template may cost: it is a program that comes with a model, and may never end."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

SECONDS = 10.0
"""Processor time; an ordinary template takes milliseconds."""
MEMORY = 1 << 30
"""Bytes beyond what the process has."""
_OWN_SIZE = Path("/proc/self/statm")


class _OutOfTimeError(BaseException):
    """No ``Exception``: Jinja swallows those while it folds constants."""


_one_at_a_time = threading.RLock()


@contextmanager
def bounded() -> Iterator[None]:
    """Run the body within limits of processor time and memory.

    Processor time is limited in the main thread of a POSIX system, where Python takes signals;
    memory on Linux. Models are loaded there, and every template is rendered when its model is.

    Raises:
        TimeoutError: It took too long.
        MemoryError: It asked for too much memory.
    """
    with _one_at_a_time, _limited_memory(), _limited_time():
        yield


@contextmanager
def _limited_time() -> Iterator[None]:
    """Processor time, not the clock: a busy machine is no fault of the template."""
    if threading.current_thread() is not threading.main_thread() or not hasattr(
        signal, "setitimer"
    ):
        yield
        return

    def stop(number: int, frame: Any) -> None:
        raise _OutOfTimeError

    former = signal.signal(signal.SIGVTALRM, stop)
    try:
        signal.setitimer(signal.ITIMER_VIRTUAL, SECONDS, SECONDS)
        yield
    except _OutOfTimeError:
        raise TimeoutError(f"it did not end within {SECONDS:.0f} seconds") from None
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, former)


@contextmanager
def _limited_memory() -> Iterator[None]:
    """Address space: one short template can ask for more text than any machine can hold."""
    if not _OWN_SIZE.exists():
        yield
        return
    import resource  # POSIX only

    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    size = int(_OWN_SIZE.read_text().split()[0]) * resource.getpagesize()
    limits = [limit for limit in (soft, hard) if limit != resource.RLIM_INFINITY]
    resource.setrlimit(resource.RLIMIT_AS, (min([size + MEMORY, *limits]), hard))
    try:
        yield
    finally:
        with suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
