"""The one exception a user is meant to see."""

from __future__ import annotations


class RefusalCliffError(Exception):
    """A problem the user can solve: one paragraph naming the file, the row and the remedy."""


def not_installed(what: str, extra: str) -> RefusalCliffError:
    """The error for a package that an extra installs.

    Args:
        what: What it is needed for, and its name: ``Endpoints are asked through httpx2``.
        extra: The extra.
    """
    return RefusalCliffError(
        f"{what}, which is not installed. Install it with: pip install 'refusal-cliff[{extra}]'"
    )
