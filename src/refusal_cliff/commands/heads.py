"""What is done about the heads that were found: ablate."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, cast

import typer

from refusal_cliff.commands import arguments
from refusal_cliff.commands.arguments import Model, finite, name_of, option, positive, reading
from refusal_cliff.commands.grouped import without
from refusal_cliff.folders import require_output
from refusal_cliff.live import result, say, screen
from refusal_cliff.settings import GenerationConfig, JudgeSettings, Loading, RowSettings
from refusal_cliff.user_text import existing_file


def _prompts(label: str) -> Any:
    """The option for a file of prompts that the model card is measured on."""
    return option(existing_file, f"{label} prompts for the model card.", "FILE")


def ablate(
    *,
    model: Model,
    heads: Annotated[
        Path, option(existing_file, "heads.parquet of an audit of this model.", "FILE")
    ],
    export: Annotated[
        tuple[str, Path],
        typer.Option(metavar="adapter|merged DIR", help="What to write, and the output folder."),
    ],
    fraction: Annotated[
        float,
        typer.Option(
            min=0, max=1, help="Largest share of all heads to take out.", callback=positive
        ),
    ] = 0.03,
    method: Annotated[
        str | None,
        option(
            name_of("method", arguments.RANKINGS),
            "Ranking of heads: direct, causal, attribution, …; without it, the heads that the "
            "audit took out.",
        ),
    ] = None,
    scale: Annotated[
        float,
        typer.Option(
            min=0,
            max=1,
            help="Factor for the output of the heads; 0 takes them out.",
            callback=finite,
        ),
    ] = 0.0,
    harmful: Annotated[Path | None, _prompts("Harmful")] = None,
    benign: Annotated[Path | None, _prompts("Benign")] = None,
    judge: Annotated[JudgeSettings, without("judge_error")],
    rows: Annotated[RowSettings, without("label", "split", "thinking_markers")],
    generation: GenerationConfig,
    loading: Loading,
) -> None:
    """Take the suppression heads out of a model permanently: an adapter or a checkpoint.

    Question: I know which heads suppress refusal; how do I ship the model without them? The adapter
    is exactly the ablation as a LoRA: PEFT can switch it on and off, and any server with LoRA
    support can serve it. The merged checkpoint loads anywhere. Only heads that suppress refusal can
    be taken out. The model card says what was done and its effect, on the prompts given or as the
    audit measured it. Use the precision (--dtype) of the audit.
    """
    form, out = export
    name_of("export", arguments.FORMS)(form)
    read = (model, heads, harmful, benign, *judge.inputs)
    require_output(out, "ablate", read, option="--export FORM DIR")
    from refusal_cliff.data.traces import read_prompts
    from refusal_cliff.judges.choose import judge_of
    from refusal_cliff.model.subject import load
    from refusal_cliff.workflows.export import Choice, Form, export_ablation

    choice, read = Choice(fraction, method, scale), reading(rows)
    asked = harmful is not None or benign is not None
    prompts = [
        *([] if harmful is None else read_prompts(harmful, label="harmful", reading=read)),
        *([] if benign is None else read_prompts(benign, label="benign", reading=read)),
    ]
    judged_by = judge_of(judge) if asked else None
    subject = load(model, loading)
    found = export_ablation(
        subject, heads, cast("Form", form), out, choice, prompts, generation, judged_by
    )
    console = screen()
    console.print(f"{len(found)} heads out: {', '.join(map(str, found))}", highlight=False)
    say(console, f"{out}")
    result({"heads": [str(head) for head in found], "form": form, "out": str(out)})
