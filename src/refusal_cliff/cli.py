"""Commands: they parse, call one function and show what it returns; no logic lives here.

Whatever needs torch or transformers is imported inside a command, so that ``--help`` is instant.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from typer.core import TyperGroup

from refusal_cliff import __version__
from refusal_cliff.errors import RefusalCliffError

_INTERRUPTED = 130  # 128 + SIGINT, as shells report it
_QUIET = {
    "TRANSFORMERS_VERBOSITY": "error",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    "TOKENIZERS_PARALLELISM": "false",
}


class _Commands(TyperGroup):
    """Shows a user-facing error as one paragraph instead of a traceback."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except RefusalCliffError as error:
            _show_error(str(error))
            raise typer.Exit(1) from error
        except KeyboardInterrupt as error:
            _show_error("Interrupted. Run the same command again: finished stages are kept.")
            raise typer.Exit(_INTERRUPTED) from error


app = typer.Typer(
    cls=_Commands,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    help=(
        "Find, prove and repair the **refusal cliff** of reasoning models: the intention "
        "to refuse that is strong over the thinking and drops just before the answer "
        "(arXiv 2510.06036).\n\n"
        "Start with **refusal-cliff demo**; then **refusal-cliff audit** your "
        "own model. A run folder can be continued: the same command again skips what is finished."
    ),
    epilog=(
        "**What each step answers.** generate: what does the model do? judge: did it "
        "refuse? probe: where in the residual stream is “I will refuse”? trace: how does that move "
        "over the tokens? cliff: is there a plateau and a drop, and where? heads: which attention "
        "heads pull it down? ablate: do they cause it? select: which examples are worth training "
        "on? repair: does training on them help? report: can I show this to someone?"
    ),
)
organism_app = typer.Typer(
    no_args_is_help=True,
    help="Small embedded models whose right answers are known: list, describe or train them.",
)
app.add_typer(organism_app, name="organism")

Out = Annotated[Path, typer.Option("--out", metavar="DIR", help="The run folder; made if absent.")]
Seed = Annotated[int, typer.Option("--seed", metavar="S", min=0, help="Seed of all that is drawn.")]


def _version(value: bool) -> None:
    if value:
        typer.echo(f"refusal-cliff {__version__}")
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Keep the libraries' own progress bars and warnings out of the view."""
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)


@app.command()
def demo(
    out: Out = Path("runs/demo"),
    seed: Seed = 0,
    organisms: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Use organisms trained by you: DIR/tiny, DIR/tiny-…"),
    ] = None,
) -> None:
    """Run the whole method on embedded models whose guilty heads are known.

    Question: does the method find what is there, and nothing where nothing is? It runs on a damaged
    model (tiny), on the same model before the damage (tiny-aligned: no cliff), and on one damaged
    everywhere (tiny-diffuse: a cliff, but no few heads that carry it). Minutes on a CPU, no
    network. Writes DIR/report.html and DIR/summary.json.
    """
    from refusal_cliff.demo import run_demo
    from refusal_cliff.live import LiveView, print_findings

    console = Console()
    with LiveView(console, f"refusal-cliff demo → {out}") as view:
        findings = run_demo(out, seed, organisms, view)
    print_findings(console, findings)
    _show_results(console, out)


@app.command()
def audit(
    model: Annotated[
        str, typer.Option(metavar="M", help="Hugging Face name, folder, or embedded organism.")
    ],
    harmful: Annotated[
        Path, typer.Option(metavar="FILE", help="Harmful prompts: JSONL, CSV or Parquet.")
    ],
    benign: Annotated[
        Path, typer.Option(metavar="FILE", help="Benign prompts, of the same kinds of file.")
    ],
    out: Out,
    seed: Seed = 0,
    max_new_tokens: Annotated[
        int, typer.Option(min=1, help="Longest thinking and answer, in tokens; longer is reported.")
    ] = 4096,
    batch_size: Annotated[int, typer.Option(min=1, help="Prompts generated at once.")] = 16,
    dtype: Annotated[str, typer.Option(help="Precision of the weights: float32, bfloat16.")] = (
        "float32"
    ),
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps.")] = "auto",
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Run code that comes with the model.")
    ] = False,
) -> None:
    """Audit one model: does it have a refusal cliff, and which heads carry it?

    Question: my model thinks "this is harmful" and answers anyway; why, and where? The files hold a
    column prompt (or text, or instruction), one row a prompt. The benign prompts are the other side
    of the probe, and show what a repair would cost. Writes DIR/report.html and DIR/summary.json.
    """
    from refusal_cliff.audit import run_audit
    from refusal_cliff.live import LiveView, print_findings

    console = Console()
    with LiveView(console, f"refusal-cliff audit {model} → {out}") as view:
        findings = run_audit(
            model,
            harmful,
            benign,
            out,
            seed,
            view,
            max_new_tokens=max_new_tokens,
            batch_size=batch_size,
            dtype=dtype,
            device=device,
            trust_remote_code=trust_remote_code,
        )
    print_findings(console, findings)
    _show_results(console, out)


@app.command()
def trace(
    model: Annotated[
        str, typer.Option(metavar="M", help="Hugging Face name, folder, or embedded organism.")
    ],
    probe: Annotated[
        Path,
        typer.Option(metavar="DIR", help="Folder with probes.json: DIR/KEY of an audit or demo."),
    ],
    traces: Annotated[
        str,
        typer.Option(
            metavar="SOURCE",
            help="JSONL, CSV or Parquet file, a folder of datasets' save_to_disk, or a hub name.",
        ),
    ],
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder of the scores.")],
    split: Annotated[str, typer.Option(help="Split of a data set that has several.")] = "train",
    label: Annotated[
        str | None, typer.Option(help="Label of rows without one: harmful or benign.")
    ] = None,
    every_layer: Annotated[
        bool, typer.Option("--every-layer", help="Score at all probed blocks, not only the best.")
    ] = False,
    shard_size: Annotated[
        int, typer.Option(min=1, help="Traces of one file of scores: what a kill can lose.")
    ] = 256,
    dtype: Annotated[str, typer.Option(help="Precision of the weights: float32, bfloat16.")] = (
        "float32"
    ),
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps.")] = "auto",
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Run code that comes with the model.")
    ] = False,
) -> None:
    """Score every token of traces that you already have.

    Question: how does the intention to refuse move over what my model wrote? A row holds prompt,
    response and, apart or inside the response, the thinking; or the token ids of an earlier run.
    Any number of rows in constant memory; the same command again goes on where it stopped. Writes
    DIR/scores-00000.parquet and so on; rows that cannot be scored are listed, with the reason, in
    DIR/left-out-00000.jsonl.
    """
    from refusal_cliff.live import counting
    from refusal_cliff.models import load_subject
    from refusal_cliff.probe_files import probes_of
    from refusal_cliff.score_shards import score_source
    from refusal_cliff.traces import checked_label

    console = Console()
    subject = load_subject(model, dtype=dtype, device=device, trust_remote_code=trust_remote_code)
    with counting(console, f"refusal-cliff trace {traces} → {out}", "traces") as progress:
        done = score_source(
            subject,
            probes_of(probe, subject),
            traces,
            out,
            split=split,
            label=checked_label(label),
            every_layer=every_layer,
            shard_size=shard_size,
            progress=progress,
        )
    console.print(f"{done.scored:,} traces scored", highlight=False)
    for reason, n in done.left_out.items():
        console.print(f"{n:,} left out: {reason}", highlight=False)
    console.print(f"{out}", markup=False, highlight=False, soft_wrap=True)


@app.command()
def cliff(
    scores: Annotated[Path, typer.Option(metavar="DIR", help="Folder written by trace.")],
    layer: Annotated[
        int | None, typer.Option(min=1, help="Block to read at; the probe's own by default.")
    ] = None,
    pool: Annotated[
        str, typer.Option(help="The plateau: late-median, max (the paper's), q90 or mean.")
    ] = "late-median",
    seed: Seed = 0,
) -> None:
    """Turn scores into a verdict: is there a plateau, and does it fall?

    Question: does my model have a refusal cliff? Writes DIR/cliff.parquet, one row a trace, and
    DIR/cliff.json.
    """
    from refusal_cliff.live import print_model_cliff
    from refusal_cliff.score_shards import measure_shards, write_measured

    rows, found = measure_shards(scores, layer=layer, pool=pool, seed=seed)
    write_measured(scores, rows, found)
    console = Console()
    print_model_cliff(console, found)
    for name in ("cliff.parquet", "cliff.json"):
        console.print(f"{scores / name}", markup=False, highlight=False, soft_wrap=True)


@organism_app.command("list")
def list_organisms() -> None:
    """Name the embedded organisms and say what each is for."""
    from refusal_cliff.organisms import EMBEDDED

    for name, purpose in EMBEDDED.items():
        typer.echo(f"{name}: {purpose}")


@organism_app.command("card")
def organism_card(name: Annotated[str, typer.Argument(help="Such as tiny.")]) -> None:
    """Show how an organism was made: seed, sizes, planted heads, what was put in on purpose."""
    from refusal_cliff.organisms import embedded_path

    typer.echo((embedded_path(name) / "organism.json").read_text(encoding="utf-8"), nl=False)


@organism_app.command("train")
def train_organism(
    name: Annotated[str, typer.Argument(help="tiny-aligned, tiny or tiny-diffuse.")],
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder of the checkpoint.")],
    seed: Seed = 0,
) -> None:
    """Train an organism from scratch; with another seed, other weights and other guilty heads.

    Question: were the embedded findings luck? Train with another seed, then pass the folder that
    holds the organisms to demo --organisms.
    """
    from refusal_cliff.live import LiveView
    from refusal_cliff.organisms.recipe import train

    with LiveView(Console(), f"refusal-cliff organism train {name} → {out}") as view:
        train(name, seed, out, view.step)


def _show_results(console: Console, out: Path) -> None:
    for name in ("report.html", "summary.json"):
        console.print(f"{out / name}", markup=False, highlight=False, soft_wrap=True)


def _show_error(message: str) -> None:
    from refusal_cliff.live import print_error

    print_error(Console(stderr=True), message)
