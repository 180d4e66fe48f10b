"""What the faults of the paper's code do to the numbers, each re-enacted alone on the organisms.

    python -m bench.paper_code runs/controls docs/results/tables/paper-preset.md

reads a run of `python -m lab controls` and rewrites the page between its lines
<!-- paper code --> and <!-- end -->. Everything here is written from a description of what that
code does; nothing of it is part of the package.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch

from bench.paper_code.case import Case, Effect, load_case
from bench.paper_code.counting import benign_effects, selection_effects, unfinished_effects
from bench.paper_code.fit import fit_effects, label_effects, negative_effects
from bench.paper_code.interventions import (
    mask_effects,
    norm_effects,
    population_effects,
    renormalisation_effects,
    scale_effects,
)
from bench.paper_code.readings import (
    curve_effects,
    layer_effects,
    position_effects,
    system_effects,
    text_effects,
)
from refusal_cliff.controls.table import Cell, cell_text, rounded
from refusal_cliff.io import read_json, write_text

FAULTS: Mapping[str, Callable[[Case], list[Effect]]] = {
    "mean curve: zeros before shorter traces, 100 points, 21 drawn": curve_effects,
    "probe fitted by 5 epochs of Adam; best validation epoch reported": fit_effects,
    "refusals found by words in 32 characters": label_effects,
    "negatives not filtered": negative_effects,
    "probe after the norm used on states before it": layer_effects,
    "text tokenised again, a blank line before the thinking": text_effects,
    "thinking written after a system prompt, read without": system_effects,
    "place −1 of right-padded batches": position_effects,
    "contributions: batch means over the number of items": scale_effects,
    "heads ranked on all harmful prompts": population_effects,
    "ablation renormalised over the whole batch": renormalisation_effects,
    "attention of Qwen3 without its norms, no head out": norm_effects,
    "attention of Llama without its mask, no head out": mask_effects,
    "unfinished output counts as an answer": unfinished_effects,
    "benign prompts counted in the ASR": benign_effects,
    "training examples ranked by the final score alone": selection_effects,
}
PLACE = re.compile(r"<!-- paper code -->\n.*?<!-- end -->", re.DOTALL)

Found = Mapping[str, Sequence[Effect]]


def measured(case: Case) -> Found:
    """Every fault, on one organism."""
    found = {}
    for name, measure in FAULTS.items():
        print(f"{case.subject.name}: {name}", file=sys.stderr, flush=True)
        found[name] = measure(case)
    return found


def summary(found: Mapping[str, Found]) -> str:
    """Every number of every organism, without intervals: ours → with the fault."""
    lines = [
        f"| the paper's code | measured | {' | '.join(found)} |",
        "|---" * (len(found) + 2) + "|",
    ]
    first = next(iter(found.values()))
    for name, effects in first.items():
        for place, effect in enumerate(effects):
            pairs = [_pair(of[name][place]) for of in found.values()]
            head = name if place == 0 else ""
            lines.append(f"| {head} | {effect.measure} | {' | '.join(pairs)} |")
    return "\n".join(lines)


def _pair(effect: Effect) -> str:
    return f"{_point(effect.ours)} → {_point(effect.theirs)}"


def _point(cell: Cell) -> str:
    return "–" if cell.value is None else rounded(cell.value)


def details(found: Found) -> str:
    """One organism, with intervals and n."""
    lines = ["| the paper's code | measured | ours | with the fault |", "|---|---|---|---|"]
    for name, effects in found.items():
        for place, effect in enumerate(effects):
            head = name if place == 0 else ""
            cells = f"{cell_text(effect.ours)} | {cell_text(effect.theirs)}"
            lines.append(f"| {head} | {effect.measure} | {cells} |")
    return "\n".join(lines)


def section(found: Mapping[str, Found]) -> str:
    """The part of the page."""
    folded = [f"## {name}: intervals and n\n\n{details(of)}" for name, of in found.items()]
    return "\n\n".join([summary(found), *folded])


def main() -> None:
    """Measure, and rewrite the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("page", type=Path)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    text = chosen.page.read_text(encoding="utf-8")
    if not PLACE.search(text):
        parser.error(f"{chosen.page} has no lines <!-- paper code --> and <!-- end -->; add them")
    names = read_json(chosen.run / "manifest.json")["run"]["subjects"]
    part = section({name: measured(load_case(chosen.run, name)) for name in names})
    filled = PLACE.sub(lambda _: f"<!-- paper code -->\n\n{part}\n\n<!-- end -->", text)
    write_text(chosen.page, filled)


if __name__ == "__main__":
    main()
