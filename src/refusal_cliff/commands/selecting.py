"""From a data set to a repaired model: select, train, repair."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated

import typer

from refusal_cliff.commands.arguments import checked
from refusal_cliff.commands.gate import GATE_CLOSED
from refusal_cliff.commands.grouped import without
from refusal_cliff.commands.options import (
    Actors,
    Benign,
    BenignColumns,
    BenignSplit,
    Columns,
    Data,
    EngineOption,
    Fraction,
    Model,
    Number,
    Probe,
    PromptColumns,
    PromptLabel,
    Prompts,
    RowLabel,
    Seed,
    Split,
    StrategyOption,
    Target,
    Thinking,
    ThinkingMarkers,
    one_of,
    reading_of,
)
from refusal_cliff.folders import require_output
from refusal_cliff.io import read_json
from refusal_cliff.live import print_findings, result, screen, wants_json, working
from refusal_cliff.settings import GenerationConfig, JudgeSettings, Loading, RepairConfig
from refusal_cliff.user_text import column_of, existing_file


def select(
    *,
    model: Model,
    probe: Probe,
    data: Data,
    out: Annotated[
        Path, typer.Option("--out", metavar="DIR", help="Output folder of the selection.")
    ],
    fraction: Fraction = 0.017,
    n: Number = None,
    strategy: StrategyOption = "cliff",
    thinking: Thinking = "own",
    target: Target = "data",
    evaluation: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE",
            help="More prompts that must not be trained on; repeatable.",
            callback=checked(existing_file),
        ),
    ] = None,
    evaluation_column: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FIELD=COLUMN",
            help="Column of a field in the files of --evaluation; repeatable.",
            callback=checked(column_of),
        ),
    ] = None,
    split: Split = "train",
    label: RowLabel = "harmful",
    column: Columns = None,
    thinking_markers: ThinkingMarkers = None,
    judge: Annotated[JudgeSettings, without("judge_error")],
    shard_size: Annotated[
        int, typer.Option(min=1, help="Rows of one shard; a killed run loses at most one shard.")
    ] = 256,
    engine: EngineOption = "local",
    actors: Actors = 1,
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
    require_output(out, "select", (model, probe, data, judge.model, *(evaluation or ())))
    from refusal_cliff.data.traces import PromptFile
    from refusal_cliff.select.engine import ENGINES
    from refusal_cliff.select.selection_run import Choice, Source, evaluation_of, run_selection
    from refusal_cliff.select.shards import ScoringPlan
    from refusal_cliff.select.strategies import STRATEGIES

    plan = ScoringPlan(
        model=model,
        probe=probe,
        out=out,
        own_thinking=one_of("thinking", thinking, ("own", "data")) == "own",
        own_target=one_of("target", target, ("own", "data")) == "own",
        generation=replace(generation, seed=seed),
        loading=loading,
        judge=judge,
    )
    asked = reading_of(None, evaluation_column, prefix="evaluation-")
    source = Source(
        data,
        (*evaluation_of(probe), *(PromptFile(file, asked) for file in evaluation or ())),
        reading_of(label, column, split, thinking_markers),
        shard_size,
    )
    choice = Choice(one_of("strategy", strategy, STRATEGIES), fraction, n, seed)
    console = screen()
    with working(console, f"refusal-cliff select {data} → {out}") as watch:
        done = run_selection(
            plan,
            source,
            choice,
            engine=one_of("engine", engine, ENGINES),
            actors=actors,
            watch=watch,
        )
    if done is None:
        return
    console.print(
        f"{done.rows:,} rows, {done.scored:,} scored, {done.chosen:,} chosen by {strategy}",
        highlight=False,
    )
    for reason, count in done.left_out.items():
        console.print(f"{count:,} left out: {reason}", highlight=False)
    result(asdict(done))
    for name in ("selected.jsonl", "selection.json", "left-out.jsonl"):
        console.print(f"{out / name}", markup=False, highlight=False, soft_wrap=True)


def train(
    *,
    model: Model,
    selected: Annotated[
        Path,
        typer.Option(
            metavar="FILE",
            help="selected.jsonl of refusal-cliff select.",
            callback=checked(existing_file),
        ),
    ],
    benign: Benign,
    out: Annotated[
        Path, typer.Option("--out", metavar="DIR", help="Output folder of the adapter.")
    ],
    column: Columns = None,
    split: Split = "train",
    thinking_markers: ThinkingMarkers = None,
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
    from refusal_cliff.repair.training import first_process
    from refusal_cliff.repair.training_run import (
        LEFT_OUT,
        REPORT,
        check_out,
        steps_to,
        train_from_files,
    )
    from refusal_cliff.select.engine import Rank

    config = replace(training, seed=seed)
    check_out(out, config, (model, selected, benign))
    reading = reading_of(None, column, split, thinking_markers)
    console = screen()
    with working(console, f"refusal-cliff train {model} → {out}") as watch:
        subject = load(model, replace(loading, device=Rank.here().device(loading.device)))
        train_from_files(subject, selected, benign, config, out, reading, steps_to(watch))
    report = read_json(out / REPORT) if first_process() else {}
    if left_out := report.get("left_out"):
        line = f"{left_out:,} rows left out; the reasons are in {out / LEFT_OUT}"
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    console.print(f"{out}", markup=False, highlight=False, soft_wrap=True)
    if report:
        result(report)


def repair(
    *,
    model: Model,
    probe: Probe,
    data: Data,
    benign: Benign,
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Output folder of the repair.")],
    fraction: Fraction = 0.017,
    n: Number = None,
    strategy: StrategyOption = "cliff",
    thinking: Thinking = "own",
    target: Target = "data",
    prompts: Prompts = None,
    prompts_label: PromptLabel = None,
    prompts_column: PromptColumns = None,
    benign_split: BenignSplit = "train",
    benign_column: BenignColumns = None,
    split: Split = "train",
    label: RowLabel = "harmful",
    column: Columns = None,
    thinking_markers: ThinkingMarkers = None,
    judge: JudgeSettings,
    engine: EngineOption = "local",
    actors: Actors = 1,
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
    require_output(out, "repair", (model, probe, data, benign, judge.model, *(prompts or ())))
    from refusal_cliff.data.traces import PromptFile
    from refusal_cliff.select.engine import ENGINES
    from refusal_cliff.select.selection_run import Choice, Source, evaluation_of
    from refusal_cliff.select.shards import ScoringPlan
    from refusal_cliff.select.strategies import STRATEGIES
    from refusal_cliff.workflows.repair_loop import RepairPlan, run_repair

    scoring = ScoringPlan(
        model=model,
        probe=probe,
        out=out,
        own_thinking=one_of("thinking", thinking, ("own", "data")) == "own",
        own_target=one_of("target", target, ("own", "data")) == "own",
        generation=replace(generation, seed=seed),
        loading=loading,
        judge=judge,
    )
    asked = reading_of(prompts_label, prompts_column, prefix="prompts-")
    plan = RepairPlan(
        scoring,
        Source(data, evaluation_of(probe), reading_of(label, column, split, thinking_markers)),
        Choice(one_of("strategy", strategy, STRATEGIES), fraction, n, seed),
        benign,
        replace(training, seed=seed),
        tuple(PromptFile(file, asked) for file in prompts or ()),
        reading_of(None, benign_column, benign_split, prefix="benign-"),
        one_of("engine", engine, ENGINES),
        actors,
    )
    console = screen()
    with working(console, f"refusal-cliff repair {model} → {out}") as watch:
        proof, found = run_repair(plan, out, watch)
    print_findings(console, found)
    if wants_json():
        result(read_json(out / "proof" / "proof.json"))
    for name in ("adapter", "proof/proof.json"):
        console.print(f"{out / name}", markup=False, highlight=False, soft_wrap=True)
    if not proof.holds:
        raise typer.Exit(GATE_CLOSED)
