"""Processes that a test can kill. They begin with what takes seconds to import already imported.

Each is forked from a process that has done nothing but that. It is not forked from the test's own
process, where threads of other tests may hold a lock that would never be free in the child.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from multiprocessing.connection import Connection
from typing import Any, TextIO

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["refusal_cliff.workflows.demo", "peft", "sklearn.linear_model"])


class Killable:
    """A function of a module at work in a process of its own; read what it prints to its end."""

    def __init__(self, work: Callable[..., Any], *arguments: Any) -> None:
        receiver, sender = CONTEXT.Pipe(duplex=False)
        self._process = CONTEXT.Process(target=_print_into, args=(sender, work, arguments))
        self._process.start()
        sender.close()
        self._receiver = receiver  # which closes the pipe when it is collected

    def lines(self) -> Iterator[str]:
        """What it prints, line by line as it does."""
        with open(self._receiver.fileno(), encoding="utf-8", closefd=False) as printed:
            for line in printed:
                yield line.rstrip("\n")

    def is_alive(self) -> bool:
        return self._process.is_alive()

    def kill(self) -> None:
        self._process.kill()

    def wait(self) -> int | None:
        """Its exit status, negative where a signal ended it."""
        self._process.join()
        return self._process.exitcode


def whole_output(work: Callable[..., Any], *arguments: Any) -> tuple[int | None, list[str]]:
    """The exit status of a function in a process of its own, and the lines that it printed."""
    process = Killable(work, *arguments)
    lines = list(process.lines())
    return process.wait(), lines


def _print_into(sender: Connection, work: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    out: TextIO
    with (
        open(sender.fileno(), "w", buffering=1, encoding="utf-8", closefd=False) as out,
        redirect_stdout(out),
    ):
        work(*arguments)
