"""The console command: its help, its groups, and how an error is shown."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from typer.core import TyperGroup

from refusal_cliff import __version__
from refusal_cliff.commands import answers, gate, heads, organism, runs, scores, selecting
from refusal_cliff.commands.grouped import Command, grouped, remember
from refusal_cliff.errors import RefusalCliffError
from refusal_cliff.io import is_storage_error
from refusal_cliff.live import is_verbose, print_error, write_what_can_be_shown

_INTERRUPTED = 130  # 128 + SIGINT, as shells report it
_NARROWEST, _WIDEST = 20, 1000  # columns
_ENVIRONMENT = {
    # Threads that wait by spinning fight over busy cores: 15 times slower for small models on two.
    "OMP_WAIT_POLICY": "PASSIVE",
    "TRANSFORMERS_VERBOSITY": "error",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    "TOKENIZERS_PARALLELISM": "false",
}


class Commands(TyperGroup):
    """Shows a user-facing error as one paragraph instead of a traceback."""

    def main(self, args: Sequence[str] | None = None, *rest: Any, **named: Any) -> Any:
        """Run; whatever the terminal's encoding lacks is replaced, in the help as well."""
        write_what_can_be_shown()
        _forget_senseless_width()
        remember(sys.argv[1:] if args is None else args)
        return super().main(args, *rest, **named)

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Read ``~`` where the shell has left it."""
        return super().parse_args(ctx, [_with_home(arg) for arg in args])

    def invoke(self, ctx: Any) -> Any:
        """Run a command; what a user can mend ends in one paragraph and status 1."""
        try:
            return super().invoke(ctx)
        except RefusalCliffError as error:
            _show_error(str(error))
            raise typer.Exit(1) from error
        except OSError as error:
            if not is_storage_error(error):
                raise
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what is still to be written has no place
            _show_error(f"Could not write the output: {error.strerror}. What is finished is kept.")
            raise typer.Exit(1) from error
        except KeyboardInterrupt as error:
            _show_error("Interrupted. Run the same command again: finished stages are kept.")
            raise typer.Exit(_INTERRUPTED) from error


def program(said: str, epilog: str | None = None) -> typer.Typer:
    """A program of several commands that shows its help and its errors as this project does.

    Args:
        said: Its help, in Markdown.
        epilog: What stands below the list of its commands.
    """
    return typer.Typer(
        cls=Commands,
        no_args_is_help=True,
        context_settings={"help_option_names": ["-h", "--help"]},
        pretty_exceptions_enable=False,
        rich_markup_mode="markdown",
        help=said,
        epilog=epilog,
    )


app = program(
    (
        "Find, prove and repair the **refusal cliff** of reasoning models: the intention to "
        "refuse that is strong during the thinking and drops just before the answer (arXiv "
        "2510.06036).\n\n"
        "Start with **refusal-cliff demo**; then **refusal-cliff audit** your "
        "own model. If a run was interrupted, run the same command again: finished stages are kept."
    ),
    (
        "**What each step answers.** generate: what does the model do? judge: did it refuse? "
        "probe: where in the residual stream is “I will refuse”? trace: how does that change over "
        "the tokens? cliff: is there a plateau and a drop, and where? heads: which attention heads "
        "lower it? ablate: do they cause it? select: which examples are worth training on? repair: "
        "does training on them help? report: can I show this to someone?"
    ),
)
_COMMANDS: tuple[Command, ...] = (
    *(runs.demo, runs.audit, answers.generate, answers.evaluate, scores.trace, scores.cliff),
    *(heads.ablate, selecting.select, selecting.train, selecting.repair, gate.check),
    *(runs.compare, runs.report, runs.figures, runs.publish),
)
for command in _COMMANDS:
    app.command()(grouped(command, kept=command is not selecting.train))
app.add_typer(answers.judge_app, name="judge")
app.add_typer(organism.app, name="organism")


def _with_home(arg: str) -> str:
    """An argument whose ``~`` the shell has left: quoted, after ``=``, or out of a file."""
    option, equals, value = arg.partition("=") if arg.startswith("--") else ("", "", arg)
    try:
        return option + equals + (str(Path(value).expanduser()) if value[:1] == "~" else value)
    except RuntimeError:  # there is no such user, so that the name is what it says
        return arg


def _forget_senseless_width() -> None:
    """Drop a width in which nothing can be read; in one of 0 nothing at all is written."""
    width = os.environ.get("COLUMNS", "")
    if width and not (width.isdecimal() and _NARROWEST <= int(width[:5]) <= _WIDEST):
        del os.environ["COLUMNS"]


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
    """Every command begins with this."""
    prepare()


def prepare() -> None:
    """Set what libraries read when they are imported; progress bars of their own stay out."""
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)


def _show_error(message: str) -> None:
    if is_verbose():
        Console(stderr=True).print_exception()
    print_error(Console(stderr=True), message)
