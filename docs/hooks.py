"""Puts the reference of the commands, made from the commands themselves, into its page."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from typer.main import get_command

PLACE = "<!-- commands -->"
_UNSHOWN = ("help", "install_completion", "show_completion")
_KINDS = {"str": "TEXT", "Path": "PATH", "int": "N", "float": "X"}


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Write what `--help` says of every command in the place for it."""
    if PLACE not in markdown:
        return markdown
    from refusal_cliff.cli import app

    commands = getattr(get_command(app), "commands", {}).values()
    return markdown.replace(PLACE, "\n".join(line for c in commands for line in lines(c)))


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
