"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

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
