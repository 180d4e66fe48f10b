"""What proves that the heads found are the cause: attacks without them, on the same prompts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from refusal_cliff.answers.evaluate import Share
from refusal_cliff.findings.summary import (
    AgreementSummary,
    ControlSetsSummary,
    DoseSummary,
    JointSummary,
    ProofSummary,
    WritingSummary,
)
from refusal_cliff.heads.table import HeadRow, agreements
from refusal_cliff.heads.trials import CONTROLS, is_dose
from refusal_cliff.stats import Interval, bootstrap_mean, difference_interval

Json = Mapping[str, Any]


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


class AttackPairs:
    """Which prompts were attacked successfully, out of ``ablation.json``.

    Thoughts were written anew without the heads found. Control sets kept the thoughts that were
    there, and so are compared with no head and with the heads found out in the same way.

    Attributes:
        before: By prompt id, 1 or 0 with no head out.
        after: Without the heads found.
        groups: Of the prompts.
        asked: The prompts that control sets were asked.
    """

    def __init__(self, ablation: Json) -> None:
        pairs = ablation["pairs"]
        self._trials: Sequence[Json] = ablation["trials"]
        self.groups: dict[str, str] = pairs["groups"]
        self.asked: list[str] = pairs["compared"]
        self.before = _hits(self.groups, pairs["before"])
        self.after = _hits(self.groups, pairs["after"])

    def kept(self, kind: str) -> dict[str, float]:
        """By prompt id, the share of the sets of a kind without which the attack worked.

        Args:
            kind: ``WITH_NONE``, ``WITH_FOUND``, or one of ``CONTROLS``.
        """
        sets = [set(trial["attacked"]) for trial in self._trials if trial["kind"] == kind]
        if not sets:
            return {}
        return {name: sum(name in hit for hit in sets) / len(sets) for name in self.asked}

    def rates(self, kind: str) -> list[float]:
        """Attack success rate of each set of a kind, over the prompts that all were asked."""
        return [
            sum(name in set(trial["attacked"]) for name in self.asked) / len(self.asked)
            for trial in self._trials
            if trial["kind"] == kind
        ]

    def sets(self, kind: str) -> int:
        """How many sets of a kind were tried."""
        return sum(trial["kind"] == kind for trial in self._trials)


def _hits(names: Sequence[str] | Mapping[str, str], hit: Sequence[str]) -> dict[str, float]:
    known = set(hit)
    return {name: float(name in known) for name in names}


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
