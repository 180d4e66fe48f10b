"""Rows of the table of heads, made up."""

from __future__ import annotations

from dataclasses import replace

from refusal_cliff.heads.proof import Proof
from refusal_cliff.heads.table import Estimate, HeadRow


def head_row(
    index: int,
    causal: float,
    low: float | None = None,
    direct: float = 0.0,
    refused: float | None = None,
) -> HeadRow:
    """A head of block 1; its interval begins at ``low``, or at its effect, and proves it if > 0."""
    nothing = Estimate(0.0, 0.0, 0.0, 1.0, 5)
    others = ("layer", "index", "proof")
    measured = {name: nothing for name in HeadRow.__annotations__ if name not in others}
    proven = (causal if low is None else low) > 0
    return replace(
        HeadRow(
            1,
            index,
            **measured,
            proof=Proof(causal / 10, 0.06 if proven else 0.0, 1.0 - proven, proven),
        ),
        causal=Estimate(causal, causal if low is None else low, causal + 1, 1.0, 5),
        causal_refused=None,
        direct=replace(nothing, mean=direct),
        direct_refused=None if refused is None else replace(nothing, mean=refused),
    )
