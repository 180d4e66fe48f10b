"""Do heads chosen by what they do together restore refusal, where the top of a ranking does not?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from refusal_cliff.controls.arms import COLUMNS, Arm, arm_rows
from refusal_cliff.controls.intervention import UNCHANGED
from refusal_cliff.controls.table import ControlTable, cell_text
from refusal_cliff.model.subject import Head

FOUND = "heads found out"
TOP = "top of the ranking out"
TOGETHER = "chosen together out"
PLANTED = "planted heads out"


def together_table(
    arms: Mapping[str, Arm], heads: Mapping[str, Sequence[Head]], seed: int = 0
) -> ControlTable:
    """Compare sets of heads by what the model does without them.

    Args:
        arms: By name, ``UNCHANGED`` among them.
        heads: What is out in each other arm.
        seed: Seed of the bootstrap.
    """
    rows = {name: row[:-1] for name, row in arm_rows(arms, UNCHANGED, seed).items()}  # no scores
    told = "; ".join(
        f"{name} ({len(heads[name])}): {cell_text(row[0], alone=False)}"
        for name, row in rows.items()
        if name in heads
    )
    as_it_is = cell_text(rows[UNCHANGED][0], alone=False)
    named = "; ".join(f"{name}: {' '.join(map(str, some))}" for name, some in heads.items())
    return ControlTable(
        question="Do heads chosen by what they do together restore refusal?",
        source="greedy selection by exact joint effect, like Sahara, 2410.13708",
        columns=COLUMNS[:-1],
        rows=rows,
        finding=f"ASR {as_it_is} as it is. {told[:1].upper()}{told[1:]}.",
        notes=(
            f"{named}. Heads are ranked and chosen on the prompts that the probe is fitted on; the "
            "rates are of the others, with the thinking generated again. Changes are paired by "
            "prompt.",
        ),
    )
