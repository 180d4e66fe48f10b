"""What can be said of an argument before anything heavy is imported.

A typing error is answered at once: not after the seconds that torch takes to import, nor after
tries of the network. What an option can name is therefore listed here once more; a test compares
each list with the code that it stands for.
"""

from __future__ import annotations

import importlib.util
import json
import math
import re
import runpy
import sys
from collections.abc import Callable, Iterable, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import typer

from refusal_cliff.errors import RefusalCliffError
from refusal_cliff.organisms import ORGANISMS
from refusal_cliff.settings import chat_arguments, check_fit_on, no_device

BENCHMARKS = (
    *("advbench", "jailbreakbench", "jailbreakbench-benign", "harmbench", "strongreject"),
    *("wildjailbreak", "malicious-instruct", "sorry-bench", "xstest", "or-bench", "do-not-answer"),
    *("ultrachat", "alpaca", "dolly", "star-1", "safechain", "realsafe-r1", "wildjailbreak-train"),
)
CONTROLS = (
    *("taxonomy", "sources", "directions", "positions", "pruning", "intervention"),
    *("second-opinion", "together", "rollouts", "preset"),
)
STRATEGIES = (
    *("cliff", "final", "gated", "diverse", "rule", "judge", "longest", "random", "full"),
)
RANKINGS = ("causal", "causal-contrast", "attribution", "direct", "direct-contrast")
FORMS = ("adapter", "merged")
PRESETS = ("default", "paper")
ENGINES = ("local", "ray")
POOLS = ("late-median", "max", "q90", "mean")
LABELS = (
    *("harmful", "unsafe", "toxic", "jailbreak", "malicious", "1", "true"),
    *("benign", "safe", "harmless", "non-toxic", "nontoxic", "0", "false"),
)
FIELDS = ("id", "text", "label", "group", "category", "tags", "thinking", "response")
VERDICTS = ("no cliff", "undecided", "cliff")
ORGANISM_RECIPES = (*ORGANISMS, "tiny-lora")
_FILES = frozenset({".jsonl", ".csv", ".parquet", ".json", ".txt", ".tsv", ".safetensors", ".gguf"})
_HUB_NAME = re.compile(r"[\w.-]+(?:/[\w.-]+)?", re.ASCII)
_DEVICE = re.compile(r"auto|cpu|(?:cuda|mps|xpu|hpu|npu|mtia|ipu|hip|privateuseone)(?::\d+)?")
_AS_ALIKE = 0.75
"""How alike two names are of which one may be a typing error of the other."""

Check = Callable[[str], None]


def checked(check: Check) -> Callable[[Any], Any]:
    """A callback for an option: every value that was given is checked, and left as it is."""

    def callback(value: Any) -> Any:
        for one in value if isinstance(value, list | tuple) else (value,):
            if one is not None:
                check(str(one))
        return value

    return callback


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


def existing_file(name: str) -> None:
    """A file that is there."""
    if not Path(name).is_file():
        raise RefusalCliffError(f"There is no file {name}.{_beside(name)} Check the path.")


def existing_folder(name: str) -> None:
    """A folder that is there."""
    if not Path(name).is_dir():
        raise RefusalCliffError(f"There is no folder {name}.{_beside(name)} Check the path.")


def scores_folder(name: str) -> None:
    """A folder that trace wrote."""
    existing_folder(name)
    if not (Path(name) / "trace.json").is_file():
        raise RefusalCliffError(
            f"There is no trace.json in {name}, so that it holds no scores. Give the folder that "
            "refusal-cliff trace wrote (--out of trace)."
        )


def organism(names: Sequence[str]) -> Check:
    """One of the models whose right answers are known; an argument, not an option."""
    return _one_of(names, "There is no organism")


def known_organism(name: str) -> None:
    """One of them, or a folder that holds another."""
    if not Path(name).is_dir():
        organism(tuple(ORGANISMS))(name)


def probe_folder(name: str) -> None:
    """A folder that holds probes."""
    folder = Path(name)
    if not (folder / "probes.json").is_file():
        missing = f"folder {name}.{_beside(name)}"
        if folder.is_dir():
            missing = f"probes.json in {name}, so that it holds no probes."
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
        f"There is no file {name}, and no benchmark of that name.{looks or _beside(name)} Give a "
        f"JSON Lines, CSV or Parquet file, or one of: {', '.join(BENCHMARKS)}."
    )


def rows(name: str) -> None:
    """A file, a folder, or what may be a data set on the hub."""
    if Path(name).exists() or not _like_a_path(name):
        return
    raise RefusalCliffError(f"There is no file or folder {name}.{_beside(name)} Check the path.")


def model(name: str) -> None:
    """A folder, an organism, or what may be a model on the hub."""
    if name in ORGANISMS or Path(name).exists():
        return
    meant = "" if "/" in name else did_you_mean(name, ORGANISMS)
    if meant or _like_a_path(name) or not _HUB_NAME.fullmatch(name):
        raise RefusalCliffError(
            f"There is no model {name!r}: no such folder, no embedded organism, and no name of a "
            f"model on the Hugging Face hub.{meant or _beside(name)} Embedded are "
            f"{', '.join(ORGANISMS)}."
        )


def prompt_sources(harmful: Any, benign: Any, fit_on: Any, data: Any, traces: Any = None) -> None:
    """Prompts of both kinds, answers that are there, or the folder of the files that hold them."""
    named = (harmful and benign) or traces
    if named if data is None else not (harmful or benign or fit_on or traces):
        if data is None:
            check_fit_on(fit_on or (), (*(harmful or ()), *(benign or ()), *(traces or ())))
        return
    raise RefusalCliffError(
        "An audit needs harmful and benign prompts: give --harmful and --benign, files or names of "
        f"benchmarks ({', '.join(BENCHMARKS)}); or --traces, answers of the model that you have, "
        "with labels; or, for an organism of a pretrained model (refusal-cliff organism list), "
        "--data with the folder of its files."
    )


def column(pair: str) -> None:
    """``FIELD=COLUMN``."""
    name, equals, column = pair.partition("=")
    if not (equals and column) or name not in FIELDS:
        raise RefusalCliffError(
            f"{pair!r} does not say where a field is. Write FIELD=COLUMN, with one of the fields "
            f"{', '.join(FIELDS)}.{did_you_mean(name, FIELDS)}"
        )


def markers(named: str) -> None:
    """``OPEN CLOSE``, two different words."""
    words = named.split()
    if len(words) != 2 or words[0] == words[1]:
        raise RefusalCliffError(
            f"{named!r} does not name the two markers around a thought. Write the one that opens "
            "it and the one that closes it with a blank between: --thinking-markers "
            "'<think> </think>'."
        )


def address(url: str) -> None:
    """An address of a server, as far as its form tells."""
    try:
        parts = urlsplit(url)
        usable = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:  # a bracket without its other half, a port above 65535
        usable = False
    if not usable:
        raise RefusalCliffError(
            "The endpoint is not an http or https address. Write it like "
            "http://localhost:8000/v1, with a port up to 65535."
        )


def json_object(text: str) -> None:
    """An object of JSON."""
    try:
        value = json.loads(text)
    except ValueError as error:
        raise RefusalCliffError(f"--extra-body is not JSON ({error}). Write one object.") from error
    if not isinstance(value, dict):
        raise RefusalCliffError('--extra-body is not a JSON object. Write it like {"top_k": 20}.')


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


def template_argument(pair: str) -> None:
    """``NAME=VALUE`` for the chat template."""
    chat_arguments([pair])


def finite(value: Any) -> Any:
    """A callback for an option of a real number: neither NaN nor infinity is one."""
    for one in value if isinstance(value, list | tuple) else (value,):
        if one is not None and not math.isfinite(one):
            raise typer.BadParameter(f"{one} is not a finite number.")
    return value


def positive(value: Any) -> Any:
    """A callback for an option of a finite number above 0."""
    for one in value if isinstance(value, list | tuple) else (value,):
        if one is not None and not one > 0:
            raise typer.BadParameter(f"{one} is not above 0.")
    return finite(value)


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """A sentence with the known name that is most like this one; empty where none is."""
    names = list(known)
    found = get_close_matches(name.lower(), names, n=1, cutoff=_AS_ALIKE) or [
        other
        for other in names
        if sorted(other) == sorted(name.lower())  # two letters swapped
    ]
    return f" Did you mean {found[0]}?" if found else ""


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


def _beside(name: str) -> str:
    """A sentence with the file beside the missing one that has most its name; else empty."""
    path = Path(name)
    try:
        names = [other.name for other in path.parent.iterdir()]
    except OSError:
        return f" There is no folder {path.parent} either."
    found = get_close_matches(path.name, names, n=1, cutoff=_AS_ALIKE)
    return f" Did you mean {path.parent / found[0]}?" if found else ""
