"""Put the tables of a run of experiment controls into a page that has a place for each.

python bench/controls_page.py runs/controls docs/controls.md

A place is a line <!-- control: NAME --> and a line <!-- end -->; what stands between them is
replaced. Controls of the run for which the page has no place are named, and nothing is lost.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from refusal_cliff.controls.table import markdown, read_table
from refusal_cliff.io import read_json, write_text
from refusal_cliff.stages.control import control_file

PLACE = re.compile(r"<!-- control: ([\w-]+) -->\n.*?<!-- end -->", re.DOTALL)


def section(run: Path, name: str) -> str:
    """What a control says of each model, and its tables folded below."""
    parts = []
    for model in read_json(run / "manifest.json")["run"]["subjects"]:
        file = run / control_file(model, name)
        if not file.is_file():
            continue
        table = read_table(file)
        parts.append(
            f"**{model}.** {table.finding}\n\n<details><summary>{model}: numbers</summary>\n\n"
            f"{markdown(table)}\n\n</details>"
        )
    return "\n\n".join(parts) or "Not measured in this run."


def main() -> None:
    """Rewrite the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("page", type=Path)
    chosen = parser.parse_args()
    text = chosen.page.read_text(encoding="utf-8")

    def filled(match: re.Match[str]) -> str:
        return f"<!-- control: {match[1]} -->\n\n{section(chosen.run, match[1])}\n\n<!-- end -->"

    write_text(chosen.page, PLACE.sub(filled, text))
    measured = {file.stem.removeprefix("control-") for file in chosen.run.glob("*/control-*.json")}
    for name in sorted(measured - {match[1] for match in PLACE.finditer(text)}):
        print(f"no place for {name}: add <!-- control: {name} --> and <!-- end -->")


if __name__ == "__main__":
    main()
