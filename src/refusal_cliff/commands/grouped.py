"""Options of a command out of classes of settings: a parameter of such a class is all its fields.

A command that takes ``loading: Loading`` has the options ``--dtype``, ``--device`` and so on, with
the defaults and the help of the fields, and is called with one `Loading`. An option that the
command declares itself stands in the place of the field of that name. ``--config FILE`` sets any
option from a TOML file; what is typed wins, and what came of both is written into the output
folder.
"""

from __future__ import annotations

import inspect
import json
import re
import shlex
import tomllib
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import Field, fields, is_dataclass
from functools import wraps
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import typer

from refusal_cliff.commands.arguments import checked, finite, name_of, positive
from refusal_cliff.errors import RefusalCliffError
from refusal_cliff.io import write_text
from refusal_cliff.live import Shown, show_as
from refusal_cliff.user_text import did_you_mean, existing_file

PROGRAM = "refusal-cliff"
_HIDDEN = "[hidden]"
_KEYS = ("--key", "--judge-key")
_VARIABLE = re.compile(r"[A-Z_][A-Z0-9_]*", re.ASCII)
"""What a name of an environment variable looks like; a key that was given instead does not."""
_USER = re.compile(r"(?<=://)[^/@\s]+(?=@)")
_SECRET = re.compile(r"(?i)\b(?:sk|hf|key|gsk|ghp|xai|token|bearer)[-_][\w-]{8,}")

_typed: ContextVar[tuple[str, ...]] = ContextVar("typed", default=())


def remember(arguments: Sequence[str]) -> None:
    """Keep what was typed after the program's name."""
    _typed.set(tuple(arguments))


def command_line() -> str:
    """What was typed, as a shell takes it; a secret in it is hidden."""
    words: list[str] = []
    for word in _typed.get():
        option, equals, value = word.partition("=")
        if equals and option in _KEYS:
            word = f"{option}={name_or_hidden(value)}"
        elif words and words[-1] in _KEYS:
            word = name_or_hidden(word)
        words.append(_SECRET.sub(_HIDDEN, _USER.sub(_HIDDEN, word)))
    return shlex.join([PROGRAM, *words])


def name_or_hidden(value: str) -> str:
    """The name of an environment variable; anything else may be the key itself, and is hidden."""
    return value if _VARIABLE.fullmatch(value) else _HIDDEN


CONFIG = "config.toml"
"""File of an output folder: every option of the command that wrote it."""
Command = Callable[..., Any]
_OURS = ("flag", "choices", "positive", "check")
"""What `setting` takes that is not for typer."""


def grouped(command: Command, *, kept: bool = True, called: str = "") -> Command:
    """A command whose parameters of classes of settings are options, and --config, -q, -v, --json.

    Args:
        command: A function of keyword arguments.
        kept: Whether its output folder gets the options; not where that folder is published, for
            they hold paths of this machine.
        called: How a user calls it, if it is not ``refusal-cliff`` and the function's first word.
    """
    hints = get_type_hints(command, include_extras=True)
    given = inspect.signature(command).parameters
    kinds = {name: _kind(hints[name]) for name in given}
    own = {name for name, (kind, _) in kinds.items() if not is_dataclass(kind)}
    groups = {
        name: _Group(kind, {*own, *left_out})
        for name, (kind, left_out) in kinds.items()
        if name not in own
    }
    options: list[inspect.Parameter] = []
    for name, parameter in given.items():
        if name in groups:
            options += groups[name].options()
        else:
            options.append(parameter.replace(annotation=hints[name]))
    called = called or f"refusal-cliff {command.__name__.partition('_')[0]}"
    options += [_parameter("config", _Config, None)]
    options += [_parameter(name, kind, False) for name, kind in _SHOWN.items()]

    @wraps(command)
    def run(**values: Any) -> Any:
        del values["config"]
        show_as(Shown(**{name: values.pop(name) for name in _SHOWN}), called)
        made = {name: group.made(values) for name, group in groups.items()}
        try:
            result = command(**{name: values[name] for name in own}, **made)
        except typer.Exit:  # a gate that stays closed has measured all
            if kept:
                _write_back(values)
            raise
        if kept:
            _write_back(values)
        return result

    run.__annotations__ = {option.name: option.annotation for option in options}
    keyword_only = inspect.Parameter.KEYWORD_ONLY
    signature = inspect.Signature([option.replace(kind=keyword_only) for option in options])
    run.__signature__ = signature  # pyright: ignore[reportAttributeAccessIssue]
    return run


def without(*options: str) -> frozenset[str]:
    """In an annotation of a class of settings: options that mean nothing to this command."""
    return frozenset(options)


def _kind(hint: Any) -> tuple[Any, Iterable[str]]:
    """A parameter's type, and the options left out."""
    if get_origin(hint) is not Annotated:
        return hint, ()
    kind, *said = get_args(hint)
    return kind, next((one for one in said if isinstance(one, frozenset)), ())


class _Group:
    """A class of settings as options of one command, but for those that it declares itself."""

    def __init__(self, kind: Any, taken: Iterable[str]) -> None:
        self._kind, hints = kind, get_type_hints(kind)
        shown = [field for field in fields(kind) if "help" in field.metadata]
        self._fields: dict[str, tuple[Field[Any], Any]] = {
            _option_name(field): (field, hints[field.name])
            for field in shown
            if _option_name(field) not in set(taken)
        }

    def options(self) -> list[inspect.Parameter]:
        """One a field."""
        panel = getattr(self._kind, "PANEL", None)
        return [_option(name, *found, panel) for name, found in self._fields.items()]

    def made(self, values: Mapping[str, Any]) -> Any:
        """The settings with what a user said."""
        said = {}
        for name, (field, hint) in self._fields.items():
            value = values[name]
            said[field.name] = tuple(value or ()) if get_origin(hint) is tuple else value
        return self._kind(**said)


def _option_name(field: Field[Any]) -> str:
    return str(field.metadata.get("flag", field.name)).replace("-", "_")


def _option(name: str, field: Field[Any], hint: Any, panel: str | None) -> inspect.Parameter:
    told = {key: value for key, value in field.metadata.items() if key not in _OURS}
    several = get_origin(hint) is tuple
    told["callback"] = _callback(name, field, hint)
    words = [word for word in get_args(hint) or (hint,) if isinstance(word, str)]
    kind: Any = list[str] | None if several else str if words else hint
    flag = f"--{name.replace('_', '-')}"
    annotation = Annotated[kind, typer.Option(flag, rich_help_panel=panel, **told)]
    return _parameter(name, annotation, None if several else field.default)


def _callback(name: str, field: Field[Any], hint: Any) -> Callable[[Any], Any] | None:
    """What looks at a value before anything heavy is imported."""
    said = field.metadata
    if "choices" in said:
        return checked(name_of(name.replace("_", "-"), said["choices"]))
    if "check" in said:
        return checked(said["check"])
    if "positive" in said:
        return positive
    return finite if float in (hint, *get_args(hint)) else None


def _parameter(name: str, annotation: Any, default: Any) -> inspect.Parameter:
    kind = inspect.Parameter.KEYWORD_ONLY
    return inspect.Parameter(name, kind, annotation=annotation, default=default)


def _set_defaults(context: typer.Context, file: Path | None) -> Path | None:
    """Let a file say what is not typed; called before any other option is looked at."""
    if file is None:
        return None
    existing_file(str(file))
    try:
        said = tomllib.loads(file.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise RefusalCliffError(f"{file} is not a TOML file: {error}. Correct it.") from error
    known = {str(option.name): option for option in context.command.params}
    found: dict[str, Any] = {}
    for key, value in said.items():
        name = key.replace("-", "_")
        if name not in known or name == "config" or isinstance(value, dict):
            raise RefusalCliffError(
                f"{file}: {context.info_name} has no option {key!r}.{did_you_mean(name, known)} "
                "Write options as the help names them, one in each line, such as max-new-tokens = "
                "512."
            )
        several = getattr(known[name], "multiple", False) and not isinstance(value, list)
        found[name] = [value] if several else value
    context.default_map = found
    return file


_Config = Annotated[
    Path | None,
    typer.Option(
        "--config",
        metavar="FILE",
        is_eager=True,
        callback=_set_defaults,
        help="TOML file with any of these options; the command line has priority.",
    ),
]


_SHOWN: Mapping[str, Any] = {
    "quiet": Annotated[bool, typer.Option("--quiet", "-q", help="Show only errors.")],
    "verbose": Annotated[
        bool,
        typer.Option(
            "--verbose", "-v", help="Also show messages of libraries, and where an error came from."
        ),
    ],
    "json": Annotated[
        bool,
        typer.Option(
            "--json",
            help="Print the result as one JSON object on standard output, everything "
            "else on standard error.",
        ),
    ],
}


def _write_back(values: Mapping[str, Any]) -> None:
    """Write every option into the output folder, if the command made or kept one."""
    out = values.get("out")
    if isinstance(out, Path) and out.is_dir():
        lines = [
            f"{name.replace('_', '-')} = {_toml(name, value)}"
            for name, value in values.items()
            if value not in (None, ()) and name != "out"
        ]
        write_text(out / CONFIG, "\n".join([*sorted(lines), ""]))


def _toml(name: str, value: Any) -> str:
    if isinstance(value, Sequence) and not isinstance(value, str):
        return f"[{', '.join(_toml(name, one) for one in value)}]"
    if isinstance(value, bool | int | float):
        return str(value).lower()
    text = name_or_hidden(str(value)) if name.endswith("key") else str(value)
    return json.dumps(text)
