"""The one exception a user is meant to see."""

from __future__ import annotations


class RefusalCliffError(Exception):
    """A problem the user can solve: one paragraph naming the file, the row and the remedy."""
