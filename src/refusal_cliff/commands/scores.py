"""Traces that a user already has: trace and cliff."""

from __future__ import annotations

from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from refusal_cliff.commands import arguments
from refusal_cliff.commands.arguments import Model, Probe, Seed, name_of, option, reading
from refusal_cliff.folders import require_output
from refusal_cliff.live import LiveView, print_model_cliff, result, say, screen
from refusal_cliff.settings import DEFAULT_POOL, POOLS, Engine, Loading, RowSettings


def trace(
    *,
    model: Model,
    probe: Probe,
    traces: Annotated[
        str,
        option(
            arguments.rows,
            "JSONL, CSV or Parquet file, a folder of datasets' save_to_disk, or a hub name.",
            "SOURCE",
        ),
    ],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Output folder of the scores.")],
    rows: RowSettings,
    every_layer: Annotated[
        bool,
        typer.Option(
            "--every-layer", help="Score at all probed blocks instead of only at the best one."
        ),
    ] = False,
    engine: Engine,
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
    from refusal_cliff.probe.files import subject_with_probes
    from refusal_cliff.sharded import Rank, loading_here

    console = screen()
    loaded = partial(subject_with_probes, model, probe)
    with LiveView(console, f"refusal-cliff trace {traces} → {out}") as view:
        done = score_source(
            *loaded(loading_here(loading, engine)),
            traces,
            out,
            reading=reading(rows),
            every_layer=every_layer,
            engine=engine,
            loaded=partial(loaded, loading) if engine.name == "ray" else None,
            progress=partial(view.step, "traces"),
        )
    if not Rank.here().first:
        return
    say(console, f"{done.scored:,} traces scored")
    if done.restored:
        where = f"blanks restored that the server had removed, see {out}/restored-….jsonl"
        say(console, f"{done.restored:,} of them with {where}")
    if done.unjudged:
        said = f"{done.unjudged:,} rows came without a verdict and were judged by the phrase rules"
        say(console, f"{said}; for another judge, run refusal-cliff judge first")
    for reason, n in done.left_out.items():
        say(console, f"{n:,} left out: {reason}")
    if done.left_out:
        say(console, f"Which rows, and what mends them: {out}/left-out-….jsonl")
    say(console, f"{out}")
    result(asdict(done))


def cliff(
    scores: Annotated[Path, option(arguments.scores_folder, "Folder written by trace.", "DIR")],
    layer: Annotated[
        int | None,
        typer.Option(min=1, help="Block to read at; by default the one that the probe chose."),
    ] = None,
    pool: Annotated[
        str,
        option(
            name_of("pool", tuple(POOLS)),
            f"The plateau: {', '.join(POOLS)}; max is the paper's.",
        ),
    ] = DEFAULT_POOL,
    seed: Seed = 0,
) -> None:
    """Turn scores into a verdict: is there a plateau, and does it fall?

    Question: does my model have a refusal cliff? Writes DIR/cliff.parquet, one row for each trace,
    and DIR/cliff.json.
    """
    from refusal_cliff.cliff.measure import write_measured
    from refusal_cliff.cliff.shards import measure_shards

    measured = measure_shards(scores, layer=layer, pool=pool, seed=seed)
    written = (scores / "cliff.parquet", scores / "cliff.json")
    write_measured(*written, measured)
    console = screen()
    print_model_cliff(console, measured.found)
    result(asdict(measured.found))
    for path in written:
        say(console, f"{path}")
