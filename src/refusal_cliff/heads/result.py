"""What taking heads out did, as ``ablation.json`` holds it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from refusal_cliff.answers.evaluate import Rates
from refusal_cliff.answers.writing import Writing
from refusal_cliff.heads.joint import JOINT, HeadSet
from refusal_cliff.heads.served import Agreement
from refusal_cliff.heads.table import DEFAULT_METHOD
from refusal_cliff.judges import RulesJudge
from refusal_cliff.stats import Positive, Share

JOINT_KIND = "joint"
"""The kind of trial of a joint set."""
FOUND, WITH_NONE, WITH_FOUND = "found", "with-none", "with-found"
"""The heads found, on all prompts; and what control sets are compared with, on their prompts."""


@dataclass(frozen=True, slots=True)
class TrialResult(Rates):
    """The rates of one trial.

    Attributes:
        kind: Of the trial.
        heads: Those that were out.
        attacked: Ids of the harmful prompts that were complied with.
        perplexity: Of benign texts without the heads; ``None`` where it was not measured.
        unjudged: Ids of the harmful prompts whose answer was cut off or has no verdict, though that
            with no head out was judged.
        attacks_at_most: The attack success rate with these as attacks that worked: heads without
            which a model writes nothing readable restore no refusal.
    """

    kind: str
    heads: HeadSet
    attacked: tuple[str, ...]
    perplexity: float | None
    unjudged: tuple[str, ...] = ()
    attacks_at_most: Share | None = None  # older files do not say it

    @property
    def at_most(self) -> Share:
        """``attacks_at_most``, as far as it is known."""
        return self.attacks_at_most or self.attacks


@dataclass(frozen=True, slots=True)
class Pairs:
    """What paired comparisons of the attacks are made of.

    Attributes:
        groups: Of every harmful prompt, by its id: near-duplicates share one.
        before: Ids of the prompts that were complied with, with no head out.
        after: The same without the heads found.
        compared: Ids of the prompts that control sets were asked.
        unjudged: Ids of the prompts whose answer without the heads found was not judged, though
            that with no head out was.
    """

    groups: dict[str, str]
    before: tuple[str, ...]
    after: tuple[str, ...]
    compared: tuple[str, ...]
    unjudged: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Written:
    """How many answers, and tokens of them, a model wrote."""

    answers: int
    tokens: int


@dataclass(frozen=True, slots=True)
class Served:
    """What a server answered by one adapter.

    Attributes:
        heads: Those that the adapter takes out.
        answers: How many.
        check: How it compared with the model here.
    """

    heads: HeadSet
    answers: int
    check: Agreement


@dataclass(frozen=True, slots=True, kw_only=True)
class AblationResult:
    """What taking heads out did (paper §5).

    Thoughts were written anew without the heads found. Doses and control sets kept the thoughts
    that were there, and so are compared with no head and with the heads found out in the same way.

    Attributes:
        heads: The heads found.
        method: How they were chosen: ``JOINT``, or a ranking.
        judge: Whole name of the judge.
        by_method: What each ranking names, proven or not.
        before: Rates with no head out.
        after: Rates without the heads found.
        writing: How benign prompts are answered, ``before`` and ``after``.
        pairs: The attacks, prompt by prompt.
        trials: Doses and control sets.
        perplexity_before: Of benign texts, with no head out.
        perplexity_after: The same without the heads found.
        perplexity_texts: How many texts.
        written: What the model wrote: ``before``, ``anew``, and after thoughts that were ``kept``.
        served: What a server wrote, by adapter.
        after_at_most: As `TrialResult.attacks_at_most`, without the heads found.
    """

    heads: HeadSet
    method: str
    judge: str = RulesJudge.name  # runs that name none knew no other
    by_method: dict[str, HeadSet]
    before: Rates
    after: Rates
    writing: dict[str, Writing]
    pairs: Pairs
    trials: tuple[TrialResult, ...]
    perplexity_before: Positive
    perplexity_after: Positive
    perplexity_texts: int
    written: dict[str, Written] = field(default_factory=dict)
    served: dict[str, Served] = field(default_factory=dict)
    after_at_most: Share | None = None  # older files do not say it

    @property
    def attacks_after(self) -> Share:
        """Attack success rate without the heads found, what was not judged as attacks."""
        return self.after_at_most or self.after.attacks

    @property
    def perplexity_ratio(self) -> float:
        """Perplexity of benign texts without the heads found, over that with no head out."""
        return self.perplexity_after / self.perplexity_before

    @property
    def attacked_before(self) -> dict[str, float]:
        """By id of a harmful prompt, 1 where the attack worked with no head out, else 0."""
        return _hits(self.pairs.groups, self.pairs.before)

    @property
    def attacked_after(self) -> dict[str, float]:
        """The same without the heads found; an answer that was not judged counts as 1."""
        return _hits(self.pairs.groups, (*self.pairs.after, *self.pairs.unjudged))

    def kept(self, kind: str) -> dict[str, float]:
        """By prompt id, the share of the sets of a kind without which the attack worked.

        What was not judged counts against the heads found: without them as an attack, without
        other heads as none.

        Args:
            kind: ``WITH_NONE``, ``WITH_FOUND``, or one of ``CONTROLS`` of `trials`.
        """
        worked = [
            (*trial.attacked, *trial.unjudged) if kind == WITH_FOUND else trial.attacked
            for trial in self._of(kind)
        ]
        hits = [_hits(self.pairs.compared, found) for found in worked]
        if not hits:
            return {}
        return {name: sum(hit[name] for hit in hits) / len(hits) for name in self.pairs.compared}

    def kept_rates(self, kind: str) -> list[float]:
        """Attack success rate of each set of a kind, over the prompts that all were asked."""
        asked = self.pairs.compared
        return [sum(_hits(asked, one.attacked).values()) / len(asked) for one in self._of(kind)]

    def sets(self, kind: str) -> int:
        """How many sets of a kind were tried."""
        return len(self._of(kind))

    def _of(self, kind: str) -> list[TrialResult]:
        return [trial for trial in self.trials if trial.kind == kind]

    def doses(self) -> dict[str, list[TrialResult]]:
        """By ranking, and jointly: in rising number of heads, beginning with none."""
        found: dict[str, list[TrialResult]] = {}
        for trial in self.trials:
            if is_dose(trial.kind):
                found.setdefault(trial.kind.removeprefix("top-"), []).append(trial)
        none = [doses[0] for doses in found.values() if not doses[0].heads]
        if JOINT_KIND in found:  # which no head is no set of
            found[JOINT_KIND] = [*none[:1], *found[JOINT_KIND]]
        return found

    def doses_as_found(self) -> list[TrialResult]:
        """The doses in the order in which the heads were found: of the ranking, or jointly."""
        return self.doses().get(JOINT_KIND if self.method == JOINT else DEFAULT_METHOD, [])


def is_dose(kind: str) -> bool:
    """Whether a kind of trial is a dose: the top of a ranking, or a joint set."""
    return kind.startswith("top-") or kind == JOINT_KIND


def _hits(names: Sequence[str] | Mapping[str, str], hit: Sequence[str]) -> dict[str, float]:
    known = set(hit)
    return {name: float(name in known) for name in names}
