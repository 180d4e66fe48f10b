r"""The terminal as a user sees it: a command in a terminal of a given size, drawn as SVG.

    pip install pyte
    python -m bench.terminal 80 24 --at 40 --out docs/images/terminal-80 -- \
        refusal-cliff audit --model tiny --harmful h.jsonl --benign b.jsonl --quick --out r

Writes OUT-working.svg, what stood there after ``--at`` seconds, and OUT-done.svg, the end.
"""

from __future__ import annotations

import argparse
import fcntl
import os
import pty
import select
import struct
import sys
import termios
import time
from pathlib import Path

import pyte  # pyright: ignore[reportMissingImports]
from rich.console import Console
from rich.style import Style
from rich.text import Text


def run(command: list[str], columns: int, lines: int, at: float) -> list[Text]:
    """The screen after so many seconds, and at the end."""
    screen = pyte.Screen(columns, lines)
    stream = pyte.ByteStream(screen)
    child, terminal = pty.fork()
    if child == 0:
        os.environ |= {"TERM": "xterm-256color", "COLUMNS": str(columns), "LINES": str(lines)}
        os.execvp(command[0], command)
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
    start, seen = time.monotonic(), list[Text]()
    while True:
        if not seen and time.monotonic() - start > at:
            seen.append(drawn(screen))
        if not select.select([terminal], [], [], 0.2)[0]:
            continue
        try:
            stream.feed(os.read(terminal, 65536))
        except OSError:  # the command has ended
            break
    os.waitpid(child, 0)
    return [*seen, drawn(screen)]


def drawn(screen: pyte.Screen) -> Text:
    """The screen with its colours."""
    text = Text(no_wrap=True)
    for row in range(screen.lines):
        for column in range(screen.columns):
            cell = screen.buffer[row][column]
            text.append(cell.data, Style(color=colour(cell.fg), bold=cell.bold))
        text.append("\n")
    return text


def colour(name: str) -> str | None:
    """What rich calls a colour of pyte."""
    if name == "default":
        return None
    return {"brown": "yellow"}.get(name, name if name.isalpha() else f"#{name}")


def main() -> None:
    """Run the command, draw both screens."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("columns", type=int)
    parser.add_argument("lines", type=int)
    parser.add_argument("--at", type=float, default=30.0, help="seconds")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("command", nargs="+")
    given = parser.parse_args()
    screens = run(given.command, given.columns, given.lines, given.at)
    for name, text in zip(("working", "done"), screens, strict=True):
        with Path(os.devnull).open("w", encoding="utf-8") as nowhere:
            console = Console(width=given.columns, record=True, file=nowhere)
            console.print(text, end="")
            title = f"{given.columns} × {given.lines}"
            console.save_svg(f"{given.out}-{name}.svg", title=title, clear=True)
    sys.stdout.write(f"{given.out}-working.svg, {given.out}-done.svg\n")


if __name__ == "__main__":
    main()
