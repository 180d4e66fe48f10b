"""Whole runs: demo and audit; finished ones: page and charts made again, several side by side."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from refusal_cliff.commands import arguments
from refusal_cliff.commands.arguments import (
    Model,
    Out,
    Seed,
    checked,
    name_of,
    option,
    reading,
)
from refusal_cliff.commands.grouped import command_line, without
from refusal_cliff.errors import RefusalCliffError
from refusal_cliff.folders import claim, require_output
from refusal_cliff.io import read_json
from refusal_cliff.live import (
    LiveView,
    print_findings,
    print_table,
    result,
    say,
    screen,
    wants_json,
)
from refusal_cliff.settings import JudgeSettings, Loading, RowSettings, Server, Writing


def demo(
    out: Out = Path("runs/demo"),
    seed: Seed = 0,
    organisms: Annotated[
        Path | None,
        option(
            arguments.existing_folder,
            "Use organisms that you trained: DIR/tiny, DIR/tiny-aligned, DIR/tiny-diffuse.",
            "DIR",
        ),
    ] = None,
) -> None:
    """Run the whole method on embedded models whose damaged heads are known.

    Question: does the method find what is there, and nothing where nothing is? It runs on a damaged
    model (tiny), on the same model before the damage (tiny-aligned: no cliff), and on a model
    damaged everywhere (tiny-diffuse: a cliff, but no small set of heads causes it). It takes
    minutes on a CPU and needs no network. Writes DIR/report.html and DIR/summary.json.
    """
    require_output(out, "demo", (organisms,))
    from refusal_cliff.workflows.demo import WORKERS, run_demo

    console = screen()
    with LiveView(console, f"refusal-cliff demo → {out}") as view:
        findings = run_demo(out, seed, organisms, view, workers=WORKERS, command=command_line())
    print_findings(console, findings)
    _show_results(out)


def audit(
    *,
    model: Model,
    out: Out,
    harmful: Annotated[
        list[str] | None,
        option(
            arguments.prompts,
            "Harmful prompts: a JSONL, CSV or Parquet file, a save_to_disk folder, a hub "
            "name, or a benchmark (docs/reference/traces.md); repeatable. A source with both "
            "labels can be given to --harmful and to --benign.",
            "FILE|NAME",
        ),
    ] = None,
    benign: Annotated[
        list[str] | None,
        option(arguments.prompts, "Benign prompts, in the same way.", "FILE|NAME"),
    ] = None,
    traces: Annotated[
        list[str] | None,
        option(
            arguments.rows,
            "Answers of this model that you already have: any file that trace reads, with a "
            "label in every row or with the prompts in --harmful and --benign; repeatable. "
            "The model is asked only for missing answers.",
            "SOURCE",
        ),
    ] = None,
    fit_on: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FILE|NAME",
            help="Fit the probe and find heads on these sources, test on all others; repeatable. "
            "Without it the prompts of each label are split in half at random.",
        ),
    ] = None,
    rows: Annotated[RowSettings, without("label")],
    judge: JudgeSettings,
    writing: Writing,
    server: Server,
    adapters_dir: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Let the server (--endpoint) take heads out, too: each set that may be written is "
            "an adapter in this folder, which the server reads at the same path and loads while it "
            "runs (docs/howto/vllm.md).",
            rich_help_panel=Server.PANEL,
        ),
    ] = None,
    seed: Seed = 0,
    loading: Loading,
    control: Annotated[
        list[str] | None,
        option(
            name_of("control", (*arguments.CONTROLS, "all")),
            "Also measure this control, or all (docs/results/controls.md); repeatable.",
            "NAME",
        ),
    ] = None,
    preset: Annotated[
        str,
        option(
            name_of("preset", arguments.PRESETS),
            "Definitions: default, or paper (docs/concepts/paper-preset.md).",
        ),
    ] = "default",
    quick: Annotated[
        bool,
        typer.Option(
            "--quick",
            help="A first look: 40 prompts of each label to fit and 40 to test (more if a class of "
            "traces is too small), fewer control heads.",
        ),
    ] = False,
    plan: Annotated[
        bool,
        typer.Option(
            "--plan",
            help="Print how many tokens the audit will generate and how long that takes "
            "here, then stop.",
        ),
    ] = False,
) -> None:
    """Audit one model: does it have a refusal cliff, and which heads cause it?

    Question: my model thinks "this is harmful" and answers anyway; why, and where? The files have a
    column prompt (or text, or instruction), with one prompt in each row. The benign prompts are the
    other class of the probe, and show what a repair would cost. The model samples as its generation
    config says, unless you set other options. Writes DIR/report.html and DIR/summary.json.
    """
    arguments.prompt_sources(harmful, benign, fit_on, traces)
    given = (*(harmful or ()), *(benign or ()), *(fit_on or ()), *(traces or ()))
    require_output(out, "audit", (model, *judge.inputs, *given))
    if adapters_dir is not None:
        option = "--adapters-dir DIR"
        require_output(adapters_dir, "adapters", (model, out, *judge.inputs, *given), option=option)
    from refusal_cliff.stages.control import chosen_controls
    from refusal_cliff.workflows.audit import run_audit
    from refusal_cliff.workflows.audit_cost import AuditCost, cost_lines, time_lines
    from refusal_cliff.workflows.audit_prompts import QUICK_PROMPTS, AuditSources

    sources = AuditSources(
        tuple(harmful or ()),
        tuple(benign or ()),
        tuple(fit_on or ()),
        QUICK_PROMPTS if quick else None,
        reading(rows),
        tuple(traces or ()),
    )
    console = screen()

    def told(cost: AuditCost) -> None:
        for line in cost_lines(cost) + (time_lines(cost) if plan else []):
            say(console, line)
        if plan:
            raise typer.Exit

    with LiveView(console, f"refusal-cliff audit {model} → {out}") as view:
        findings = run_audit(
            model,
            sources,
            out,
            seed,
            view,
            writing=writing,
            loading=loading,
            server=server,
            adapters_dir=adapters_dir,
            controls=chosen_controls(control or ()),
            preset=preset,
            judge=judge,
            command=command_line(),
            told=told,
        )
    print_findings(console, findings)
    _show_results(out)


def _show_results(out: Path) -> None:
    for name in ("report.html", "summary.json"):
        say(screen(), f"{out / name}")
    if wants_json():
        result(read_json(out / "summary.json"))


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


def publish(
    run: Run,
    wandb: Annotated[
        str | None,
        typer.Option(metavar="PROJECT", help="Weights & Biases; needs 'refusal-cliff[wandb]'."),
    ] = None,
    mlflow: Annotated[
        str | None,
        typer.Option(
            metavar="EXPERIMENT",
            help="MLflow, on the server that MLFLOW_TRACKING_URI names; needs "
            "'refusal-cliff[mlflow]'.",
        ),
    ] = None,
    hub: Annotated[
        str | None,
        typer.Option(
            metavar="OWNER/NAME",
            help="A data set repository of the Hugging Face hub; made, and private, if it is new.",
        ),
    ] = None,
    page: Annotated[
        bool, typer.Option(help="Send report.html, too, which shows prompts and answers.")
    ] = True,
    public: Annotated[
        bool, typer.Option("--public", help="A repository that is made (--hub) is public.")
    ] = False,
) -> None:
    """Send the results of a finished run to a tracker or to the hub.

    Question: how do I see this beside my other experiments? Numbers, settings, the findings,
    summary.json and report.html are sent by the client of each service, with your login there.
    Models, probes and tables of traces are not sent. Nothing is sent without this command.
    """
    wanted = {"wandb": wandb, "mlflow": mlflow, "hub": hub}
    if not any(wanted.values()):
        raise RefusalCliffError(
            "Where to? Give --wandb PROJECT, --mlflow EXPERIMENT or --hub OWNER/NAME."
        )
    from refusal_cliff.workflows.publish import results_of, to_hub, to_mlflow, to_wandb

    found = results_of(run, page=page)
    senders = {"wandb": to_wandb, "mlflow": to_mlflow, "hub": partial(to_hub, public=public)}
    places: dict[str, str] = {}
    for service, name in wanted.items():
        if name:
            places[service] = senders[service](found, name)
            say(screen(), f"{service}: {places[service]}")
    result(places)


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
