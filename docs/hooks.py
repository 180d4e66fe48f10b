"""Puts the reference of the commands into its page, and makes tables of text fit a phone."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from typer.main import get_command

PLACE = "<!-- commands -->"
_UNSHOWN = ("help", "install_completion", "show_completion")
_KINDS = {"str": "TEXT", "Path": "PATH", "int": "N", "float": "X"}
_TABLE = re.compile(r"<table>(.*?)</table>", re.S)
_ROW = re.compile(r"<tr>(.*?)</tr>", re.S)
_HEADING = re.compile(r"<th[^>]*>(.*?)</th>", re.S)
_CELL = re.compile(r"<td([^>]*)>(.*?)</td>", re.S)
_TAG = re.compile(r"<[^>]+>")
_LONG = 40  # characters: a cell of numbers is shorter


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Write what `--help` says of every command in the place for it."""
    if PLACE not in markdown:
        return markdown
    from refusal_cliff.cli import app

    commands = getattr(get_command(app), "commands", {}).values()
    return markdown.replace(PLACE, "\n".join(line for c in commands for line in lines(c)))


def on_page_content(html: str, **_: Any) -> str:
    """Mark tables of text, with the heading of its column on each cell.

    On a narrow screen ``narrow.css`` writes the cells of such a table below each other; a table of
    numbers scrolls.
    """
    return _TABLE.sub(lambda table: _marked(table[0], table[1]), html)


def _marked(whole: str, inside: str) -> str:
    if not any(len(_TAG.sub("", cell)) > _LONG for _, cell in _CELL.findall(inside)):
        return whole
    names = [_TAG.sub("", name).replace('"', "&quot;") for name in _HEADING.findall(inside)]
    rows = _ROW.sub(lambda row: f"<tr>{_named(row[1], names)}</tr>", inside)
    return f"<table data-stacked>{rows}</table>"


def _named(row: str, names: list[str]) -> str:
    left = iter(names)
    return _CELL.sub(lambda cell: f'<td{cell[1]} data-name="{next(left, "")}">{cell[2]}</td>', row)


def lines(command: Any, above: str = "refusal-cliff") -> Iterator[str]:
    """One section a command: what it answers, and its options by group."""
    name = f"{above} {command.name}"
    yield f"\n{'#' * len(name.split())} `{name}`\n\n{_escaped(command.help)}\n"
    panels: dict[str, list[Any]] = {}
    for option in command.params:
        if option.name not in _UNSHOWN:
            panels.setdefault(getattr(option, "rich_help_panel", None) or "Options", []).append(
                option
            )
    for title, options in panels.items():
        yield f"\n| {title} | meaning | default |\n|---|---|---|"
        yield from map(_row, options)
    for inner in getattr(command, "commands", {}).values():
        yield from lines(inner, name)


def _row(option: Any) -> str:
    name = option.opts[-1] if option.opts[-1].startswith("-") else option.name.upper()
    kind = getattr(option.type_descriptor.annotation, "__name__", "")
    value = "" if getattr(option, "is_flag", False) else option.metavar or _KINDS.get(kind, "")
    shown = "required" if option.required else _default(option)
    written = name if value in ("", f"[{name}]...") else f"{name} {value}"
    return f"| <code>{_escaped(written)}</code> | {_escaped(option.help)} | {shown} |"


def _default(option: Any) -> str:
    default = option.default
    unsaid = default is None or default is False or default in ("", [], ()) or callable(default)
    return "" if unsaid else f"<code>{_escaped(str(default))}</code>"


def _escaped(text: str | None) -> str:
    """Help as Markdown: bars and angle brackets are text."""
    return (text or "").strip().replace("|", "&#124;").replace("<", "&lt;")
