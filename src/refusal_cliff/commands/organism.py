"""The embedded organisms: list and card."""

from __future__ import annotations

from typing import Annotated

import typer

from refusal_cliff.commands import arguments
from refusal_cliff.commands.arguments import checked
from refusal_cliff.commands.grouped import grouped
from refusal_cliff.live import result, say, screen

app = typer.Typer(
    no_args_is_help=True,
    help="Small embedded models whose right answers are known: list or describe them.",
)


def list_organisms() -> None:
    """List the embedded organisms and what each is for."""
    from refusal_cliff.organisms import ORGANISMS

    for name, purpose in ORGANISMS.items():
        say(screen(), f"{name}: {purpose}")
    result(ORGANISMS)


def organism_card(
    name: Annotated[
        str,
        typer.Argument(
            help="Name of an organism, such as tiny.",
            callback=checked(arguments.organism(tuple(arguments.ORGANISMS))),
        ),
    ],
) -> None:
    """Show how an organism was made: seed, sizes, planted heads, what was put in on purpose."""
    from refusal_cliff.io import read_json, read_text
    from refusal_cliff.organisms import CARD, embedded_path

    card = embedded_path(name) / CARD
    say(screen(), read_text(card).rstrip())
    result(read_json(card))


app.command("list")(grouped(list_organisms, called="refusal-cliff organism list"))
app.command("card")(grouped(organism_card, called="refusal-cliff organism card"))
