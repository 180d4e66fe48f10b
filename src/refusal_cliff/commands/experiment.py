"""Experiments that compare ways of doing something over several seeds."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from refusal_cliff.commands import arguments
from refusal_cliff.commands.arguments import checked, name_of, positive
from refusal_cliff.commands.options import Model, Out, Seed, one_of
from refusal_cliff.folders import require_output

app = typer.Typer(
    no_args_is_help=True,
    help="Measured comparisons on the embedded organisms, over several seeds.",
)


@app.callback()
def group() -> None:
    """Measured comparisons on the embedded organisms, over several seeds."""


@app.command("less-is-more")
def less_is_more(
    model: Model = "tiny",
    out: Out = Path("runs/less-is-more"),
    data: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="For a smollm2 organism: the folder of the public files that prompts and pools "
            "come from (docs/results/smollm2.md).",
            callback=checked(arguments.existing_folder),
        ),
    ] = None,
    seeds: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Pools, draws and trainings; 3 at least.  [default: 5; with --data 3]",
            show_default=False,
        ),
    ] = None,
    fractions: Annotated[
        list[float] | None,
        typer.Option(
            "--fraction",
            min=0,
            max=1,
            help="Share of the pool each strategy chooses; repeatable.",
            callback=positive,
        ),
    ] = None,
    strategies: Annotated[
        list[str] | None,
        typer.Option(
            "--strategy",
            help="Only these ways to choose; repeatable.",
            callback=checked(name_of("strategy", arguments.STRATEGIES)),
        ),
    ] = None,
    steps: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Optimiser steps of every repair.  [default: 16; with --data 24]",
            show_default=False,
        ),
    ] = None,
    epochs: Annotated[
        int, typer.Option(min=0, help="Also train on the whole pool for this many epochs.")
    ] = 0,
    pool: Annotated[
        int | None,
        typer.Option(
            min=10,
            help="Safety examples of each seed.  [default: 2000; with --data 600]",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Compare all ways to choose examples: harm and usefulness by number of examples.

    Question: do the 1.7 % with the largest cliff repair a model as well as all of them, and better
    than as many at random? Every repair gets the same steps and the same benign rows. Each seed has
    its own pool, draw and training. Can be killed and continued. Writes DIR/less-is-more.parquet,
    .json and .svg.
    """
    from dataclasses import replace

    require_output(out, "experiment less-is-more", (model, data))
    from refusal_cliff.live import LiveView, print_table
    from refusal_cliff.select.strategies import STRATEGIES
    from refusal_cliff.workflows.less_is_more import (
        CHART,
        POINTS,
        TESTS,
        default_plan,
        default_sizes,
        outcome_table,
        run_experiment,
    )

    public = data is not None
    plan, sizes = default_plan(public=public), default_sizes(public=public)
    named = tuple(one_of("strategy", name, STRATEGIES) for name in strategies or ())
    plan = replace(
        plan,
        seeds=plan.seeds if seeds is None else tuple(range(seeds)),
        fractions=tuple(fractions) if fractions else plan.fractions,
        strategies=named or plan.strategies,
        repair=replace(plan.repair, steps=steps or plan.repair.steps),
        epochs=epochs,
    )
    sizes = replace(sizes, pool=pool or sizes.pool)
    console = Console()
    with LiveView(console, f"refusal-cliff experiment less-is-more → {out}") as view:
        outcome = run_experiment(model, out, plan, sizes, view, data)
    heading, *rows = outcome_table(outcome)
    print_table(console, heading, rows)
    for name in (POINTS, TESTS, CHART):
        console.print(f"{out / name}", markup=False, highlight=False, soft_wrap=True)


@app.command()
def controls(
    models: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[MODEL]...",
            help="Organisms; all embedded ones if none is given.",
            callback=checked(arguments.known_organism),
        ),
    ] = None,
    out: Out = Path("runs/controls"),
    seed: Seed = 0,
    control: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="Only this control; repeatable.",
            callback=checked(name_of("control", (*arguments.CONTROLS, "all"))),
        ),
    ] = None,
) -> None:
    """Measure every doubt about the cliff on models with known answers.

    Question: is it refusal or harm that the probe reads? An artefact of its position? What if the
    thinking is cut short, or written anew under the intervention? Each control is one table with
    intervals. Can be killed and continued. Writes DIR/controls.md.
    """
    require_output(out, "experiment controls", models or ())
    from refusal_cliff.live import LiveView
    from refusal_cliff.organisms import EMBEDDED
    from refusal_cliff.stages.control import chosen_controls
    from refusal_cliff.workflows.controls import run_controls
    from refusal_cliff.workflows.demo import WORKERS

    console = Console()
    with LiveView(console, f"refusal-cliff experiment controls → {out}") as view:
        page = run_controls(
            models or list(EMBEDDED),
            out,
            seed,
            view,
            names=chosen_controls(control or ["all"]),
            workers=WORKERS,
        )
    console.print(str(page), markup=False, highlight=False, soft_wrap=True)
