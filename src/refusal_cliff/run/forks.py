"""Work in a child process that tells how far it is, and dies with its parent.

A forked child has all that its parent has in memory, so that any function can be its work, and
nothing is loaded twice. Only Linux: elsewhere a fork is not safe, or does not exist.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import pickle
import signal
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any

from refusal_cliff.errors import RefusalCliffError
from refusal_cliff.progress import Progress

CAN_FORK = sys.platform == "linux"
_PR_SET_PDEATHSIG = 1

Work = Callable[[Progress], Any]


@dataclass(frozen=True, slots=True)
class News:
    """What a child has said.

    Attributes:
        progress: (done, total), or ``None`` where the work has ended.
        result: What it returned.
        error: What it raised.
    """

    progress: tuple[int, int] | None = None
    result: Any = None
    error: BaseException | None = None


class Fork:
    """One function at work in a child process.

    The parent must not have used more than one thread of PyTorch before: a child has none of its
    parent's threads, and would wait for them. Nor must it have asked for a GPU, not even whether
    there is one: no child could use it, and optimisers ask, too.
    """

    def __init__(self, work: Work) -> None:
        context = multiprocessing.get_context("fork")
        self._receiver, sender = context.Pipe(duplex=False)
        self._process = context.Process(
            target=_child, args=(work, sender, os.getpid()), daemon=True
        )
        self._process.start()
        sender.close()

    def news(self) -> News:
        """Wait for the next thing that the child says; a child that died raises in its stead."""
        try:
            said: News = self._receiver.recv()
        except EOFError:
            self._process.join()
            return News(error=_died(self._process.exitcode))
        return said

    def stop(self) -> None:
        """End the child, whatever it is doing."""
        self._process.kill()
        self._process.join()
        self._receiver.close()

    @staticmethod
    def with_news(forks: list[Fork]) -> list[Fork]:
        """Wait until some have something to say; of none, none has."""
        if not forks:
            return []
        ready = wait([fork._receiver for fork in forks])
        return [fork for fork in forks if fork._receiver in ready]


def _died(code: int | None) -> RefusalCliffError:
    why = "was killed" if code == -signal.SIGKILL else f"ended with code {code}"
    return RefusalCliffError(
        f"A worker process {why} in the middle of its work, as happens when memory runs out. Free "
        "some memory, then run the same command again: what is finished is kept."
    )


def _child(work: Work, sender: Connection, parent: int) -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent is told, and stops its children
    if os.getppid() != parent:  # it died before this child asked to die with it
        return
    try:
        result = work(lambda done, total: sender.send(News((done, total))))
    except BaseException as error:
        sender.send(News(error=_sendable(error)))
    else:
        sender.send(News(result=result))


def _sendable(error: BaseException) -> BaseException:
    told = "".join(traceback.format_exception(error))
    try:
        pickle.dumps(error)
    except Exception:
        error = RuntimeError(str(error))
    error.add_note(f"In a worker process:\n{told}")
    return error
