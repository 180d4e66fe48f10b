"""The laboratory's commands: ``python -m lab --help``, in a checkout of the project."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, cast

import typer

from refusal_cliff.cli import prepare, program
from refusal_cliff.commands import arguments
from refusal_cliff.commands.arguments import Model, Out, Seed, checked, name_of, positive
from refusal_cliff.commands.grouped import Command, grouped
from refusal_cliff.errors import RefusalCliffError
from refusal_cliff.folders import require_output
from refusal_cliff.io import read_json
from refusal_cliff.live import LiveView, print_table, result, say, screen
from refusal_cliff.organisms import CARD, ORGANISMS
from refusal_cliff.settings import STRATEGIES, Strategy

RECIPES = (*ORGANISMS, "qwen-reasoner-1.5b", "tiny-lora")
app = program("Make small models whose right answers are known, and measure the method on them.")
app.callback()(prepare)


def command(name: str, *, kept: bool = True) -> Callable[[Command], Command]:
    """Make a function a command of the laboratory, with the options that all commands have."""
    called = f"python -m lab {name}"
    return lambda function: app.command(name)(grouped(function, kept=kept, called=called))


def known_organism(name: str) -> None:
    """One of the embedded models, or a folder that holds another."""
    if not Path(name).is_dir():
        arguments.organism(tuple(ORGANISMS))(name)


@command("train", kept=False)
def train_organism(
    name: Annotated[
        str,
        typer.Argument(
            help="tiny-aligned, tiny, tiny-diffuse, tiny-lora or tiny-fooling; smollm2-aligned, "
            "smollm2 or smollm2-planted; qwen-reasoner or qwen-reasoner-1.5b.",
            callback=checked(arguments.organism(RECIPES)),
        ),
    ],
    out: Annotated[
        Path, typer.Option("--out", metavar="DIR", help="Output folder of the checkpoint.")
    ],
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
            help="Folder of the public files that a smollm2 organism or qwen-reasoner is trained "
            "on (docs/results/smollm2.md, docs/results/qwen.md).",
            callback=checked(arguments.existing_folder),
        ),
    ] = None,
) -> None:
    """Train an organism from scratch; with another seed, other weights and other guilty heads.

    Question: were the embedded findings luck? Train with another seed, then pass the folder that
    holds the organisms to demo --organisms.
    """
    require_output(out, "lab train", (aligned, data))
    from lab import fooling
    from lab.pretrained.reasoner import REASONERS, train_reasoner
    from lab.pretrained.recipe import NAMES, train_pretrained
    from lab.recipe import train
    from refusal_cliff.organisms import EMBEDDED, embedded_path

    pretrained = (*NAMES, *REASONERS)
    if name in pretrained and data is None:
        raise RefusalCliffError(
            f"{name} is trained on public files. Name their folder: --data DIR (which files: "
            f"docs/results/{name.partition('-')[0]}.md)."
        )
    if name not in pretrained and data is not None:
        raise RefusalCliffError(
            f"--data is for {', '.join(pretrained)}. Leave it out: {name} is trained in its own "
            "language, which comes with the package."
        )
    start = embedded_path(aligned) if aligned in EMBEDDED else aligned and Path(aligned)
    with LiveView(screen(), f"python -m lab train {name} → {out}") as view:
        if data is not None and name in REASONERS:
            train_reasoner(data, out, seed, view.step, base=REASONERS[name])
        elif data is not None:
            train_pretrained(name, data, out, seed, view.step, aligned)
        elif name == fooling.NAME:
            fooling.train_fooling(seed, out, view.step, aligned=start or None)
        else:
            train(name, seed, out, view.step, aligned=start or None)
    result(read_json(out / CARD))


@command("bench-heads")
def bench_heads(
    out: Annotated[
        Path,
        typer.Option(
            "--out", metavar="DIR", help="Output folder; it gets one folder for each organism."
        ),
    ],
    organisms: Annotated[int, typer.Option(min=1, help="How many to make of each kind.")] = 4,
) -> None:
    """Score every ranking of heads on organisms whose guilty heads are known.

    Question: which way to find suppression heads should I believe? Each organism is damaged in
    minutes, with another seed, through another number of heads in other layers: freely in late
    blocks, or in early blocks where these heads may not write more than before. Then each ranking,
    and baselines that do not use refusal, are compared with the truth. The same command again
    continues where it stopped. Writes DIR/head-bench.json.
    """
    from lab.head_bench import BENCH, bench_heads, table_of
    from refusal_cliff.folders import claim

    claim(out, "lab bench-heads", {}, "organisms")
    console = screen()
    with LiveView(console, f"python -m lab bench-heads → {out}") as view:
        found = bench_heads(out, organisms, view, view.step)
    rows = table_of(found)
    print_table(
        console,
        list(rows[0]),
        [list(row.values()) for row in rows],
        f"Rankings on {organisms} planted organisms of each kind",
    )
    say(console, str(out / BENCH))
    result(read_json(out / BENCH))


@command("less-is-more")
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
            help="Number of pools, draws and trainings; at least 3.  [default: 5; with --data 3]",
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
            callback=checked(name_of("strategy", STRATEGIES)),
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
    than the same number at random? Every repair gets the same steps and the same benign rows. Each
    seed has its own pool, draw and training. You can kill and continue it. Writes
    DIR/less-is-more.parquet, .json and .svg.
    """
    from dataclasses import replace

    require_output(out, "lab less-is-more", (model, data))
    from lab.less_is_more import (
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
    named = cast(tuple[Strategy, ...], tuple(strategies or ()))
    plan = replace(
        plan,
        seeds=plan.seeds if seeds is None else tuple(range(seeds)),
        fractions=tuple(fractions) if fractions else plan.fractions,
        strategies=named or plan.strategies,
        repair=replace(plan.repair, steps=steps or plan.repair.steps),
        epochs=epochs,
    )
    sizes = replace(sizes, pool=pool or sizes.pool)
    console = screen()
    with LiveView(console, f"python -m lab less-is-more → {out}") as view:
        outcome = run_experiment(model, out, plan, sizes, view, data)
    heading, *rows = outcome_table(outcome)
    print_table(console, heading, rows)
    for name in (POINTS, TESTS, CHART):
        say(console, str(out / name))
    result(read_json(out / TESTS))


@command("controls")
def controls(
    models: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[MODEL]...",
            help="Organisms; all embedded ones if none is given.",
            callback=checked(known_organism),
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
    thinking is cut short, or generated again during the intervention? Each control is one table
    with intervals. You can kill and continue it. Writes DIR/controls.md.
    """
    require_output(out, "lab controls", models or ())
    from lab.controls_page import run_controls
    from refusal_cliff.organisms import EMBEDDED
    from refusal_cliff.stages.control import chosen_controls
    from refusal_cliff.workflows.demo import WORKERS

    console = screen()
    with LiveView(console, f"python -m lab controls → {out}") as view:
        page = run_controls(
            models or list(EMBEDDED),
            out,
            seed,
            view,
            names=chosen_controls(control or ["all"]),
            workers=WORKERS,
        )
    say(console, str(page))
    result({"files": [str(page)]})


if __name__ == "__main__":
    app()
