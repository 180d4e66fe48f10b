"""Traces that a user already has: trace and cliff."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from refusal_cliff.commands import arguments
from refusal_cliff.commands.arguments import checked, name_of
from refusal_cliff.commands.options import (
    Columns,
    Model,
    Probe,
    RowLabel,
    Seed,
    Split,
    ThinkingMarkers,
    reading_of,
)
from refusal_cliff.folders import require_output
from refusal_cliff.live import counting, print_model_cliff, result, screen
from refusal_cliff.settings import Loading


def trace(
    *,
    model: Model,
    probe: Probe,
    traces: Annotated[
        str,
        typer.Option(
            metavar="SOURCE",
            help="JSONL, CSV or Parquet file, a folder of datasets' save_to_disk, or a hub name.",
            callback=checked(arguments.rows),
        ),
    ],
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Output folder of the scores.")],
    split: Split = "train",
    label: RowLabel = None,
    column: Columns = None,
    thinking_markers: ThinkingMarkers = None,
    every_layer: Annotated[
        bool,
        typer.Option(
            "--every-layer", help="Score at all probed blocks instead of only at the best one."
        ),
    ] = False,
    shard_size: Annotated[
        int,
        typer.Option(
            min=1, help="Traces in one file of scores; a killed run loses at most one file."
        ),
    ] = 256,
    loading: Loading,
) -> None:
    """Score every token of traces that you already have.

    Question: how does the intention to refuse change over the tokens that my model wrote? A row
    holds the prompt, the response and the thinking (in a separate field or inside the response), or
    the token ids of an earlier run. It reads any number of rows in constant memory. The same
    command again continues where it stopped. Writes DIR/scores-00000.parquet and so on. Rows that
    cannot be scored are listed with the reason in DIR/left-out-00000.jsonl; rows in which blanks
    were restored that a server had removed are in DIR/restored-00000.jsonl.
    """
    require_output(out, "trace", (model, probe, traces))
    from refusal_cliff.cliff.shards import score_source
    from refusal_cliff.model.subject import load
    from refusal_cliff.probe.files import probes_of

    console = screen()
    reading = reading_of(label, column, split, thinking_markers)
    subject = load(model, loading)
    with counting(console, f"refusal-cliff trace {traces} → {out}", "traces") as progress:
        done = score_source(
            subject,
            probes_of(probe, subject),
            traces,
            out,
            reading=reading,
            every_layer=every_layer,
            shard_size=shard_size,
            progress=progress,
        )
    console.print(f"{done.scored:,} traces scored", highlight=False)
    if done.restored:
        where = f"blanks restored that the server had removed, see {out}/restored-….jsonl"
        said = f"{done.restored:,} of them with {where}"
        console.print(said, markup=False, highlight=False, soft_wrap=True)
    if done.unjudged:
        said = f"{done.unjudged:,} rows came without a verdict and were judged by the phrase rules"
        console.print(f"{said}; for another judge, run refusal-cliff judge first", soft_wrap=True)
    for reason, n in done.left_out.items():
        console.print(f"{n:,} left out: {reason}", highlight=False)
    if done.left_out:
        where = f"Which rows, and how to correct them: {out}/left-out-….jsonl"
        console.print(where, markup=False, highlight=False, soft_wrap=True)
    console.print(f"{out}", markup=False, highlight=False, soft_wrap=True)
    result(asdict(done))


def cliff(
    scores: Annotated[
        Path,
        typer.Option(
            metavar="DIR",
            help="Folder written by trace.",
            callback=checked(arguments.scores_folder),
        ),
    ],
    layer: Annotated[
        int | None,
        typer.Option(min=1, help="Block to read at; by default the one that the probe chose."),
    ] = None,
    pool: Annotated[
        str,
        typer.Option(
            help="The plateau: late-median, max (the paper's), q90 or mean.",
            callback=checked(name_of("pool", arguments.POOLS)),
        ),
    ] = "late-median",
    seed: Seed = 0,
) -> None:
    """Turn scores into a verdict: is there a plateau, and does it fall?

    Question: does my model have a refusal cliff? Writes DIR/cliff.parquet, one row for each trace,
    and DIR/cliff.json.
    """
    from refusal_cliff.cliff.shards import measure_shards, write_measured

    rows, found = measure_shards(scores, layer=layer, pool=pool, seed=seed)
    write_measured(scores, rows, found)
    console = screen()
    print_model_cliff(console, found)
    result(asdict(found))
    for name in ("cliff.parquet", "cliff.json"):
        console.print(f"{scores / name}", markup=False, highlight=False, soft_wrap=True)
