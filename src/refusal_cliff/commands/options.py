"""Options that several commands share."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from refusal_cliff.commands import arguments
from refusal_cliff.commands.arguments import checked, name_of
from refusal_cliff.settings import LABELS, RowSettings
from refusal_cliff.user_text import column_of, existing_file

if TYPE_CHECKING:
    from refusal_cliff.data.reading import Reading

Out = Annotated[Path, typer.Option("--out", metavar="DIR", help="The run folder; made if absent.")]
Seed = Annotated[
    int, typer.Option("--seed", metavar="S", min=0, help="Seed of every random choice.")
]
Model = Annotated[
    str,
    typer.Option(
        "--model",
        metavar="M",
        help="Hugging Face name, folder, or embedded organism.",
        callback=checked(arguments.model),
    ),
]


def _label(option: str, rows: str) -> Any:
    """The option that says the label of rows which have none."""
    return typer.Option(
        option,
        help=f"Label of {rows} that have no label: harmful or benign.",
        callback=checked(name_of("label", LABELS)),
    )


def _columns(option: str, where: str) -> Any:
    """The option that says where a field is."""
    return typer.Option(
        option,
        metavar="FIELD=COLUMN",
        help=f"Column of a field{where}",
        callback=checked(column_of),
    )


RowLabel = Annotated[str | None, _label("--label", "rows")]
PromptColumns = Annotated[
    list[str] | None,
    _columns("--prompts-column", " in the files of --prompts; repeatable."),
]
PromptLabel = Annotated[str | None, _label("--prompts-label", "rows of --prompts")]
BenignColumns = Annotated[
    list[str] | None,
    _columns("--benign-column", " in the rows of --benign; repeatable."),
]
BenignSplit = Annotated[
    str, typer.Option("--benign-split", help="Split of --benign, where it has several.")
]
JsonOut = Annotated[Path | None, typer.Option("--out", metavar="FILE", help="Write JSON.")]

JudgeErrorFile = Annotated[
    Path | None,
    typer.Option(
        "--judge-error",
        metavar="FILE",
        help="Measured error of the judge: the file that judge calibrate --out writes.",
        callback=checked(existing_file),
    ),
]

# Examples: which are scored, and how they are chosen.
Probe = Annotated[
    Path,
    typer.Option(
        "--probe",
        metavar="DIR",
        help="Folder with probes.json, such as runs/m/model of an audit.",
        callback=checked(arguments.probe_folder),
    ),
]
Data = Annotated[
    str,
    typer.Option(
        "--data",
        metavar="SOURCE",
        help="A JSONL, CSV or Parquet file, a save_to_disk folder, or a data set on the hub.",
        callback=checked(arguments.rows),
    ),
]
Benign = Annotated[
    str,
    typer.Option(
        "--benign",
        metavar="SOURCE",
        help="Benign prompts with answers and thinking.",
        callback=checked(arguments.rows),
    ),
]
Prompts = Annotated[
    list[Path] | None,
    typer.Option(
        "--prompts",
        metavar="FILE",
        help="Test prompts with labels, instead of those of the probe's run; repeatable.",
        callback=checked(existing_file),
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
