"""Finished runs side by side: compare."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from refusal_cliff.commands import arguments
from refusal_cliff.commands.arguments import checked
from refusal_cliff.folders import claim, require_output
from refusal_cliff.live import print_table, result, say, screen

PAGE, TABLES = "comparison.html", "comparison.json"


def compare(
    runs: Annotated[
        list[str],
        typer.Argument(
            metavar="RUN RUN...",
            help="Folders of finished runs; all others are compared with the first. If a run has "
            "several models, RUN/KEY.",
            callback=checked(arguments.existing_folder),
        ),
    ],
    out: Annotated[
        Path, typer.Option("--out", metavar="DIR", help="Folder of the page and the tables.")
    ],
) -> None:
    """Compare finished audits: a base model, the model trained from it, and its repair.

    Question: what changed between these models? The page shows the rates and the cliff of each
    model, paired differences on the prompts that both were asked, what became of prompts of each
    kind, and how much the refusal direction changed in each layer. No model is loaded. Writes
    DIR/comparison.html and DIR/comparison.json.
    """
    require_output(out, "compare", runs)
    from dataclasses import asdict

    from refusal_cliff.api.comparison import compare_runs, opened
    from refusal_cliff.controls.table import headings, row_texts
    from refusal_cliff.io import write_json, write_text
    from refusal_cliff.report.page import render_comparison

    found = [opened(Path(run)) for run in runs]
    compared = compare_runs(found)
    claim(out, "compare", {"runs": [str(Path(run).resolve()) for run in runs]}, "a comparison")
    console = screen()
    for title, table in compared.tables.items():
        rows = [[name, *row_texts(table, cells)] for name, cells in table.rows.items()]
        print_table(console, ["", *headings(table)], rows, title)
        say(console, table.finding)
    panels = [
        (name, run.cliff.verdict, run.cliff.curves)
        for name, run in zip(compared.names, found, strict=True)
    ]
    write_text(out / PAGE, render_comparison(compared.names, panels, compared.tables))
    tables = {title: asdict(table) for title, table in compared.tables.items()}
    content = {"runs": list(compared.names), "tables": tables}
    write_json(out / TABLES, content)
    result(content)
    for name in (PAGE, TABLES):
        console.print(f"{out / name}", markup=False, highlight=False, soft_wrap=True)
