"""What can be said of an argument before anything heavy is imported; options that commands share.

A typing error is answered at once: not after the seconds that torch takes to import, nor after
tries of the network. What an option can name is therefore listed here once more; a test compares
each list with the code that it stands for.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from refusal_cliff.errors import RefusalCliffError
from refusal_cliff.organisms import ORGANISMS
from refusal_cliff.settings import RowSettings
from refusal_cliff.user_text import (
    beside,
    check_fit_on,
    column_of,
    did_you_mean,
    existing_file,
    source_name,
)

if TYPE_CHECKING:
    from refusal_cliff.data.reading import Reading

BENCHMARKS = (
    *("advbench", "jailbreakbench", "jailbreakbench-benign", "harmbench", "strongreject"),
    *("wildjailbreak", "malicious-instruct", "sorry-bench", "xstest", "or-bench", "do-not-answer"),
    *("ultrachat", "alpaca", "dolly", "star-1", "safechain", "realsafe-r1", "wildjailbreak-train"),
)
CONTROLS = (
    *("taxonomy", "sources", "directions", "positions", "pruning", "intervention"),
    *("second-opinion", "together", "rollouts", "preset"),
)
RANKINGS = ("causal", "causal-contrast", "attribution", "direct", "direct-contrast")
FORMS = ("adapter", "merged")
PRESETS = ("default", "paper")
VERDICTS = ("no cliff", "undecided", "cliff")
_FILES = frozenset({".jsonl", ".csv", ".parquet", ".json", ".txt", ".tsv", ".safetensors", ".gguf"})
_HUB_NAME = re.compile(r"[\w.-]+(?:/[\w.-]+)?", re.ASCII)

Check = Callable[[str], Any]


def _given(value: Any) -> list[Any]:
    """The values of an option that may be given several times, or not at all."""
    values = value if isinstance(value, list | tuple) else (value,)
    return [one for one in values if one is not None]


def checked(check: Check) -> Callable[[Any], Any]:
    """A callback for an option: every value that was given is checked, and left as it is."""

    def callback(value: Any) -> Any:
        for one in _given(value):
            check(str(one))
        return value

    return callback


def option(check: Check, said: str, metavar: str | None = None) -> Any:
    """An option of which every value is looked at, see `checked`.

    Args:
        check: Refuses a wrong value.
        said: The help.
        metavar: What the help calls a value.
    """
    return typer.Option(metavar=metavar, help=said, callback=checked(check))


def name_of(option: str, choices: Sequence[str]) -> Check:
    """One of the names that an option knows.

    Args:
        option: Without its dashes.
        choices: The names.
    """
    return _one_of(choices, f"Unknown {option}", f" (--{option})")


def _one_of(choices: Sequence[str], wrong: str, where: str = "") -> Check:
    def check(name: str) -> None:
        if name not in choices:
            raise RefusalCliffError(
                f"{wrong} {name!r}. Write one of: {', '.join(choices)}{where}."
                f"{did_you_mean(name, choices)}"
            )

    return check


def existing_folder(name: str) -> None:
    """A folder that is there."""
    if not Path(name).is_dir():
        raise RefusalCliffError(f"There is no folder {name}.{beside(name)} Check the path.")


def scores_folder(name: str) -> None:
    """A folder that trace wrote."""
    existing_folder(name)
    if not (Path(name) / "trace.json").is_file():
        raise RefusalCliffError(
            f"There is no trace.json in {name}, so it holds no scores. Give the folder that "
            "refusal-cliff trace wrote (--out of trace)."
        )


def organism(names: Sequence[str]) -> Check:
    """One of the models whose right answers are known; an argument, not an option."""
    return _one_of(names, "There is no organism")


def run_folder(name: str) -> None:
    """A folder that audit or demo wrote."""
    existing_folder(name)
    if not (Path(name) / "manifest.json").is_file():
        raise RefusalCliffError(
            f"{name} is not a run folder: it has no manifest.json. Give the folder that "
            "audit or demo wrote."
        )


def probe_folder(name: str) -> None:
    """A folder that holds probes."""
    folder = Path(name)
    if not (folder / "probes.json").is_file():
        missing = f"folder {name}.{beside(name)}"
        if folder.is_dir():
            inside = sorted(folder.glob("*/probes.json"))
            meant = f" Did you mean {inside[0].parent}?" if inside else ""
            missing = f"probes.json in {name}, so it holds no probes.{meant}"
        elif folder.name == "probes.json" and folder.is_file():
            missing += f" Did you mean {folder.parent}?"
        raise RefusalCliffError(
            f"There is no {missing} Give the folder of a model in a run, such as runs/demo/tiny; "
            "refusal-cliff audit makes one (--probe DIR)."
        )


def prompts(name: str) -> None:
    """A file of prompts, or a benchmark."""
    if name in BENCHMARKS or Path(name).is_file():
        return
    looks = "" if _like_a_path(name) else did_you_mean(name, BENCHMARKS)
    raise RefusalCliffError(
        f"There is no file {name}, and no benchmark of that name.{looks or beside(name)} Give a "
        f"JSON Lines, CSV or Parquet file, or one of: {', '.join(BENCHMARKS)}."
    )


def rows(name: str) -> None:
    """A file, a folder, or what may be a data set on the hub."""
    if Path(name).exists() or not _like_a_path(name):
        return
    raise RefusalCliffError(f"There is no file or folder {name}.{beside(name)} Check the path.")


def model(name: str) -> None:
    """A folder, an organism, or what may be a model on the hub."""
    if name in ORGANISMS or Path(name).exists():
        return
    meant = "" if "/" in name else did_you_mean(name, ORGANISMS)
    if meant or _like_a_path(name) or not _HUB_NAME.fullmatch(name):
        raise RefusalCliffError(
            f"There is no model {name!r}: it is not a folder, not an embedded organism, and not "
            f"the name of a model on the Hugging Face hub.{meant or beside(name)} Embedded are "
            f"{', '.join(ORGANISMS)}."
        )


def prompt_sources(harmful: Any, benign: Any, fit_on: Any, traces: Any = None) -> None:
    """Prompts of both kinds, or answers that are there."""
    if (harmful and benign) or traces:
        if not traces:  # whose rows may name the sources of their prompts
            named = map(source_name, (*(harmful or ()), *(benign or ())))
            check_fit_on(fit_on or (), [*named])
        return
    raise RefusalCliffError(
        "An audit needs harmful and benign prompts: give --harmful and --benign, files or names of "
        f"benchmarks ({', '.join(BENCHMARKS)}); or give --traces, answers that you already have, "
        "with labels."
    )


def finite(value: Any) -> Any:
    """A callback for an option of a real number: neither NaN nor infinity is one."""
    for one in _given(value):
        if not math.isfinite(one):
            raise typer.BadParameter(f"{one} is not a finite number.")
    return value


def positive(value: Any) -> Any:
    """A callback for an option of a finite number above 0."""
    for one in _given(value):
        if not one > 0:
            raise typer.BadParameter(f"{one} is not above 0.")
    return finite(value)


def _like_a_path(name: str) -> bool:
    """Whether a name can only be that of a file or folder here: the hub has no such names."""
    path = Path(name)
    return (
        path.is_absolute()
        or name.startswith((".", "~"))
        or name.endswith("/")
        or name.count("/") > 1
        or path.suffix.lower() in _FILES
    )


Out = Annotated[Path, typer.Option(metavar="DIR", help="The run folder; made if absent.")]
Seed = Annotated[int, typer.Option(metavar="S", min=0, help="Seed of every random choice.")]
JsonOut = Annotated[Path | None, typer.Option(metavar="FILE", help="Write JSON.")]
Model = Annotated[str, option(model, "Hugging Face name, folder, or embedded organism.", "M")]
Probe = Annotated[
    Path,
    option(probe_folder, "Folder with probes.json, such as runs/m/model of an audit.", "DIR"),
]
Prompts = Annotated[
    list[Path] | None,
    option(
        existing_file,
        "Test prompts with labels, instead of those of the probe's run; repeatable.",
        "FILE",
    ),
]


def reading_of(
    label: str | None = None,
    columns: Sequence[str] | None = None,
    split: str = "train",
    markers: str | None = None,
    prefix: str = "",
) -> Reading:
    """How rows are to be read, as a user said it; the prefix is that of the options.

    Raises:
        RefusalCliffError: There is no such label or field, or these are no two markers.
    """
    from refusal_cliff.data.fields import checked_label
    from refusal_cliff.data.reading import Reading
    from refusal_cliff.thinking.formats import KNOWN, markers_of

    named = () if markers is None else (markers_of(markers),)
    found = dict(map(column_of, columns or ()))
    return Reading(checked_label(label), found, (*named, *KNOWN), split, prefix)


def reading(rows: RowSettings) -> Reading:
    """How rows are to be read, as a user said it."""
    return reading_of(rows.label, rows.column, rows.split, rows.thinking_markers)
