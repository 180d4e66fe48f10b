"""From the files of a run to what proves that the heads found are the cause."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from refusal_cliff.answers.evaluate import Share
from refusal_cliff.findings.pairs import AttackPairs
from refusal_cliff.findings.summary import (
    AgreementSummary,
    ControlSetsSummary,
    DoseSummary,
    JointSummary,
    ProofSummary,
    WritingSummary,
)
from refusal_cliff.heads.agreement import agreements
from refusal_cliff.heads.table import HeadRow
from refusal_cliff.heads.trials import CONTROLS, is_dose
from refusal_cliff.stats import bootstrap_mean

Json = Mapping[str, Any]


def proof_of(rows: Sequence[HeadRow], ablation: Json, joint: Json) -> ProofSummary:
    """Read ``heads.parquet``, ``ablation.json`` and ``joint.json`` together."""
    doses = _doses(ablation)
    return ProofSummary(
        agreement=[_agreement(asdict(pair)) for pair in agreements(rows)],
        doses=doses,
        half_effect={name: half_effect(found) for name, found in doses.items()},
        controls=_controls(AttackPairs(ablation)),
        joint=[_joint(search, one) for search, found in joint["compared"].items() for one in found],
        reverse=joint["reverse"]["mean"],
        reverse_ci=tuple(joint["reverse"]["interval"]),
        writing_before=_writing(ablation["writing"]["before"]),
        writing_after=_writing(ablation["writing"]["after"]),
    )


def _agreement(pair: dict[str, Any]) -> AgreementSummary:
    overlap = {f"{fraction:g}": share for fraction, share in pair["overlap"].items()}
    return AgreementSummary(**{**pair, "overlap": overlap})


def _doses(ablation: Json) -> dict[str, list[DoseSummary]]:
    """By ranking, in rising number of heads; the joint sets begin with none, as the others do."""
    found: dict[str, list[DoseSummary]] = {}
    for trial in ablation["trials"]:
        kind = trial["kind"]
        if is_dose(kind):
            dose = _dose(trial, ablation["perplexity_before"])
            found.setdefault(kind.removeprefix("top-"), []).append(dose)
    none = [doses[0] for doses in found.values() if doses[0].heads == 0]
    if "joint" in found and none:
        found["joint"].insert(0, none[0])
    return found


def _dose(trial: Json, perplexity: float) -> DoseSummary:
    attacks, answered = Share(**trial["attacks"]), Share(**trial["answered"])
    after = trial["perplexity"]
    return DoseSummary(
        heads=len(trial["heads"]),
        asr=attacks.value or 0.0,
        asr_ci=attacks.interval or (0, 1),
        benign_answered=answered.value,
        perplexity_ratio=None if after is None else after / perplexity,
    )


def half_effect(doses: Sequence[DoseSummary]) -> int | None:
    """Fewest heads tried after which the attack success rate is at most half of that with none."""
    none = next((dose.asr for dose in doses if dose.heads == 0), 0.0)
    reached = [dose.heads for dose in doses if dose.heads and dose.asr <= none / 2]
    return min(reached) if none and reached else None


def _controls(pairs: AttackPairs) -> dict[str, ControlSetsSummary]:
    found = {}
    for kind in CONTROLS:
        shares = pairs.kept(kind)
        if shares:
            groups = [pairs.groups[name] for name in shares]
            values = list(shares.values())
            found[kind] = ControlSetsSummary(
                sets=pairs.sets(kind),
                asr=float(np.mean(values)),
                asr_ci=bootstrap_mean(values, groups),
            )
    return found


def _joint(search: str, one: Json) -> JointSummary:
    return JointSummary(
        search=search,
        size=one["size"],
        joint=one["joint"],
        top=one["top"],
        difference_ci=(one["low"], one["high"]),
        beats=one["beats"],
    )


def _writing(content: Json) -> WritingSummary:
    return WritingSummary(
        thinking_tokens=content["thinking_tokens"],
        thinking_ci=tuple(content["thinking_ci"]),
        looping=Share(**content["looping"]).value or 0.0,
        truncated=Share(**content["truncated"]).value or 0.0,
    )
