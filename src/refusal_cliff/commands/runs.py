"""Whole runs: demo and audit."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from refusal_cliff.commands import arguments
from refusal_cliff.commands.arguments import name_of, option
from refusal_cliff.commands.grouped import command_line, without
from refusal_cliff.commands.options import Model, Out, Seed, reading
from refusal_cliff.folders import require_output
from refusal_cliff.io import read_json
from refusal_cliff.live import LiveView, print_findings, result, say, screen, wants_json
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
    require_output(out, "audit", (model, judge.model, judge.error, *given))
    if adapters_dir is not None:
        option = "--adapters-dir DIR"
        require_output(adapters_dir, "adapters", (model, out, *given), option=option)
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
