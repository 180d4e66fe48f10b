"""What does the intervention do to the thinking? Heads out at some tokens, thinking kept or not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from refusal_cliff.controls.arms import COLUMNS, Arm, arm_rows
from refusal_cliff.controls.table import Cell, ControlTable, cell_text
from refusal_cliff.model.subject import Head
from refusal_cliff.thinking import ThinkingFormat

UNCHANGED = "nothing changed"
NEW = "heads out everywhere, new thinking"
FIXED = "heads out everywhere, same thinking"
FROM_CLOSING = "heads out from the closing on"
AT_CLOSING = "heads out at the closing tokens only"
HEADER = "header tokens again before the answer"


def header_of(fmt: ThinkingFormat) -> str:
    """What the chat template writes between the user's text and the model's first own word.

    The opener of the thinking is left out: the header is given again where the thinking is over.
    """
    return fmt.tail.partition(fmt.opener)[0] if fmt.opener else fmt.tail


def intervention_table(
    arms: Mapping[str, Arm], heads: Sequence[Head], left_out: int, seed: int = 0
) -> ControlTable:
    """Compare where the heads are taken out, and whether the thinking is generated again.

    Args:
        arms: By name, ``UNCHANGED`` among them.
        heads: The heads; where there are none, no arm takes any out.
        left_out: Prompts whose thinking never closed.
        seed: Seed of the bootstrap.
    """
    rows = arm_rows(arms, UNCHANGED, seed)
    return ControlTable(
        question="What does the intervention do to the thinking?",
        source="fixed and new thinking as in 2605.26772; header tokens as in 2510.18081",
        columns=COLUMNS,
        rows=rows,
        finding=_finding({name: row[1] for name, row in rows.items() if name != UNCHANGED}),
        notes=(
            f"Heads: {', '.join(map(str, heads)) or 'none found'}. With the same thinking, the "
            f"model's own thinking and closing tokens are given and the answer is generated "
            f"again. From the closing on, the heads are out only after the thinking, so these "
            f"rows need no second version. Changes are paired by prompt; intervals are "
            "Wilson's for shares and where all prompts agree, else a bootstrap over prompts. "
            f"Left out: {left_out} prompts whose thinking never closed.",
        ),
    )


def _finding(changes: Mapping[str, Cell]) -> str:
    """The change of each arm, and whether the closing tokens alone are enough."""
    told = "; ".join(f"{name}: {cell_text(cell, alone=False)}" for name, cell in changes.items())
    return f"Change of the attack success rate. {told[:1].upper()}{told[1:]}."
