"""The embedded organisms: list and card."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console

from refusal_cliff.commands import arguments
from refusal_cliff.commands.arguments import checked

app = typer.Typer(
    no_args_is_help=True,
    help="Small embedded models whose right answers are known: list or describe them.",
)


@app.command("list")
def list_organisms() -> None:
    """List the embedded organisms and what each is for."""
    from refusal_cliff.live import say
    from refusal_cliff.organisms import ORGANISMS

    console = Console()
    for name, purpose in ORGANISMS.items():
        say(console, f"{name}: {purpose}")


@app.command("card")
def organism_card(
    name: Annotated[
        str,
        typer.Argument(
            help="For example tiny.",
            callback=checked(arguments.organism(tuple(arguments.ORGANISMS))),
        ),
    ],
) -> None:
    """Show how an organism was made: seed, sizes, planted heads, what was put in on purpose."""
    from refusal_cliff.io import read_text
    from refusal_cliff.live import say
    from refusal_cliff.organisms import embedded_path

    say(Console(), read_text(embedded_path(name) / "organism.json").rstrip())
