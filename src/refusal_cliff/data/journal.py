"""Rows that survive a kill: each is on the disk before the next is begun.

A journal is a file of JSON Lines that only grows. A kill can leave half a line at its end, which is
dropped when the journal is opened again; the work of that row alone is done again.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from types import TracebackType
from typing import Any

from refusal_cliff.errors import RefusalCliffError
from refusal_cliff.io import storage_error

Row = dict[str, Any]


class Journal:
    """Finished rows by their ``id``. Use as a context manager; one writer at a time.

    Args:
        path: The file; made if absent.

    Raises:
        RefusalCliffError: The file is damaged elsewhere than at its end, or cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self.rows: dict[str, Row] = {}
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("a+b")
            self._recover()
        except OSError as error:
            raise storage_error(path, error) from error

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()

    def add(self, *rows: Row) -> None:
        """Write finished rows and wait until they are on the disk.

        Raises:
            RefusalCliffError: The disk is full, or the folder is gone.
        """
        lines = [json.dumps(row, ensure_ascii=True, allow_nan=False) + "\n" for row in rows]
        try:
            self._file.write("".join(lines).encode())
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:
            raise storage_error(self._path, error) from error
        self.rows |= {str(row["id"]): row for row in rows}

    def _recover(self) -> None:
        """Read what is there, and cut off a last line that a kill left unfinished."""
        self._file.seek(0)
        whole = 0
        for number, line in enumerate(self._file, start=1):
            if not line.endswith(b"\n"):
                break
            self._take(number, line)
            whole += len(line)
        self._file.truncate(whole)
        self._file.seek(whole)

    def _take(self, number: int, line: bytes) -> None:
        try:
            row = json.loads(line)
            self.rows[str(row["id"])] = row
        except (ValueError, TypeError, KeyError) as error:
            raise RefusalCliffError(
                f"{self._path}, row {number}: it is not a row of a journal ({error}). Something "
                "else wrote into the file. Delete that line, and the row is made again."
            ) from error
