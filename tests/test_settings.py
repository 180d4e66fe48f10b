"""One declaration of each setting: options, Python defaults and files are the same."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass, fields
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated, Any

import pytest
import typer
from hypothesis import given
from hypothesis import strategies as st
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tiny_chat import save_tiny
from typer.testing import CliRunner

from refusal_cliff import settings
from refusal_cliff.cli import app
from refusal_cliff.commands.grouped import CONFIG, grouped, without
from refusal_cliff.data.types import Prompt
from refusal_cliff.errors import RefusalCliffError
from refusal_cliff.generate import generate
from refusal_cliff.model.subject import load, load_subject
from refusal_cliff.settings import (
    PLAIN,
    Chat,
    Engine,
    GenerationConfig,
    JudgeSettings,
    Loading,
    RepairConfig,
    RowSettings,
    Selecting,
    Server,
    Writing,
)
from refusal_cliff.thinking import render_prompt

GROUPS = (
    Engine,
    *(GenerationConfig, JudgeSettings, Loading, RepairConfig, RowSettings, Selecting, Server),
    Writing,
)
TAKES = {
    "audit": (JudgeSettings, Writing, Server, Loading),
    "generate": (JudgeSettings, GenerationConfig, Server, Loading, RowSettings, Engine),
    "trace": (Loading, RowSettings, Engine),
    "select": (JudgeSettings, GenerationConfig, Loading, Selecting, Engine),
    "train": (RepairConfig, Loading),
    "repair": (JudgeSettings, GenerationConfig, RepairConfig, Loading, Selecting, Engine),
    "check": (JudgeSettings, GenerationConfig, Loading),
    "ablate": (JudgeSettings, GenerationConfig, Loading),
}


def command(name: str) -> Any:
    found: Any = typer.main.get_command(app)
    return found.commands[name]


@pytest.mark.parametrize("name", TAKES)
def test_defaults_of_options_are_those_of_python(name: str) -> None:
    options = {option.name: option for option in command(name).params}
    for kind in TAKES[name]:
        made = kind()
        for field in fields(kind):
            if "help" not in field.metadata:
                continue
            option = options.get(field.metadata.get("flag", field.name).replace("-", "_"))
            if option is None:
                assert field.name in ("error", "shard_size")  # where they mean nothing
                continue
            default = option.default
            value = getattr(made, field.name)
            assert default == (None if value == () else value), (name, field.name)


def test_every_setting_says_what_it_is() -> None:
    for kind in GROUPS:
        for field in fields(kind):
            assert field.name == "seed" or field.metadata["help"].endswith((".", "]"))


@dataclass(frozen=True)
class Drink:
    PANEL = "What is drunk"
    kind: str = settings.setting("tea", "Which.", choices=("tea", "milk"))
    cups: int = settings.setting(1, "How many.", min=1)
    spice: tuple[str, ...] = settings.setting((), "Into it; repeatable.")
    warm: bool = settings.setting(False, "Warmed.")


def drinking(out: Path, **values: Any) -> Any:
    """Run a command that takes `Drink`; the lines of a file and what is typed."""
    got: list[tuple[Drink, str]] = []

    @grouped
    def drink(
        *,
        out: Annotated[Path, typer.Option("--out")],
        drunk: Annotated[Drink, without("warm")],
        name: Annotated[str, typer.Option("--name")] = "you",
    ) -> None:
        got.append((drunk, name))

    small = typer.Typer()
    small.command()(drink)
    result = CliRunner().invoke(small, ["--out", str(out), *values.pop("typed", [])])
    return got[0] if got else result


def test_a_file_says_what_is_not_typed(tmp_path: Path) -> None:
    file = tmp_path / "drink.toml"
    file.write_text('kind = "milk"\ncups = 3\nspice = ["salt", "mint"]\nname = "me"\n')
    found = drinking(tmp_path, typed=["--config", str(file), "--cups", "2"])
    assert found == (Drink("milk", 2, ("salt", "mint")), "me")
    written = tomllib.loads((tmp_path / CONFIG).read_text())
    assert written == {"kind": "milk", "cups": 2, "spice": ["salt", "mint"], "name": "me"}
    again = drinking(tmp_path, typed=["--config", str(tmp_path / CONFIG)])
    assert again == found
    assert drinking(tmp_path) == (Drink(), "you")
    file.write_text('spice = "salt"\n')
    assert drinking(tmp_path, typed=["--config", str(file)]) == (Drink(spice=("salt",)), "you")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("cup = 2", "has no option 'cup'. Did you mean cups?"),
        ("warm = true", "has no option 'warm'"),
        ("[kind]\na = 1", "has no option 'kind'"),
        ("cups = ", "is not a TOML file"),
        ("config = 'other.toml'", "has no option 'config'"),
        ("kind = 'beer'", "Unknown kind 'beer'"),
    ],
)
def test_a_wrong_file_says_what_is_wrong(text: str, told: str, tmp_path: Path) -> None:
    file = tmp_path / "wrong.toml"
    file.write_text(text)
    result = drinking(tmp_path, typed=["--config", str(file)])
    assert isinstance(result.exception, RefusalCliffError)
    assert told in str(result.exception)


def test_a_key_that_was_typed_instead_of_its_name_is_not_written(tmp_path: Path) -> None:
    @grouped
    def ask(*, out: Annotated[Path, typer.Option("--out")], server: Server) -> None:
        assert server.key == "sk-secret-123456"

    small = typer.Typer()
    small.command()(ask)
    CliRunner().invoke(small, ["--out", str(tmp_path), "--key", "sk-secret-123456"])
    assert "secret" not in (tmp_path / CONFIG).read_text()


def test_what_is_published_holds_no_options(tmp_path: Path) -> None:
    def train(*, out: Annotated[Path, typer.Option("--out")], loading: Loading) -> None:
        assert loading == Loading()

    small = typer.Typer()
    small.command()(grouped(train, kept=False))
    assert CliRunner().invoke(small, ["--out", str(tmp_path)]).exit_code == 0
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_written_into_a_folder_that_was_refused(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    line = ["audit", "--model", "tiny", "--out", str(tmp_path), "--quick"]
    assert CliRunner().invoke(app, line).exit_code == 1
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


JSON = st.one_of(st.text(), st.booleans(), st.integers(-9999, 9999), st.none())


@given(st.text(), st.dictionaries(st.sampled_from(["enable_thinking", "effort", "n"]), JSON))
def test_a_template_says_what_it_is_told(system: str, told: dict[str, Any]) -> None:
    """Whatever the text holds, quotes and Jinja's own signs too."""
    chat = Chat(system, told)
    shown = "".join(f"|{{{{ {name} is none and 'none' or {name} }}}}" for name in told)
    written = chat.written_into("{{ messages | map(attribute='content') | join('\x00') }}" + shown)
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    out = environment.from_string(written).render(
        messages=[{"role": "user", "content": "Hi"}], enable_thinking=True
    )
    said = "".join(f"|{'none' if value is None else value}" for value in told.values())
    assert out == "\x00".join([*([system] if system else []), "Hi"]) + said
    assert chat.written_into(written) == written


def test_chat_arguments() -> None:
    pairs = ("enable_thinking=false", "reasoning_effort=high", "n=3", "x=null", "y=")
    assert Loading(template_arg=pairs).chat.arguments == {
        "enable_thinking": False, "reasoning_effort": "high", "n": 3, "x": None, "y": "",
    }  # fmt: skip
    for wrong in ("enable_thinking", "=1", "a b=1", "x=[1]", "x={}"):
        with pytest.raises(RefusalCliffError, match="template-arg"):
            _ = Loading(template_arg=(wrong,)).chat


def test_a_model_is_spoken_to_as_it_was_loaded(tmp_path: Path) -> None:
    folder = str(save_tiny(tmp_path))
    plain, told = (
        load_subject(folder, device="cpu", chat=chat) for chat in (PLAIN, Chat("Be kind."))
    )
    system = "<|im_start|>system\nBe kind.<|im_end|>\n"
    prompts = [str(s.tokenizer.decode(render_prompt(s.tokenizer, "Hi"))) for s in (plain, told)]
    assert prompts[1] == system + prompts[0]
    assert plain.fingerprint != told.fingerprint
    assert plain.format == told.format
    assert load(folder, Loading(device="cpu")).fingerprint == plain.fingerprint


def test_a_model_spread_over_devices_is_the_same(tmp_path: Path) -> None:
    folder = str(save_tiny(tmp_path))
    plain, spread = (load(folder, Loading(device="cpu", device_map=way)) for way in (None, "auto"))
    assert plain.fingerprint == spread.fingerprint
    prompts = [Prompt("p", "Hi", "benign"), Prompt("q", "Why?", "benign")]
    config = GenerationConfig(max_new_tokens=12)
    assert generate(plain, prompts, config) == generate(spread, prompts, config)


@pytest.mark.parametrize(
    ("configured", "said", "expected"),
    [
        (None, {}, (0.0, 1.0, 0)),
        ({"do_sample": False, "temperature": 0.6}, {}, (0.0, 1.0, 0)),
        ({"do_sample": True, "temperature": 0.6, "top_p": 0.95, "top_k": 20}, {}, (0.6, 0.95, 20)),
        ({"do_sample": True}, {}, (1.0, 1.0, 0)),
        (
            {"do_sample": True, "temperature": 0.6, "top_p": 0.95},
            {"temperature": 0.0},
            (0, 0.95, 0),
        ),
        ({"do_sample": True, "temperature": "hot"}, {"top_k": 5}, (1.0, 1.0, 5)),
    ],
)
def test_a_model_writes_as_its_makers_ask(
    configured: dict[str, Any] | None, said: dict[str, Any], expected: tuple[float, float, int]
) -> None:
    own = None if configured is None else SimpleNamespace(**configured)
    found = Writing(100, **said).of_model(own, 7)
    assert (found.temperature, found.top_p, found.top_k) == expected
    assert (found.max_new_tokens, found.seed) == (100, 7)
