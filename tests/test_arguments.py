"""Arguments are checked at once: by name, by range and by path, before torch is imported."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, get_type_hints

import pytest
import typer
from answered_light import Answer, answers
from torch.version import cuda, hip
from typer.testing import CliRunner

import refusal_cliff
from refusal_cliff import settings
from refusal_cliff.cli import app
from refusal_cliff.commands import arguments
from refusal_cliff.commands.grouped import command_line, remember
from refusal_cliff.errors import RefusalCliffError

ROOT = Path(refusal_cliff.__file__).parent
FOREIGN = {"--help", "--no-deps", "--local-dir"}  # of typer, of pip, of hf download
FOREIGN |= {"--enable-lora", "--lora-modules", "--max-lora-rank"}  # of vLLM
STYLES = {"palette.py", "chart.py"}  # a variable of a style sheet is written like an option
RAISED_BY = {
    "repair/training.py": ("train", "repair"),
    "repair/gate.py": ("check",),
    "select/": ("select", "repair"),
    "cliff/": ("trace", "cliff", "audit"),
    "judges/": ("generate", "judge", "audit", "check", "repair", "select", "ablate"),
    "answers/calibration.py": ("judge calibrate",),
    "workflows/audit_prompts.py": ("audit",),
    "workflows/repair_loop.py": ("repair", "check"),
}


def all_commands(command: Any = None, path: tuple[str, ...] = ()) -> Iterator[tuple[str, Any]]:
    command = command or typer.main.get_command(app)
    yield " ".join(path), command
    for name, inner in getattr(command, "commands", {}).items():
        yield from all_commands(inner, (*path, name))


COMMANDS = dict(all_commands())
OPTIONS = {
    name: {text for param in command.params for text in (*param.opts, *param.secondary_opts)}
    for name, command in COMMANDS.items()
}


def fill(folder: Path) -> Path:
    for name in ("harmful.jsonl", "benign.jsonl", "heads.parquet", "traces.jsonl"):
        (folder / name).write_text("")
    (folder / "probe").mkdir()
    (folder / "probe/probes.json").write_text("{}")
    (folder / "scores").mkdir()
    (folder / "scores/trace.json").write_text("{}")
    return folder


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return fill(tmp_path)


AUDIT = "audit --model tiny --harmful harmful.jsonl --benign benign.jsonl --out run"
CHECK = "check --model tiny --probe probe"
SELECT = "select --model tiny --probe probe --data harmful.jsonl --out run"
TRAIN = "train --model tiny --selected harmful.jsonl --benign benign.jsonl --out run"
REPAIR = "repair --model tiny --probe probe --data harmful.jsonl --benign benign.jsonl --out run"
ABLATE = "ablate --model tiny --heads heads.parquet --export adapter run"
GENERATE = "generate --prompts harmful.jsonl --model tiny --out run"
TRACE = "trace --model tiny --probe probe --traces traces.jsonl --out run"


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (f"{AUDIT} --harmful nope.jsonl", "There is no file nope.jsonl, and no benchmark"),
        (f"{AUDIT} --harmful harmfull.jsonl", "Did you mean harmful.jsonl?"),
        (f"{AUDIT} --benign xstst", "Did you mean xstest?"),
        (f"{AUDIT} --harmful AdvBench", "Did you mean advbench?"),
        (f"{AUDIT} --preset papr", "Did you mean paper?"),
        (f"{AUDIT} --control taxnomy", "Did you mean taxonomy?"),
        (f"{AUDIT} --model tinny", "Did you mean tiny?"),
        (f"{AUDIT} --model tyni", "Did you mean tiny?"),
        ("audit --model tiny --out run", "An audit needs harmful and benign prompts"),
        (f"{AUDIT} --device gpu", "Unknown device 'gpu'."),
        (f"{AUDIT} --fit-on harmfull.jsonl", "Name one of: benign, harmful"),
        (f"{AUDIT} --column foo=bar", "'foo=bar' does not say where a field is."),
        (f"{AUDIT} --column txt=bar", "Did you mean text?"),
        (f"{AUDIT} --model TINY-aligned", "Did you mean tiny-aligned?"),
        (f"{AUDIT} --model ./nothing", "There is no model './nothing'"),
        (f"{AUDIT} --model runs/x/y", "There is no model 'runs/x/y'"),
        (f"{AUDIT} --dtype float61", "(--dtype). Did you mean float64?"),
        (f"{AUDIT} --judge lama-guard-3", "Did you mean llama-guard-3?"),
        (f"{CHECK} --judge wildgard", "Did you mean wildguard?"),
        (f"{SELECT} --judge rubrik", "Did you mean rubric?"),
        (f"{REPAIR} --judge harmbnch", "Did you mean harmbench?"),
        (f"{ABLATE} --judge qwen3gard", "Did you mean qwen3guard?"),
        (f"{CHECK} --judge-error errors.json", "There is no file errors.json."),
        (f"{AUDIT} --judge rubric", "A judge with a rubric needs a model."),
        (f"{CHECK} --judge rubric --prompts harmful.jsonl", "Name it with --judge-model"),
        (f"{CHECK} --judge-model m --prompts harmful.jsonl", "The judge rules has no weights"),
        (f"{CHECK} --prompts no.jsonl", "There is no file no.jsonl."),
        (f"{CHECK} --probe run/model", "There is no folder run/model. There is no folder run"),
        (f"{CHECK} --probe prob", "Did you mean probe?"),
        (f"{CHECK} --probe scores", "There is no probes.json in scores"),
        (f"{CHECK} --probe probe/probes.json", "Did you mean probe?"),
        (f"{CHECK} --probe .", "it holds no probes. Did you mean probe?"),
        ("figures harmful.jsonl", "There is no folder harmful.jsonl. harmful.jsonl is a file."),
        (f"{TRAIN} --selected probe", "There is no file probe. probe is a folder."),
        (f"{CHECK} --allow clif", "Did you mean cliff?"),
        (f"{CHECK} --judge-endpoint localhost:8000", "not an http or https address"),
        (f"{SELECT} --strategy clif", "Did you mean cliff?"),
        (f"{SELECT} --engine rey", "Unknown engine 'rey'."),
        (f"{SELECT} --thinking mine", "Write one of: own, data (--thinking)."),
        (f"{SELECT} --data harmful.json", "Did you mean harmful.jsonl?"),
        (f"{SELECT} --label unsave", "Did you mean unsafe?"),
        (f"{TRAIN} --method lara", "Did you mean lora?"),
        (f"{TRAIN} --selected sel.jsonl", "There is no file sel.jsonl."),
        (f"{REPAIR} --target mine", "Unknown target 'mine'."),
        (f"{ABLATE} --heads head.parquet", "Did you mean heads.parquet?"),
        (f"{ABLATE} --method drect", "Did you mean direct?"),
        ("ablate --model tiny --heads heads.parquet --export adaptor x", "Did you mean adapter?"),
        (f"{GENERATE} --judge lama-guard-3", "Did you mean llama-guard-3?"),
        (f"{GENERATE} --prompts advbnch", "Did you mean advbench?"),
        (f"{GENERATE} --judge rubric", "A judge with a rubric needs a model."),
        (f"{GENERATE} --endpoint localhost:8000", "not an http or https address"),
        (f"{GENERATE} --endpoint http://x --extra-body [", "--extra-body is not JSON"),
        (f"{GENERATE} --thinking-markers <why>", "does not name the two markers"),
        (f"{GENERATE} --model smolm2", "Did you mean smollm2?"),
        ("judge --traces trace.jsonl --out run", "Did you mean traces.jsonl?"),
        ("judge calibrate --labelled people.jsonl", "There is no file people.jsonl."),
        ("judge calibrate --labelled traces.jsonl --verdict refuse", "Did you mean refused?"),
        ("evaluate --traces trace.jsonl", "Did you mean traces.jsonl?"),
        (f"{TRACE} --traces a/b/c.csv", "There is no file or folder a/b/c.csv."),
        ("cliff --scores scores --pool mean-of", "Unknown pool 'mean-of'."),
    ],
)
def test_a_typing_error_is_answered_by_name(command: str, said: str, folder: Path) -> None:
    result = CliRunner().invoke(app, command.split())
    assert result.exit_code == 1, (result.output, result.exception)
    assert said in result.stderr
    assert not (folder / "run").exists()


LIGHT = (
    f"{AUDIT} --harmful nope.jsonl",
    f"{AUDIT} --preset papr",
    f"{AUDIT} --model tinny",
    "audit --model tiny --out run",
    f"{AUDIT} --judge rubric",
    f"{AUDIT} --device gpu",
    f"{AUDIT} --fit-on harmfull.jsonl",
    *([] if cuda or hip else [f"{GENERATE} --device cuda"]),
    f"{TRACE} --column foo=bar",
    f"{GENERATE} --endpoint nowhere",
    f"{CHECK} --allow clif",
    *(f"{line} --out ." for line in (GENERATE, AUDIT, CHECK, SELECT, TRAIN, REPAIR, TRACE)),
    "ablate --model tiny --heads heads.parquet --export adapter .",
    "evaluate --traces traces.jsonl --out heads.parquet",
    *(f"{line} --judge lama-guard-3" for line in (GENERATE, AUDIT, CHECK, SELECT, REPAIR)),
    f"{CHECK} --judge-error no.json",
    f"{CHECK} --max-cliff nan",
    f"{TRAIN} --lr inf",
    "evaluate --traces nope.jsonl",
    "figures probe",
    "report probe",
    *(f"{name} --help" for name in COMMANDS),
)
"""What is answered before anything heavy is imported."""


@pytest.fixture(scope="module")
def light(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Answer]:
    return answers("refusal_cliff.cli", LIGHT, fill(tmp_path_factory.mktemp("light")))


@pytest.mark.parametrize("command", LIGHT)
def test_nothing_heavy_is_imported_for_it(command: str, light: dict[str, Answer]) -> None:
    status, heavy, stderr = light[command]
    assert heavy == []
    assert status == 0 if command.endswith("--help") else status in (1, 2) and stderr.strip()
    assert "Traceback" not in stderr


WRONG = {
    "demo": "--organisms nope",
    "audit": f"{AUDIT} --harmful nope.jsonl",
    "generate": f"{GENERATE} --prompts nope.jsonl",
    "judge": "--traces nope.jsonl --out run",
    "judge calibrate": "--labelled nope.jsonl",
    "evaluate": "--traces nope.jsonl",
    "trace": f"{TRACE} --probe nope",
    "cliff": "--scores nope",
    "ablate": f"{ABLATE} --heads nope.parquet",
    "select": f"{SELECT} --data nope.jsonl",
    "train": f"{TRAIN} --selected nope.jsonl",
    "repair": f"{REPAIR} --benign nope.jsonl",
    "check": f"{CHECK} --prompts nope.jsonl",
    "compare": "nope nope --out run",
    "report": "nope",
    "figures": "nope --format svg",
    "publish": "nope --hub owner/name",
    "organism list": "nope",
    "organism card": "nope",
}
"""One argument that is wrong, for each command; what comes before it is right."""


def test_every_command_refuses_a_wrong_argument_before_anything_heavy(folder: Path) -> None:
    """All in one process: what one of them imports, the rest would show too."""
    assert set(WRONG) == {name for name, c in COMMANDS.items() if c.callback and name} - {
        "organism"
    }
    lines = [
        line if line.split()[0] == name.split()[0] else f"{name} {line}"
        for name, line in WRONG.items()
    ]
    for line, (status, heavy, stderr) in answers("refusal_cliff.cli", lines, folder).items():
        assert status in (1, 2) and stderr.strip() and not heavy, (line, status, heavy, stderr)
        assert "Traceback" not in stderr
    assert not (folder / "run").exists()


def numbers() -> list[tuple[str, str]]:
    """Every option of a real number, by the annotation of its parameter."""
    return [
        (name, param.opts[0])
        for name, command in COMMANDS.items()
        if command.callback is not None
        for param in command.params
        if "float" in str(get_type_hints(command.callback).get(param.name))
    ]


@pytest.mark.parametrize(("name", "option"), numbers())
@pytest.mark.parametrize("value", ["nan", "inf", "-inf", "-5", "1e999"])
def test_a_number_that_is_none_is_refused_at_the_door(
    name: str, option: str, value: str, folder: Path
) -> None:
    line = {
        "audit": AUDIT, "check": CHECK, "select": SELECT, "train": TRAIN, "repair": REPAIR,
        "ablate": ABLATE, "generate": GENERATE,
    }.get(name, name)  # fmt: skip
    result = CliRunner().invoke(app, [*line.split(), option, value])
    assert result.exit_code == 2, (result.output, result.exception)
    assert option in result.stderr


def test_all_commands_with_numbers_were_met() -> None:
    assert {name for name, _ in numbers()} == {
        *("audit", "check", "select", "train", "repair", "ablate", "generate"),
    }


def test_the_names_are_those_of_the_code() -> None:
    from refusal_cliff.answers.benchmarks import BENCHMARKS
    from refusal_cliff.cliff.curves import POOLS
    from refusal_cliff.heads.table import METHODS as RANKINGS
    from refusal_cliff.judges.guards import GUARDS
    from refusal_cliff.repair.gate import VERDICTS
    from refusal_cliff.stages.control import CONTROLS
    from refusal_cliff.stages.study import PRESETS
    from refusal_cliff.user_text import FIELDS
    from refusal_cliff.workflows.export import WRITERS

    assert tuple(BENCHMARKS) == arguments.BENCHMARKS
    assert tuple(POOLS) == tuple(settings.POOLS)
    assert tuple(RANKINGS) == arguments.RANKINGS
    assert ("rules", *GUARDS, "rubric") == settings.JUDGES
    assert tuple(CONTROLS) == arguments.CONTROLS
    assert tuple(PRESETS) == arguments.PRESETS
    assert tuple(WRITERS) == arguments.FORMS
    named = ("id", "text", "label", "group", "category", "tags", "thinking", "response")
    assert named == FIELDS
    assert VERDICTS == arguments.VERDICTS


@pytest.mark.parametrize("name", ["gpt2", "Qwen/Qwen3-8B", "tiny", "smollm2-planted", "org/tiny"])
def test_a_name_that_may_be_on_the_hub_is_left_to_it(name: str) -> None:
    arguments.model(name)
    arguments.rows(name)


@pytest.mark.parametrize("name", ["a b", "ä/b", "x/y/z", "~/m", "/nowhere", "m.safetensors", ""])
def test_a_name_that_cannot_be_on_the_hub_is_refused(name: str, folder: Path) -> None:
    if name:
        with pytest.raises(RefusalCliffError, match="There is no model"):
            arguments.model(name)


@cache
def named_options() -> list[tuple[str, int, str]]:
    """Options in the texts of the package, docstrings apart."""
    found: list[tuple[str, int, str]] = []
    for path in sorted(ROOT.rglob("*.py")):
        tree = ast.parse(path.read_text("utf-8"))
        documentation = {
            id(node.body[0].value)
            for node in ast.walk(tree)
            if isinstance(node, ast.Module | ast.FunctionDef | ast.ClassDef)
            and node.body
            and isinstance(node.body[0], ast.Expr)
        }
        for node in ast.walk(tree):
            text = getattr(node, "value", None)
            if not isinstance(node, ast.Constant) or not isinstance(text, str):
                continue
            if id(node) not in documentation and path.name not in STYLES:
                options = re.findall(r"(?<![\w-])--[a-z][a-z-]*[a-z]", text)
                found += [(str(path.relative_to(ROOT)), node.lineno, o) for o in options]
    return found


def test_every_option_that_a_message_names_exists() -> None:
    known = set().union(*OPTIONS.values()) | FOREIGN
    assert [place for place in named_options() if place[2] not in known] == []
    assert len(named_options()) > 50


def test_a_message_names_an_option_of_a_command_that_can_show_it() -> None:
    wrong = [
        (place, line, option)
        for place, line, option in named_options()
        for start, names in RAISED_BY.items()
        if place.startswith(start) and not any(option in OPTIONS[name] for name in names)
    ]
    assert wrong == []


def test_a_command_line_is_quoted_and_holds_no_secret() -> None:
    remember(["audit", "--model", "my model", "--harmful", "a;b.jsonl", "--seed", "3"])
    assert command_line() == "refusal-cliff audit --model 'my model' --harmful 'a;b.jsonl' --seed 3"
    secret = "sk-proj-" + "a" * 20
    remember(
        [
            *("generate", "--key", secret, f"--judge-key={secret}", "--key", "MY_KEY"),
            *("--endpoint", f"https://me:{secret}@host/v1", "--extra-body", f'{{"k": "{secret}"}}'),
        ]
    )
    line = command_line()
    assert secret not in line and "me:" not in line
    assert "MY_KEY" in line and "@host/v1" in line


def test_what_was_typed_is_remembered(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    CliRunner().invoke(app, ["evaluate", "--traces", "no such file.jsonl"])
    assert command_line() == "refusal-cliff evaluate --traces 'no such file.jsonl'"
