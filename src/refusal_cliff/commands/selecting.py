"""From a data set to a repaired model: select, train, repair."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any

import typer

from refusal_cliff.commands import arguments
from refusal_cliff.commands.arguments import (
    Model,
    Probe,
    Prompts,
    Seed,
    name_of,
    option,
    reading,
    reading_of,
)
from refusal_cliff.commands.gate import GATE_CLOSED
from refusal_cliff.commands.grouped import without
from refusal_cliff.folders import require_output
from refusal_cliff.io import read_json
from refusal_cliff.live import LiveView, print_findings, result, say, screen, wants_json
from refusal_cliff.settings import (
    LABELS,
    Engine,
    GenerationConfig,
    JudgeSettings,
    Loading,
    RepairConfig,
    RowSettings,
    Selecting,
)
from refusal_cliff.user_text import column_of, existing_file


def _label(rows: str) -> Any:
    """The option that says the label of rows which have none."""
    said = f"Label of {rows} that have no label: harmful or benign."
    return option(name_of("label", tuple(LABELS)), said)


def _columns(where: str) -> Any:
    """The option that says in which column of some rows a field is; it may be given again."""
    return option(column_of, f"Column of a field {where}; repeatable.", "FIELD=COLUMN")


RowLabel = Annotated[str | None, _label("rows")]
Data = Annotated[
    str,
    option(
        arguments.rows,
        "A JSONL, CSV or Parquet file, a save_to_disk folder, or a data set on the hub.",
        "SOURCE",
    ),
]
Benign = Annotated[
    str, option(arguments.rows, "Benign prompts with answers and thinking.", "SOURCE")
]


def select(
    *,
    model: Model,
    probe: Probe,
    data: Data,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Output folder of the selection.")],
    selecting: Selecting,
    evaluation: Annotated[
        list[Path] | None,
        option(existing_file, "More prompts that must not be trained on; repeatable.", "FILE"),
    ] = None,
    evaluation_column: Annotated[list[str] | None, _columns("in the files of --evaluation")] = None,
    label: RowLabel = "harmful",
    rows: RowSettings,
    judge: Annotated[JudgeSettings, without("judge_error")],
    engine: Engine,
    generation: GenerationConfig,
    seed: Seed = 0,
    loading: Loading,
) -> None:
    """Choose the few examples that are worth training on.

    Question: I have 40,000 safety examples; which 700 repair my model? Every example is scored by
    plateau − final on the model's own thinking. It reads any number of rows in constant memory. The
    same command again continues where it stopped, and another --strategy uses the same scores.
    Under `accelerate launch` or `torchrun` each process takes its share of the shards. Writes
    DIR/selected.jsonl (training rows), DIR/selection.json, DIR/left-out.jsonl (every row that was
    not used, and why).
    """
    require_output(out, "select", (model, probe, data, *judge.inputs, *(evaluation or ())))
    from refusal_cliff.data.traces import PromptFile
    from refusal_cliff.select.selection_run import Source, evaluation_of, run_selection
    from refusal_cliff.select.shards import ScoringPlan

    selecting, generation = replace(selecting, seed=seed), replace(generation, seed=seed)
    plan = ScoringPlan(model, probe, out, selecting, generation, loading, judge)
    asked = reading_of(None, evaluation_column, prefix="evaluation-")
    source = Source(
        data,
        (*evaluation_of(probe), *(PromptFile(file, asked) for file in evaluation or ())),
        reading(replace(rows, label=label)),
    )
    console = screen()
    with LiveView(console, f"refusal-cliff select {data} → {out}") as view:
        done = run_selection(plan, source, engine=engine, watch=view.step)
    if done is None:
        return
    chosen = f"{done.chosen:,} chosen by {selecting.strategy}"
    say(console, f"{done.rows:,} rows, {done.scored:,} scored, {chosen}")
    for reason, count in done.left_out.items():
        say(console, f"{count:,} left out: {reason}")
    result(asdict(done))
    for name in ("selected.jsonl", "selection.json", "left-out.jsonl"):
        say(console, f"{out / name}")


def train(
    *,
    model: Model,
    selected: Annotated[
        Path, option(existing_file, "selected.jsonl of refusal-cliff select.", "FILE")
    ],
    benign: Benign,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Output folder of the adapter.")],
    rows: Annotated[RowSettings, without("label")],
    training: RepairConfig,
    seed: Seed = 0,
    loading: Loading,
) -> None:
    """Train a model on selected examples, and write an adapter with its card.

    Question: how do I get weights from the examples that were chosen? Rows are tokenised as the
    model writes them, and the thinking is trained, too. No row is cut: rows longer than
    --max-length, and rows that cannot be read, are listed in DIR/left-out.jsonl. --column and
    --split are for the benign rows. Also runs under `accelerate launch` (DDP, FSDP): see
    docs/howto/repair.md.
    """
    require_output(out, "train", (model, selected, benign))
    from refusal_cliff.model.subject import load
    from refusal_cliff.repair.training_run import (
        LEFT_OUT,
        REPORT,
        check_out,
        steps_to,
        train_from_files,
    )
    from refusal_cliff.sharded import Rank

    config = replace(training, seed=seed)
    check_out(out, config, (model, selected, benign))
    console = screen()
    with LiveView(console, f"refusal-cliff train {model} → {out}") as view:
        subject = load(model, replace(loading, device=Rank.here().device(loading.device)))
        train_from_files(subject, selected, benign, config, out, reading(rows), steps_to(view.step))
    report = read_json(out / REPORT) if Rank.here().first else {}
    if left_out := report.get("left_out"):
        say(console, f"{left_out:,} rows left out; the reasons are in {out / LEFT_OUT}")
    say(console, f"{out}")
    if report:
        result(report)


def repair(
    *,
    model: Model,
    probe: Probe,
    data: Data,
    benign: Benign,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Output folder of the repair.")],
    selecting: Selecting,
    prompts: Prompts = None,
    prompts_label: Annotated[str | None, _label("rows of --prompts")] = None,
    prompts_column: Annotated[list[str] | None, _columns("in the files of --prompts")] = None,
    benign_split: Annotated[
        str, typer.Option(help="Split of --benign, where it has several.")
    ] = "train",
    benign_column: Annotated[list[str] | None, _columns("in the rows of --benign")] = None,
    label: RowLabel = "harmful",
    rows: RowSettings,
    judge: JudgeSettings,
    engine: Annotated[Engine, without("shard_size")],
    generation: GenerationConfig,
    training: RepairConfig,
    seed: Seed = 0,
    loading: Loading,
) -> None:
    """Repair a model and prove it: select, train, measure again.

    Question: can few examples make my model refuse again, without making it useless, and did the
    cliff close or was it papered over? This needs the probe of an audit; the test prompts of that
    audit are asked before and after. --split, --label and --column are for --data; --benign and
    --prompts have their own. Writes DIR/adapter with its model card, and DIR/proof/proof.json. Exit
    status 3: the proof does not hold.
    """
    require_output(out, "repair", (model, probe, data, benign, *judge.inputs, *(prompts or ())))
    from refusal_cliff.data.traces import PromptFile
    from refusal_cliff.select.selection_run import Source, evaluation_of
    from refusal_cliff.select.shards import ScoringPlan
    from refusal_cliff.workflows.repair_loop import RepairPlan, run_repair

    selecting, generation = replace(selecting, seed=seed), replace(generation, seed=seed)
    asked = reading_of(prompts_label, prompts_column, prefix="prompts-")
    plan = RepairPlan(
        ScoringPlan(model, probe, out, selecting, generation, loading, judge),
        Source(data, evaluation_of(probe), reading(replace(rows, label=label))),
        benign,
        replace(training, seed=seed),
        tuple(PromptFile(file, asked) for file in prompts or ()),
        reading_of(None, benign_column, benign_split, prefix="benign-"),
        engine,
    )
    console = screen()
    with LiveView(console, f"refusal-cliff repair {model} → {out}") as view:
        proof, found = run_repair(plan, out, view.step, view)
    print_findings(console, found)
    if wants_json():
        result(read_json(out / "proof" / "proof.json"))
    for name in ("adapter", "proof/proof.json"):
        say(console, f"{out / name}")
    if not proof.holds:
        raise typer.Exit(GATE_CLOSED)
