"""What a user writes, read without anything heavy to import.

The commands ask here before they begin, and the functions behind them when they use the text: so
what is refused at the door is what would be refused later, in the same words.
"""

from __future__ import annotations

import importlib.util
import json
import re
import runpy
import sys
from collections.abc import Collection, Iterable, Sequence
from contextlib import suppress
from difflib import get_close_matches
from pathlib import Path
from typing import Any
from urllib.parse import SplitResult, urlsplit

from refusal_cliff.errors import RefusalCliffError

Value = str | int | float | bool | None
"""What a chat template is told: JSON's values without lists and objects."""
FIELDS = ("id", "text", "label", "group", "category", "tags", "thinking", "response")
"""What ``--column FIELD=COLUMN`` can name; ``text`` is the request."""
_DEVICE = re.compile(r"auto|cpu|(?:cuda|mps|xpu|hpu|npu|mtia|ipu|hip|privateuseone)(?::\d+)?")
_AS_ALIKE = 0.75
"""How alike two names are of which one may be a typing error of the other."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """A sentence with the known name that is most like this one; empty where none is."""
    names = list(known)
    swapped = [other for other in names if sorted(other) == sorted(name.lower())]  # two letters
    found = get_close_matches(name.lower(), names, n=1, cutoff=_AS_ALIKE) or swapped
    return f" Did you mean {found[0]}?" if found else ""


def existing_file(name: str) -> None:
    """A file that is there."""
    if not Path(name).is_file():
        raise RefusalCliffError(f"There is no file {name}.{beside(name)} Check the path.")


def beside(name: str) -> str:
    """A sentence with the file beside the missing one that has most its name; else empty."""
    path = Path(name)
    if path.exists():
        kind = "a file" if path.is_file() else "no ordinary file"
        return f" {name} is {'a folder' if path.is_dir() else kind}."
    try:
        names = [other.name for other in path.parent.iterdir()]
    except OSError:
        return f" There is no folder {path.parent} either."
    found = get_close_matches(path.name, names, n=1, cutoff=_AS_ALIKE)
    return f" Did you mean {path.parent / found[0]}?" if found else ""


def column_of(pair: str) -> tuple[str, str]:
    """Field and column of ``FIELD=COLUMN``.

    Raises:
        RefusalCliffError: It is no such pair, or there is no such field.
    """
    name, equals, column = pair.partition("=")
    if not (equals and column) or name not in FIELDS:
        raise RefusalCliffError(
            f"{pair!r} does not say where a field is. Write FIELD=COLUMN, with one of the fields "
            f"{', '.join(FIELDS)}.{did_you_mean(name, FIELDS)}"
        )
    return name, column


def marker_words(named: str) -> tuple[str, str]:
    """The two markers of ``OPEN CLOSE``.

    Raises:
        RefusalCliffError: These are not two different words.
    """
    words = named.split()
    if len(words) != 2 or words[0] == words[1]:
        raise RefusalCliffError(
            f"{named!r} does not name the two markers around a thought. Write the opening and the "
            "closing marker with a blank between them: --thinking-markers '<think> </think>'."
        )
    return words[0], words[1]


def address(url: str) -> SplitResult:
    """The parts of the address of a server.

    Raises:
        RefusalCliffError: It is none that can be asked.
    """
    with suppress(ValueError):  # a bracket without its other half, a port above 65535
        parts = urlsplit(url)
        if parts.scheme in ("http", "https") and parts.hostname and parts.port != 0:
            return parts
    raise RefusalCliffError(
        "The endpoint is not an http or https address. Write it like "
        "http://localhost:8000/v1, with a port up to 65535."
    )


def json_object(text: str) -> dict[str, Any]:
    """An object of JSON.

    Raises:
        RefusalCliffError: It is none.
    """
    try:
        value = json.loads(text)
    except ValueError as error:
        raise RefusalCliffError(f"--extra-body is not JSON ({error}). Write one object.") from error
    if not isinstance(value, dict):
        raise RefusalCliffError('--extra-body is not a JSON object. Write it like {"top_k": 20}.')
    return value


def device(name: str) -> None:
    """A device that PyTorch can know here; whether it is there is seen when a model is loaded."""
    if not _DEVICE.fullmatch(name):
        raise RefusalCliffError(
            f"Unknown device {name!r}. Write auto, cpu, cuda, cuda:1 or mps (--device)."
        )
    kind = name.partition(":")[0]
    if kind == "mps" and sys.platform != "darwin":
        raise RefusalCliffError(no_device(name, "Only a Mac has it."))
    if kind == "cuda" and not _built_for_cuda():
        raise RefusalCliffError(no_device(name, "This build of PyTorch is made without CUDA."))


def _built_for_cuda() -> bool:
    """Whether PyTorch is, or is for ROCm, which it calls cuda, too; true where nothing tells.

    What the build says of itself stands in a file of a few lines: PyTorch takes seconds to import.
    """
    found = importlib.util.find_spec("torch")
    version = Path(str(found and found.origin)).parent / "version.py"
    if not version.is_file():
        return True
    said = runpy.run_path(str(version))
    return any(said.get(kind, True) for kind in ("cuda", "hip"))


def no_device(name: str, why: str) -> str:
    """What is said where a device cannot be used."""
    return (
        f"The device {name!r} cannot be used here: {why} Give --device cpu, or auto for what there "
        "is; a GPU needs a build of PyTorch made for it (see https://pytorch.org/get-started) and "
        "its driver."
    )


def source_name(source: str) -> str:
    """What the rows of a source are called after: its name without folders and ending."""
    return Path(source).stem


def check_fit_on(sources: Sequence[str], named: Collection[str]) -> None:
    """See whether an audit has all the sources that it is to be fitted on.

    Args:
        sources: Those to be fitted on.
        named: Names of all sources of an audit, see `source_name`.

    Raises:
        RefusalCliffError: One of them is not among all.
    """
    names = {*named}
    unknown = next((one for one in sources if names.isdisjoint((one, source_name(one)))), None)
    if unknown is not None:
        raise RefusalCliffError(
            f"{unknown} was given to --fit-on, but no prompt is from there. "
            f"Name one of: {', '.join(sorted(names))}."
        )


def chat_argument(pair: str) -> tuple[str, Value]:
    """What ``NAME=VALUE`` tells a chat template; a value is read as JSON, and else is a text.

    Raises:
        RefusalCliffError: It is no such pair, or its value is a list or an object.
    """
    name, equals, text = pair.partition("=")
    try:
        value = json.loads(text)
    except ValueError:
        value = text
    if not (equals and name.isidentifier()) or isinstance(value, list | dict):
        raise RefusalCliffError(
            f"{pair!r} does not set a variable of the chat template. Write --template-arg "
            "NAME=VALUE, such as enable_thinking=false or reasoning_effort=high."
        )
    return name, value
