"""Rows of ``cliff.parquet`` made by hand."""

from __future__ import annotations

from refusal_cliff.cliff.curves import Kind, TraceCliff


def made_cliff(
    name: str,
    plateau: float,
    final: float,
    kind: Kind = "none",
    label: str = "harmful",
    verdict: str = "complied",
) -> TraceCliff:
    """A trace with this plateau and final score; nothing is known of its logits and its drop."""
    return TraceCliff(
        trace_id=name,
        group=name,
        label=label,
        verdict=verdict,
        plateau=plateau,
        final=final,
        cliff=plateau - final,
        plateau_logit=0.0,
        final_logit=0.0,
        drop_position=0,
        drop_inside=0.0,
        kind=kind,
    )
