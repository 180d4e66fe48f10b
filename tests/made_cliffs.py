"""Rows of ``cliff.parquet`` made by hand."""

from __future__ import annotations

import numpy as np
from scipy.special import logit

from refusal_cliff.cliff.curves import TraceCliff


def made_cliff(
    name: str,
    plateau: float,
    final: float,
    *,
    late: bool = True,
    label: str = "harmful",
    verdict: str = "complied",
    group: str = "",
) -> TraceCliff:
    """A trace with this plateau and final score; nothing is known of the way of its drop."""
    return TraceCliff(
        trace_id=name,
        group=group or name,
        label=label,
        verdict=verdict,
        plateau=plateau,
        final=final,
        cliff=plateau - final,
        plateau_logit=float(logit(plateau)),
        final_logit=float(logit(final)),
        drop_position=0,
        drop_inside=max(plateau - final, 0.0) if late else 0.0,
        late=late,
    )


def made_cliffs(
    n: int,
    plateau: float,
    final: float,
    *,
    late: bool = True,
    label: str = "harmful",
    verdict: str = "complied",
    spread: float = 0.02,
) -> list[TraceCliff]:
    """``n`` traces around this plateau and final score."""
    steps = np.linspace(-spread, spread, n) if n > 1 else [0.0]
    return [
        made_cliff(
            f"{label}-{verdict}-{at}",
            float(plateau + step),
            float(final + step),
            late=late,
            label=label,
            verdict=verdict,
        )
        for at, step in enumerate(steps)
    ]


REFUSED = made_cliffs(15, 0.9, 0.9, verdict="refused")
BENIGN = made_cliffs(25, 0.05, 0.05, label="benign")
