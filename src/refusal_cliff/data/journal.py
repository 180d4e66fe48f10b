"""Rows that survive a kill: each is on the disk before the next is begun.

A journal is a file of JSON Lines that only grows. A kill can leave half a line at its end, which is
dropped when the journal is opened again; the work of that row alone is done again.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from refusal_cliff.errors import RefusalCliffError
from refusal_cliff.io import storage_errors, sync_folder

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
        with storage_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            # Without a buffer: what a full disk has refused is not tried again at the close.
            self._file = path.open("a+b", buffering=0)
            self.rows, self._whole = _read(path)
            self._file.truncate(self._whole)  # without a last line that a kill left unfinished
            sync_folder(path.parent)

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        with storage_errors(self._path):
            self._file.close()

    def add(self, *rows: Row) -> None:
        """Write finished rows and wait until they are on the disk.

        Raises:
            RefusalCliffError: The disk is full, or the folder is gone.
        """
        lines = "".join(json.dumps(row, ensure_ascii=True, allow_nan=False) + "\n" for row in rows)
        content = lines.encode()
        with storage_errors(self._path):
            try:
                self._write(content)
            except BaseException:
                self._file.truncate(self._whole)  # half a line would spoil the next
                raise
        self._whole += len(content)
        self.rows |= {str(row["id"]): row for row in rows}

    def _write(self, line: bytes) -> None:
        """Write all of it: a disk that fills takes a part first, and refuses the next."""
        while line:
            line = line[self._file.write(line) :]
        os.fsync(self._file.fileno())


def kept_rows(path: Path) -> dict[str, Row]:
    """The rows of a journal by their ``id``, without opening it for writing; none where none is.

    Raises:
        RefusalCliffError: The file is damaged elsewhere than at its end.
    """
    return _read(path)[0] if path.is_file() else {}


def _read(path: Path) -> tuple[dict[str, Row], int]:
    """The finished rows, and how many bytes they take."""
    rows: dict[str, Row] = {}
    whole = 0
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.endswith(b"\n"):
                break
            try:
                row = json.loads(line)
                rows[str(row["id"])] = row
            except (ValueError, TypeError, KeyError, RecursionError) as error:
                raise RefusalCliffError(
                    f"{path}, row {number}: it is not a row of a journal ({error}). Another "
                    "program wrote into the file. Delete that line; the row is then made again."
                ) from error
            whole += len(line)
    return rows, whole
