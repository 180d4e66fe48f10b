"""The embedded organisms: list, card and train."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from refusal_cliff.commands import arguments
from refusal_cliff.commands.arguments import checked
from refusal_cliff.commands.options import Seed
from refusal_cliff.errors import RefusalCliffError
from refusal_cliff.folders import require_output

app = typer.Typer(
    no_args_is_help=True,
    help="Small embedded models whose right answers are known: list, describe or train them.",
)


@app.command("list")
def list_organisms() -> None:
    """Name the embedded organisms and say what each is for."""
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
            help="Such as tiny.", callback=checked(arguments.organism(tuple(arguments.ORGANISMS)))
        ),
    ],
) -> None:
    """Show how an organism was made: seed, sizes, planted heads, what was put in on purpose."""
    from refusal_cliff.io import read_text
    from refusal_cliff.live import say
    from refusal_cliff.organisms import embedded_path

    say(Console(), read_text(embedded_path(name) / "organism.json").rstrip())


@app.command("train")
def train_organism(
    name: Annotated[
        str,
        typer.Argument(
            help="tiny-aligned, tiny, tiny-diffuse, tiny-lora or tiny-fooling; smollm2-aligned, "
            "smollm2 or smollm2-planted; qwen-reasoner.",
            callback=checked(arguments.organism(arguments.ORGANISM_RECIPES)),
        ),
    ],
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder of the checkpoint.")],
    seed: Seed = 0,
    aligned: Annotated[
        str | None,
        typer.Option(
            "--from",
            metavar="NAME|DIR",
            help="Damage this aligned organism, such as tiny-aligned, instead of a new one.",
        ),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Folder of the public files that a smollm2 organism or qwen-reasoner is taught "
            "on (docs/results-smollm2.md, docs/results-qwen.md).",
            callback=checked(arguments.existing_folder),
        ),
    ] = None,
) -> None:
    """Train an organism from scratch; with another seed, other weights and other guilty heads.

    Question: were the embedded findings luck? Train with another seed, then pass the folder that
    holds the organisms to demo --organisms.
    """
    require_output(out, "organism train", (aligned, data))
    from refusal_cliff.live import LiveView
    from refusal_cliff.organisms import EMBEDDED, embedded_path, fooling
    from refusal_cliff.organisms.pretrained.reasoner import REASONER, train_reasoner
    from refusal_cliff.organisms.pretrained.recipe import NAMES, train_pretrained
    from refusal_cliff.organisms.recipe import train

    pretrained = (*NAMES, REASONER)
    if name in pretrained and data is None:
        raise RefusalCliffError(
            f"{name} is taught on public files. Name their folder: --data DIR (which files, is in "
            f"docs/results-{name.partition('-')[0]}.md)."
        )
    if name not in pretrained and data is not None:
        raise RefusalCliffError(
            f"--data is for {', '.join(pretrained)}. Leave it out: {name} is taught in a language "
            "of its own, which comes with the package."
        )
    start = embedded_path(aligned) if aligned in EMBEDDED else aligned and Path(aligned)
    with LiveView(Console(), f"refusal-cliff organism train {name} → {out}") as view:
        if data is not None and name == REASONER:
            train_reasoner(data, out, seed, view.step)
        elif data is not None:
            train_pretrained(name, data, out, seed, view.step, aligned)
        elif name == fooling.NAME:
            fooling.train_fooling(seed, out, view.step, aligned=start or None)
        else:
            train(name, seed, out, view.step, aligned=start or None)


@app.command("bench-heads")
def bench_heads(
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="One folder an organism.")],
    organisms: Annotated[int, typer.Option(min=1, help="How many to make of each kind.")] = 4,
) -> None:
    """Score every ranking of heads on organisms whose guilty heads are known.

    Question: which way to find suppression heads should I believe? Each organism is damaged, with
    another seed, through another number of heads in other layers, in minutes: freely in late
    blocks, or in early ones where these heads may write no more than before. Then each ranking, and
    baselines that know nothing of refusal, are compared with the truth. The same command again goes
    on where it stopped. Writes DIR/head-bench.json.
    """
    from refusal_cliff.folders import claim
    from refusal_cliff.live import LiveView, print_table
    from refusal_cliff.workflows.head_bench import bench_heads, table_of

    claim(out, "organism bench-heads", {}, "organisms")
    console = Console()
    with LiveView(console, f"refusal-cliff organism bench-heads → {out}") as view:
        found = bench_heads(out, organisms, view, view.step)
    rows = table_of(found)
    print_table(
        console,
        list(rows[0]),
        [list(row.values()) for row in rows],
        f"Rankings on {organisms} planted organisms of each kind",
    )
    console.print(f"{out / 'head-bench.json'}", markup=False, highlight=False, soft_wrap=True)
