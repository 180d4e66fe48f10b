"""Put the tables of runs of experiment controls and of audits into a page with a place for each.

python -m bench.controls_page runs/controls runs/smollm2 docs/results/tables/controls.md
python -m bench.controls_page runs/controls runs/smollm2 docs/results/controls.md

A place is a line <!-- control: NAME --> for tables or <!-- findings: NAME --> for what they say in
words, and a line <!-- end -->; what stands between them is replaced. Controls of the runs for which
the page has no place are named, and nothing is lost.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from refusal_cliff.controls.table import ControlTable, markdown
from refusal_cliff.io import read_as, read_json, write_text
from refusal_cliff.stages.control import control_file
from refusal_cliff.workflows.audit import KEY

PLACE = re.compile(r"<!-- (control|findings): ([\w-]+) -->\n.*?<!-- end -->", re.DOTALL)


def tables(run: Path, name: str) -> Iterator[tuple[str, Path]]:
    """Models of a run and the file of a control of each; an audit's one model has one key."""
    content = read_json(run / "manifest.json")["run"]
    for model in content["subjects"]:
        file = run / control_file(KEY if content["command"] == "audit" else model, name)
        if file.is_file():
            yield model, file


def section(runs: Sequence[Path], kind: str, name: str) -> str:
    """What a control says of each model, in words or as tables."""
    parts = []
    for model, file in (found for run in runs for found in tables(run, name)):
        table = read_as(file, ControlTable)
        words = f"**{model}.** {table.finding}"
        parts.append(words if kind == "findings" else f"### {model}: {name}\n\n{markdown(table)}")
    return "\n\n".join(parts) or "Not measured in these runs."


def main() -> None:
    """Rewrite the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("page", type=Path)
    chosen = parser.parse_args()
    text = chosen.page.read_text(encoding="utf-8")

    def filled(match: re.Match[str]) -> str:
        found = section(chosen.runs, match[1], match[2])
        return f"<!-- {match[1]}: {match[2]} -->\n\n{found}\n\n<!-- end -->"

    write_text(chosen.page, PLACE.sub(filled, text))
    files = [file for run in chosen.runs for file in run.glob("*/control-*.json")]
    measured = {file.stem.removeprefix("control-") for file in files}
    for name in sorted(measured - {match[2] for match in PLACE.finditer(text)}):
        print(f"no place for {name}: add <!-- control: {name} --> and <!-- end -->")


if __name__ == "__main__":
    main()
