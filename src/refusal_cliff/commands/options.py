"""Options that several commands share."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from refusal_cliff.commands import arguments
from refusal_cliff.commands.arguments import name_of, option
from refusal_cliff.settings import LABELS, RowSettings
from refusal_cliff.user_text import column_of, existing_file

if TYPE_CHECKING:
    from refusal_cliff.data.reading import Reading

Out = Annotated[Path, typer.Option(metavar="DIR", help="The run folder; made if absent.")]
Seed = Annotated[int, typer.Option(metavar="S", min=0, help="Seed of every random choice.")]
Model = Annotated[
    str,
    option(arguments.model, "Hugging Face name, folder, or embedded organism.", "M"),
]


def _label(rows: str) -> Any:
    """The option that says the label of rows which have none."""
    said = f"Label of {rows} that have no label: harmful or benign."
    return option(name_of("label", tuple(LABELS)), said)


def columns(where: str) -> Any:
    """The option that says in which column of some rows a field is; it may be given again."""
    return option(column_of, f"Column of a field {where}; repeatable.", "FIELD=COLUMN")


RowLabel = Annotated[str | None, _label("rows")]
PromptColumns = Annotated[list[str] | None, columns("in the files of --prompts")]
PromptLabel = Annotated[str | None, _label("rows of --prompts")]
BenignColumns = Annotated[list[str] | None, columns("in the rows of --benign")]
BenignSplit = Annotated[str, typer.Option(help="Split of --benign, where it has several.")]
JsonOut = Annotated[Path | None, typer.Option(metavar="FILE", help="Write JSON.")]

JudgeErrorFile = Annotated[
    Path | None,
    option(
        existing_file,
        "Measured error of the judge: the file that judge calibrate --out writes.",
        "FILE",
    ),
]

# Examples: which are scored, and how they are chosen.
Probe = Annotated[
    Path,
    option(
        arguments.probe_folder,
        "Folder with probes.json, such as runs/m/model of an audit.",
        "DIR",
    ),
]
Data = Annotated[
    str,
    option(
        arguments.rows,
        "A JSONL, CSV or Parquet file, a save_to_disk folder, or a data set on the hub.",
        "SOURCE",
    ),
]
Benign = Annotated[
    str,
    option(arguments.rows, "Benign prompts with answers and thinking.", "SOURCE"),
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
