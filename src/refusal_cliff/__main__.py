"""Where the console command starts: Ctrl-C is answered in words, also while modules are loaded."""

from __future__ import annotations

import os
import signal
from types import FrameType

_INTERRUPTED = 130  # 128 + SIGINT, as shells report it
_MESSAGE = b"Error: Interrupted. Run the same command again: finished stages are kept.\n"


def main() -> None:
    """Run the command line."""
    signal.signal(signal.SIGINT, _interrupted)
    try:
        from refusal_cliff.cli import app

        app()
    except KeyboardInterrupt:
        _leave()


def _interrupted(number: int, frame: FrameType | None) -> None:
    """End at once in the middle of an import; else as Python does.

    A module that is loaded by half breaks what is imported after it, the error's own display
    included, and compiled ones crash. Nothing is lost: files are whole at every moment.
    """
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            _leave()
        frame = frame.f_back
    raise KeyboardInterrupt


def _leave() -> None:
    os.write(2, _MESSAGE)
    os._exit(_INTERRUPTED)


if __name__ == "__main__":
    main()
