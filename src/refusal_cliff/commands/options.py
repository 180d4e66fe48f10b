"""Options that several commands share."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, TypeVar

import typer

from refusal_cliff.errors import RefusalCliffError

Out = Annotated[Path, typer.Option("--out", metavar="DIR", help="The run folder; made if absent.")]
Seed = Annotated[int, typer.Option("--seed", metavar="S", min=0, help="Seed of all that is drawn.")]
Model = Annotated[
    str,
    typer.Option("--model", metavar="M", help="Hugging Face name, folder, or embedded organism."),
]
Dtype = Annotated[str, typer.Option("--dtype", help="Precision of the weights: float32, bfloat16.")]
Device = Annotated[str, typer.Option("--device", help="auto, cpu, cuda, cuda:1, mps.")]
TrustRemoteCode = Annotated[
    bool, typer.Option("--trust-remote-code", help="Run code that comes with the model.")
]

T = TypeVar("T", bound=str)


def one_of(option: str, value: str, choices: Sequence[T]) -> T:
    """The choice that a user named.

    Raises:
        RefusalCliffError: There is no such choice.
    """
    found = next((choice for choice in choices if choice == value), None)
    if found is None:
        raise RefusalCliffError(
            f"Unknown {option} {value!r}. Write one of: {', '.join(choices)} (--{option})."
        )
    return found
