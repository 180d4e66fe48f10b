"""summary.json: its schema, its documentation, and what happens to a file that does not fit."""

from __future__ import annotations

import importlib.util
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from report_example import example_summary

from refusal_cliff.errors import RefusalCliffError
from refusal_cliff.findings.summary import (
    Summary,
    read_summary,
    schema_text,
    write_schema,
    write_summary,
)

DOCS = Path(__file__).parent.parent / "docs" / "reference"
SCHEMA: dict[str, Any] = json.loads(schema_text())


def as_json(summary: Summary) -> dict[str, Any]:
    return summary.model_dump(mode="json", by_alias=True)


def key_paths(schema: dict[str, Any], before: str = "") -> Iterator[str]:
    """Every key as it is documented: ``probe.by_rule.<name>.auroc``, ``diffuse.by_heads[].asr``."""
    for choice in schema.get("anyOf", ()):
        yield from key_paths(choice, before)
    if "$ref" in schema:
        yield from key_paths(SCHEMA["$defs"][schema["$ref"].rpartition("/")[2]], before)
    if isinstance(schema.get("items"), dict):
        yield from key_paths(schema["items"], f"{before}[]")
    if isinstance(schema.get("additionalProperties"), dict):
        yield from key_paths(schema["additionalProperties"], f"{before}.<name>")
    for name, inner in schema.get("properties", {}).items():
        path = f"{before}.{name}".lstrip(".")
        yield path
        yield from key_paths(inner, path)


def documented() -> dict[str, str]:
    """What the page of the site says of every key."""
    file = DOCS.parent / "hooks.py"
    spec = importlib.util.spec_from_file_location("hooks", file)
    assert spec is not None and spec.loader is not None
    hooks = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(hooks)
    text = hooks.on_page_markdown((DOCS / "summary.md").read_text(encoding="utf-8"))
    return dict(re.findall(r"^\| `([^`]*)` \| [^|]+ \| ([^|]*) \|$", text, re.M))


def test_the_schema_file_is_current(tmp_path: Path) -> None:
    assert (DOCS / "summary.schema.json").read_text(encoding="utf-8") == schema_text()
    write_schema(tmp_path / "schema.json")
    assert (tmp_path / "schema.json").read_text(encoding="utf-8") == schema_text()


def test_the_schema_is_one() -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)


def test_an_example_validates() -> None:
    jsonschema.validate(as_json(example_summary()), SCHEMA)


@pytest.mark.parametrize(
    "part", ["control", "diffuse", "heads", "planted", "ablation", "proof", "selection"]
)
def test_a_part_that_was_not_measured_is_null(part: str) -> None:
    summary = as_json(example_summary())
    jsonschema.validate({**summary, part: None}, SCHEMA)
    del summary[part]
    with pytest.raises(jsonschema.ValidationError, match=part):
        jsonschema.validate(summary, SCHEMA)


def test_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "summary.json"
    write_summary(path, example_summary())
    assert read_summary(path) == example_summary()
    assert json.loads(path.read_text(encoding="utf-8"))["heads"]["list"][0] == "5.11"


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("cliff.plateau", 1.2),
        ("cliff.cliff_ci", [0.9, 0.1]),
        ("cliff.verdict", "maybe"),
        ("heads.list", ["first"]),
        ("ablation.n", -1),
        ("diffuse.by_heads", "none"),
        ("probe.layer", 0),
        ("probe.unheard_of", 1),
        ("seconds", {"probe": 1.0}),
        ("format", "3"),
    ],
)
def test_a_bad_file_is_refused_by_key(tmp_path: Path, key: str, value: object) -> None:
    bad = as_json(example_summary())
    *parents, last = key.split(".")
    place = bad
    for parent in parents:
        place = place[parent]
    place[last] = value
    path = tmp_path / "summary.json"
    path.write_text(json.dumps(bad), encoding="utf-8")
    with pytest.raises(RefusalCliffError, match=re.escape(f"at {key}")) as caught:
        read_summary(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", ["{", "", "[1, 2]", "null"])
def test_a_file_that_is_no_summary_is_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "summary.json"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(RefusalCliffError, match=re.escape(str(path))):
        read_summary(path)


def test_a_summary_of_an_earlier_format_says_what_to_do(tmp_path: Path) -> None:
    """Format 2 had no judge: the missing key is not the fault that a user can mend."""
    old = as_json(example_summary()) | {"format": 2}
    del old["judge"]
    path = tmp_path / "summary.json"
    path.write_text(json.dumps(old), encoding="utf-8")
    with pytest.raises(RefusalCliffError, match=r"format 2, and this .* reads format 4") as caught:
        read_summary(path)
    assert "same command in a new folder" in str(caught.value)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RefusalCliffError, match="absent"):
        read_summary(tmp_path / "absent.json")


def test_every_key_is_documented_and_no_other() -> None:
    found = documented()
    assert sorted(found) == sorted(set(key_paths(SCHEMA)))
    assert all(len(told) > 8 for told in found.values())
