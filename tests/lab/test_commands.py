"""The laboratory's commands: help, and wrong arguments answered before anything heavy."""

from __future__ import annotations

from pathlib import Path

import pytest
from answered_light import Answer, answers
from typer.testing import CliRunner

from lab import fooling, recipe
from lab.__main__ import RECIPES, app
from lab.pretrained import recipe as pretrained
from lab.pretrained.reasoner import REASONERS
from refusal_cliff.io import write_json
from refusal_cliff.organisms import CARD

RUNNER = CliRunner()
ROOT = Path(__file__).parents[2]


WRONG = {
    "controls tinny": "Did you mean tiny?",
    "controls Qwen/Qwn": "There is no organism 'Qwen/Qwn'.",
    "less-is-more --strategy rnd": "Unknown strategy 'rnd'.",
    "less-is-more --fraction nan": "--fraction",
    "train nope --out run": "There is no organism 'nope'.",
    "bench-heads --organisms 0 --out run": "--organisms",
}


@pytest.fixture(scope="module")
def answered() -> dict[str, Answer]:
    return answers("lab.__main__", tuple(WRONG), ROOT)


@pytest.mark.parametrize("command", WRONG)
def test_a_typing_error_is_answered(command: str, answered: dict[str, Answer]) -> None:
    status, heavy, stderr = answered[command]
    assert status in (1, 2)
    assert WRONG[command] in " ".join(stderr.split()) and "torch" not in heavy
    assert not (ROOT / "run").exists()


def test_the_names_are_those_of_the_recipes() -> None:
    assert set(RECIPES) == {*recipe.NAMES, fooling.NAME, *pretrained.NAMES, *REASONERS}


@pytest.mark.parametrize("command", ["train", "bench-heads", "less-is-more", "controls"])
def test_every_command_has_help(command: str) -> None:
    result = RUNNER.invoke(app, [command, "--help"])
    assert result.exit_code == 0 and "Usage" in result.output
    for option in ("--quiet", "-q", "--verbose", "-v", "--json", "--config"):
        assert option in result.output


def test_a_trained_organism_is_shown_as_it_is_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def train(name: str, seed: int, out: Path, *_: object, **__: object) -> None:
        write_json(out / CARD, {"name": name, "seed": seed})

    monkeypatch.setattr("lab.recipe.train", train)
    asked = ["train", "tiny-lora", "--seed", "3", "-q", "--out"]
    quiet, told = (
        RUNNER.invoke(app, [*asked, str(tmp_path / name), *more])
        for name, more in (("made", []), ("more", ["--json"]))
    )
    assert (quiet.exit_code, quiet.output) == (0, "")
    assert told.output == '{"name": "tiny-lora", "seed": 3}\n'
    assert [file.name for file in (tmp_path / "made").iterdir()] == [CARD]


def test_public_files_are_for_pretrained_organisms_only(tmp_path: Path) -> None:
    made = str(tmp_path / "made")
    given = RUNNER.invoke(app, ["train", "tiny", "--data", ".", "--out", made])
    missing = RUNNER.invoke(app, ["train", "smollm2", "--out", made])
    assert (given.exit_code, missing.exit_code) == (1, 1)
    assert "Leave it out: tiny is trained in its own language" in " ".join(given.stderr.split())
    assert "--data DIR" in missing.stderr
    assert not Path(made).exists()
