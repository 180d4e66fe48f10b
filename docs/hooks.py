"""Puts the reference of commands and of summary.json into its pages; makes tables fit a phone."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from typer.main import get_command

COMMANDS, SUMMARY = "<!-- commands -->", "<!-- summary -->"
_UNSHOWN = ("help", "install_completion", "show_completion")
_KINDS = {"str": "TEXT", "Path": "PATH", "int": "N", "float": "X"}
_TABLE = re.compile(r"<table>(.*?)</table>", re.S)
_ROW = re.compile(r"<tr>(.*?)</tr>", re.S)
_HEADING = re.compile(r"<th[^>]*>(.*?)</th>", re.S)
_CELL = re.compile(r"<td([^>]*)>(.*?)</td>", re.S)
_TAG = re.compile(r"<[^>]+>")
_ATTRIBUTE = re.compile(r"^    (\w+): (.*(?:\n {8}.*)*)", re.M)
"""What a docstring says of an attribute, where its field has no description of its own."""
_WORDS = {
    **{"string": "text", "boolean": "true or false", "null": "null", "object": "object"},
    **{"integer": "integer", "number": "number"},
}
_LONG = 40  # characters: a cell of numbers is shorter


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Write what `--help` says of every command, and what the schema says of every key."""
    if COMMANDS in markdown:
        from refusal_cliff.cli import app

        commands = getattr(get_command(app), "commands", {}).values()
        told = "\n".join(line for command in commands for line in lines(command))
        return markdown.replace(COMMANDS, told)
    if SUMMARY in markdown:
        from refusal_cliff.findings.summary import schema_text

        return markdown.replace(SUMMARY, "\n".join(tables(json.loads(schema_text()))))
    return markdown


def tables(schema: dict[str, Any]) -> Iterator[str]:
    """One section for each part of the summary, with a table of its keys; plain values first."""
    keys = list(_keys(schema, schema))
    parts = [path.partition(".")[0] for path, _, _ in keys]
    titles = ["The run" if parts.count(part) == 1 else f"`{part}`" for part in parts]
    for title in dict.fromkeys(titles):
        own = [key for key, of in zip(keys, titles, strict=True) if of == title]
        yield f"\n## {title}\n\n| key | type | meaning |\n|---|---|---|"
        yield from (f"| `{path}` | {kind} | {told} |" for path, kind, told in own)


def _keys(
    schema: dict[str, Any], part: dict[str, Any], before: str = ""
) -> Iterator[tuple[str, str, str]]:
    """Path, type and meaning of every key below a part."""
    told = dict(_ATTRIBUTE.findall(part.get("description", "")))
    for name, inner in part.get("properties", {}).items():
        path = f"{before}{name}"
        found = list(_below(schema, inner))
        own = inner.get("description") or told.get(name) or found[0][0]["description"]
        yield path, _kind(inner), " ".join(own.split()).replace("``None``", "`null`")
        for below, ending in found:
            yield from _keys(schema, below, f"{path}{ending}.")


def _below(schema: dict[str, Any], part: dict[str, Any]) -> Iterator[tuple[dict[str, Any], str]]:
    """The objects that a value is, or holds, and how a path goes on to them."""
    for choice in part.get("anyOf", ()):
        yield from _below(schema, choice)
    if "$ref" in part:
        yield schema["$defs"][part["$ref"].rpartition("/")[2]], ""
    for inside, ending in (("items", "[]"), ("additionalProperties", ".<name>")):
        if isinstance(part.get(inside), dict):
            yield from ((one, ending + more) for one, more in _below(schema, part[inside]))


def _kind(part: dict[str, Any]) -> str:
    """A type in words."""
    if "anyOf" in part:
        return " or ".join(map(_kind, part["anyOf"]))
    if "const" in part or "enum" in part:
        return " or ".join(f"`{value}`" for value in part.get("enum", [part.get("const")]))
    if "prefixItems" in part:
        return "interval"
    if "pattern" in part:
        return "head"
    if part.get("type") == "array":
        return f"list of {_kind(part['items'])}s"
    if isinstance(part.get("additionalProperties"), dict):
        return "object by name"
    if part.get("type") == "number" and (part.get("minimum"), part.get("maximum")) == (0, 1):
        return "share"
    return _WORDS[part.get("type", "object")]


def on_page_content(html: str, **_: Any) -> str:
    """Mark tables of text, with the heading of its column on each cell.

    On a narrow screen ``site.css`` writes the cells of such a table below each other; a table of
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
