"""Finished runs: their page and charts made again, and several side by side."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from refusal_cliff.commands import arguments
from refusal_cliff.commands.arguments import checked, name_of
from refusal_cliff.folders import claim, require_output
from refusal_cliff.live import print_table, result, say, screen

FORMATS = ("svg", "png", "pdf")
Run = Annotated[
    Path,
    typer.Argument(
        metavar="RUN",
        help="Folder of a finished audit or demo.",
        callback=checked(arguments.run_folder),
    ),
]
NewFolder = Annotated[
    Path | None,
    typer.Option(metavar="DIR", help="Output folder; by default a new folder next to the run."),
]


def report(run: Run, out: NewFolder = None) -> None:
    """Make the page of a finished run again, from its tables.

    Question: how do I get the page of this version for a run of an earlier one? No model is loaded,
    nothing is measured again, and the files of the run do not change (to update those, run the same
    audit again). Writes DIR/report.html, or RUN-report/report.html without --out.
    """
    folder = _folder(run, out, "report")
    from refusal_cliff.report.page import write_page
    from refusal_cliff.stages.report import PAGE, page_of_run

    data = page_of_run(run)
    claim(folder, "report", {"run": str(run.resolve())}, "a page")
    write_page(folder / PAGE, data)
    say(screen(), f"{folder / PAGE}")
    result({"files": [str(folder / PAGE)]})


def figures(
    run: Run,
    out: NewFolder = None,
    kind: Annotated[
        str,
        typer.Option(
            "--format",
            help="svg, png or pdf; png and pdf need pip install 'refusal-cliff[figures]'.",
            callback=checked(name_of("format", FORMATS)),
        ),
    ] = "svg",
) -> None:
    """Write every chart of a finished run as a file for a paper, with its numbers.

    Question: how do I show this in a paper, or draw it in my own way? Writes DIR/NAME.svg (or .png,
    .pdf) and DIR/NAME.csv for each chart of the page, in light colours on white. Without --out, DIR
    is RUN-figures.
    """
    folder = _folder(run, out, "figures")
    from refusal_cliff.report.figures import figures_of, write_figures
    from refusal_cliff.stages.report import page_of_run

    found = figures_of(page_of_run(run))
    claim(folder, "figures", {"run": str(run.resolve())}, "charts")
    written = [str(path) for path in write_figures(folder, found.values(), kind)]
    for path in written:
        say(screen(), path)
    result({"files": written})


def _folder(run: Path, out: Path | None, command: str) -> Path:
    """Where the command writes: the folder named, or one beside the run."""
    whole = run.resolve()
    folder = whole.with_name(f"{whole.name}-{command}") if out is None else out
    require_output(folder, command, (run,))
    return folder


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
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder of the page and the tables.")],
) -> None:
    """Compare finished audits: a base model, the model trained from it, and its repair.

    Question: what changed between these models? The page shows the rates and the cliff of each
    model, paired differences on the prompts that both were asked, what became of prompts of each
    kind, and how much the refusal direction changed in each layer. No model is loaded. Writes
    DIR/comparison.html and DIR/comparison.json.
    """
    require_output(out, "compare", runs)
    from dataclasses import asdict

    from refusal_cliff.api.runs import compare_runs, opened
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
        say(console, f"{out / name}")
