"""What proves that the heads found are the cause: attacks without them, on the same prompts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from refusal_cliff.answers.writing import Writing
from refusal_cliff.findings.summary import (
    AgreementSummary,
    ControlSetsSummary,
    DoseSummary,
    JointSummary,
    ProofSummary,
    WritingSummary,
)
from refusal_cliff.heads.find import JointSearch
from refusal_cliff.heads.joint import Comparison
from refusal_cliff.heads.result import AblationResult, TrialResult
from refusal_cliff.heads.table import HeadRow, agreements
from refusal_cliff.heads.trials import CONTROLS
from refusal_cliff.stats import Interval, bootstrap_mean, difference_interval


@dataclass(frozen=True, slots=True)
class Difference:
    """A mean paired difference of attack success rates.

    Attributes:
        mean: In −1 … 1.
        interval: Over prompt groups.
        n: Prompts.
    """

    mean: float
    interval: Interval
    n: int

    @property
    def below_zero(self) -> bool:
        """Whether the whole interval is."""
        return self.interval[1] < 0


def difference(
    after: Mapping[str, float], before: Mapping[str, float], groups: Mapping[str, str]
) -> Difference:
    """``after − before`` over the prompts that both have; nothing known without any.

    Args:
        after: By prompt id, 1 for an attack that worked; or the share of several tries.
        before: The same.
        groups: By prompt id, its group.
    """
    both = [name for name in after if name in before]
    if not both:
        return Difference(0.0, (-1.0, 1.0), 0)
    found = [after[name] - before[name] for name in both]
    interval = difference_interval(found, [groups[name] for name in both])
    return Difference(float(np.mean(found)), interval, len(both))


def proof_of(rows: Sequence[HeadRow], ablation: AblationResult, joint: JointSearch) -> ProofSummary:
    """What ``heads.parquet``, ``ablation.json`` and ``joint.json`` say together."""
    doses = {
        name: [_dose(trial, ablation.perplexity_before) for trial in found]
        for name, found in ablation.doses().items()
    }
    return ProofSummary(
        agreement=[_agreement(asdict(pair)) for pair in agreements(rows)],
        doses=doses,
        half_effect={name: half_effect(found) for name, found in doses.items()},
        controls=_controls(ablation),
        joint=[_joint(search, one) for search, found in joint.compared.items() for one in found],
        reverse=joint.reverse.mean,
        reverse_ci=joint.reverse.interval,
        writing_before=_writing(ablation.writing["before"]),
        writing_after=_writing(ablation.writing["after"]),
    )


def _agreement(pair: dict[str, Any]) -> AgreementSummary:
    overlap = {f"{fraction:g}": share for fraction, share in pair["overlap"].items()}
    return AgreementSummary(**{**pair, "overlap": overlap})


def _dose(trial: TrialResult, perplexity: float) -> DoseSummary:
    return DoseSummary(
        heads=len(trial.heads),
        asr=trial.at_most.value or 0.0,
        asr_ci=trial.at_most.interval or (0, 1),
        unjudged=len(trial.unjudged),
        benign_answered=trial.answered.value,
        perplexity_ratio=None if trial.perplexity is None else trial.perplexity / perplexity,
    )


def half_effect(doses: Sequence[DoseSummary]) -> int | None:
    """Fewest heads tried after which the attack success rate is at most half of that with none."""
    none = next((dose.asr for dose in doses if dose.heads == 0), 0.0)
    reached = [dose.heads for dose in doses if dose.heads and dose.asr <= none / 2]
    return min(reached) if none and reached else None


def _controls(ablation: AblationResult) -> dict[str, ControlSetsSummary]:
    found = {}
    for kind in CONTROLS:
        shares = ablation.kept(kind)
        if shares:
            groups = [ablation.pairs.groups[name] for name in shares]
            values = list(shares.values())
            found[kind] = ControlSetsSummary(
                sets=ablation.sets(kind),
                asr=float(np.mean(values)),
                asr_ci=bootstrap_mean(values, groups),
            )
    return found


def _joint(search: str, one: Comparison) -> JointSummary:
    return JointSummary(
        search=search,
        size=one.size,
        joint=one.joint,
        top=one.top,
        difference_ci=(one.low, one.high),
        beats=one.beats,
    )


def _writing(found: Writing) -> WritingSummary:
    return WritingSummary(
        thinking_tokens=found.thinking_tokens,
        thinking_ci=found.thinking_ci,
        looping=found.looping.value or 0.0,
        truncated=found.truncated.value or 0.0,
    )
