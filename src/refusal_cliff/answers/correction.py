"""What the judge's error does to a rate: Rogan and Gladen's correction, with an interval.

A judge that finds a verdict where people do with probability `sensitivity`, and does not find it
where they do not with probability `specificity`, says it at the rate
``p = true · sensitivity + (1 − true) · (1 − specificity)``. Solved for the true rate (Rogan &
Gladen 1978, Am. J. Epidemiol. 107:71): ``(p + specificity − 1) / (sensitivity + specificity − 1)``.
It holds as far as the judge errs on these answers as on those that it was measured on.
Rates that a report shows stand beside the same without that error (`judged_rates`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydantic import TypeAdapter, ValidationError

from refusal_cliff.answers.outcomes import Outcomes, rows_of
from refusal_cliff.data.types import Label, Trace
from refusal_cliff.errors import RefusalCliffError
from refusal_cliff.io import read_json
from refusal_cliff.judges import knows_harm
from refusal_cliff.stats import (
    LEVEL,
    Fraction,
    Interval,
    Positive,
    Share,
    in_brackets,
    percentiles,
    wilson,
)

SHIPPED = Path(__file__).with_name("rules_error.json")
"""The error of `rules`, measured by bench/judge_heldout.py on answers that it was not tuned on."""
DRAWS = 4000


@dataclass(frozen=True, slots=True)
class Known:
    """A share, and how many independent answers it stands on.

    Attributes:
        value: The share, 0 to 1.
        n: More than 0; not whole where answers depend on each other.
    """

    value: Fraction
    n: Positive


@dataclass(frozen=True, slots=True)
class JudgeError:
    """How a judge errs.

    Attributes:
        judge: Which judge.
        verdict: Its verdict that was compared with people's labels.
        sensitivity: Of the answers that people call so, how many it does.
        specificity: Of the others, how many it does not.
    """

    judge: str
    verdict: str
    sensitivity: Known
    specificity: Known

    @property
    def swapped(self) -> JudgeError:
        """The error of not giving the verdict."""
        return JudgeError(self.judge, self.verdict, self.specificity, self.sensitivity)


_ERROR = TypeAdapter(JudgeError)


@dataclass(frozen=True, slots=True)
class Corrected:
    """A rate without the judge's error, as far as that is known.

    Attributes:
        value: The rate; ``None`` if the judge is no better than chance, so that nothing is known.
        interval: Carries the uncertainty of the rate and of the judge's error.
    """

    value: float | None
    interval: Interval


@dataclass(frozen=True, slots=True)
class CorrectedOutcomes:
    """`Outcomes` without the judge's error; ``None`` where it says nothing about a rate."""

    source: str
    category: str
    attacks: Corrected | None
    refused: Corrected | None
    over_refused: Corrected | None


def corrected_rate(successes: float, n: float, sensitivity: Known, specificity: Known) -> Corrected:
    """The rate that people would find.

    Args:
        successes: How often the judge gave the verdict.
        n: Of how many; more than 0.
        sensitivity: How often it does where people do.
        specificity: How often it does not where people do not.

    Returns:
        The rate, clipped to 0 … 1, and the percentile interval of draws of all three shares from
        their posteriors (uniform priors), widened to hold the rate. Where the judge may well be no
        better than chance (sensitivity + specificity ≤ 1 in more draws than the interval leaves
        out), it is 0 … 1.
    """
    if not (0 <= successes <= n and n > 0):
        raise ValueError(f"{successes} of {n} is not a share")
    gain = sensitivity.value + specificity.value - 1
    if gain <= 0:
        return Corrected(None, (0.0, 1.0))
    value = float(np.clip((successes / n + specificity.value - 1) / gain, 0, 1))
    rng = np.random.default_rng(0)
    observed, found, spared = (
        rng.beta(share.value * share.n + 1, (1 - share.value) * share.n + 1, DRAWS)
        for share in (Known(successes / n, n), sensitivity, specificity)
    )
    better = found + spared > 1
    if (~better).mean() > (1 - LEVEL) / 2:
        return Corrected(value, (0.0, 1.0))
    rates = (observed + spared - 1)[better] / (found + spared - 1)[better]
    low, high = percentiles(np.clip(rates, 0, 1))
    return Corrected(value, (min(low, value), max(high, value)))


def corrected(
    traces: Sequence[Trace], outcomes: Sequence[Outcomes], error: JudgeError
) -> list[CorrectedOutcomes]:
    """Every rate that the judge's error says something about, corrected.

    A refusal judge's attack is an answer that does not refuse, so its error tells of that too.

    Args:
        traces: The judged answers.
        outcomes: Their rates, as `evaluate` counts them.
        error: How their judge errs.

    Raises:
        RefusalCliffError: The answers were judged by another judge.
    """
    judges = {trace.judge for trace in traces if trace.judge}
    if judges - {error.judge}:
        raise RefusalCliffError(
            f"The error is that of the judge {error.judge!r}, but these answers were judged by "
            f"{', '.join(sorted(map(repr, judges)))}. Give the file that judge calibrate wrote for "
            "the same judge."
        )
    attack = "complied" if knows_harm(error.judge) is False else "harmful"
    refusal = error if error.verdict == "refused" else None
    attacked = error if error.verdict == attack else None
    if refusal is not None and attack == "complied":
        attacked = refusal.swapped
    return [
        CorrectedOutcomes(
            row.source,
            row.category,
            attacks=_without_error(traces, row, "harmful", row.attacks, attacked),
            refused=_without_error(traces, row, "harmful", row.refused, refusal),
            over_refused=_without_error(traces, row, "benign", row.over_refused, refusal),
        )
        for row in outcomes
    ]


def _without_error(
    traces: Sequence[Trace],
    row: Outcomes,
    label: Label,
    rate: Share | None,
    error: JudgeError | None,
) -> Corrected | None:
    """A truncated answer is never misjudged: only the share of the others is corrected."""
    if rate is None or error is None:
        return None
    asked = [r for r in rows_of(traces, row.source, row.category) if r.prompt.label == label]
    judged = sum(trace.verdict not in ("truncated", "unscored") for trace in asked)
    return corrected_share(rate, judged, error)


def corrected_share(share: Share, judged: int, error: JudgeError) -> Corrected | None:
    """A share of answers, some of which are known not to have the verdict, without the error.

    Args:
        share: Answers with the verdict, of all, those included that never ended.
        judged: How many of them a judge could read.
        error: How it errs in giving this verdict.

    Returns:
        The rate; ``None`` where nothing was judged.
    """
    if not judged or share.interval is None:
        return None
    weight = effective_share(share.count, share.n, share.interval)
    said, asked = share.count * weight, judged * weight
    found = corrected_rate(said, asked, error.sensitivity, error.specificity)
    ended, (low, high) = judged / share.n, found.interval
    value = None if found.value is None else found.value * ended
    return Corrected(value, (low * ended, high * ended))


def effective_share(count: int, n: int, interval: Interval) -> float:
    """Of ``n`` answers that depend on each other, the share that counts as independent.

    The inverse of the design effect: how much narrower Wilson's interval of independent answers is,
    squared; at most 1.
    """
    low, high = wilson(count, n)
    width = interval[1] - interval[0]
    return min(1.0, ((high - low) / width) ** 2) if width > 0 else 1.0


def read_error(path: Path) -> JudgeError:
    """The judge's error out of what `judge calibrate` wrote.

    Raises:
        RefusalCliffError: The file does not hold one.
    """
    found = read_json(path)
    try:
        return _ERROR.validate_python(found["error"] if isinstance(found, dict) else found)
    except (KeyError, ValidationError) as error:
        raise RefusalCliffError(
            f"{path} does not hold a judge's error: "
            f"{str(error).splitlines()[0]}. Write it with: refusal-cliff judge calibrate "
            "--labelled FILE --judge NAME --out FILE."
        ) from error


def known_error(judge: str) -> JudgeError | None:
    """The error that ships with the package; ``None`` for a judge that was not measured."""
    shipped = read_error(SHIPPED)
    return shipped if shipped.judge == judge else None


def refusal_error(judge: str, path: Path | None = None) -> JudgeError | None:
    """How a judge errs in telling refusals, which rates of answers that comply are corrected by.

    Args:
        judge: Its whole name.
        path: What `judge calibrate` wrote of it; ``None`` takes what ships with the package.

    Returns:
        ``None`` where nobody measured it.

    Raises:
        RefusalCliffError: The file is of another judge or another verdict.
    """
    if path is None:
        return known_error(judge)
    found = read_error(path)
    if (found.judge, found.verdict) != (judge, "refused"):
        raise RefusalCliffError(
            f"{path} holds the error of {found.judge!r} for the verdict {found.verdict}, but the "
            f"error of {judge!r} for the verdict refused is needed. Write it with: refusal-cliff "
            "judge calibrate --labelled FILE --judge NAME --verdict refused --out FILE."
        )
    return found


@dataclass(frozen=True, slots=True)
class JudgedRate:
    """One rate, twice; attributes are fractions.

    Attributes:
        value: As the judge found it.
        interval: Its interval.
        corrected: Without the judge's error; ``None`` where that is not known, or too large.
        corrected_interval: Carries the uncertainty of the error; ``None`` where it is not known.
        unjudged: Answers that were cut off: they count as not complied.
    """

    value: Fraction
    interval: Interval
    corrected: Fraction | None
    corrected_interval: Interval | None
    unjudged: int = 0

    @property
    def text(self) -> str:
        """Both in words."""
        told = f"{self.value:.0%} {in_brackets(self.interval)}"
        if self.unjudged:
            told += f", with {self.unjudged} cut off counted as not complied"
        if self.corrected_interval is None:
            return told
        value = "unknown" if self.corrected is None else f"{self.corrected:.0%}"
        interval = in_brackets(self.corrected_interval)
        return f"{told}; corrected for the judge's error {value} {interval}"


@dataclass(frozen=True, slots=True)
class JudgedRates:
    """Rates of answers that comply, by one judge.

    Attributes:
        judge: Its whole name.
        error: How it errs in telling refusals; ``None`` where that is not given.
        rates: By name: attack success and benign prompts answered; of the model, without the
            heads, of controls and of repairs.
    """

    judge: str
    error: JudgeError | None
    rates: dict[str, JudgedRate]

    @property
    def about_judge(self) -> str:
        """The judge, its error and what an attack is, as a sentence without its full stop."""
        if knows_harm(self.judge) is False:
            return self._error
        return f"{self._error}; an attack worked where the answer does not refuse, harmful or not"

    @property
    def _error(self) -> str:
        if self.error is None:
            return f"judged by {self.judge}; error of this judge not given (--judge-error)"
        found, spared = self.error.sensitivity, self.error.specificity
        return (
            f"judged by {self.judge}, which calls {found.value:.1%} of what people call refused so "
            f"(n = {found.n:.0f}), and {1 - spared.value:.1%} of the rest (n = {spared.n:.0f})"
        )

    @property
    def lines(self) -> list[str]:
        """Every rate in words."""
        return [f"{name} {rate.text}" for name, rate in self.rates.items()]


def judged_rates(
    judge: str, error: JudgeError | None, shares: Mapping[str, tuple[Share, int]]
) -> JudgedRates:
    """Correct shares of answers that comply: whatever harm is in them, they did not refuse.

    Args:
        judge: Whole name of the judge.
        error: How it errs in telling refusals.
        shares: By name, a share and how many answers of its ``n`` were judged.
    """
    rates = {
        name: _rate(share, judged, error) for name, (share, judged) in shares.items() if share.n
    }
    return JudgedRates(judge, error, rates)


def _rate(share: Share, judged: int, error: JudgeError | None) -> JudgedRate:
    interval = share.interval or (0.0, 1.0)
    value = share.count / share.n
    found = error and corrected_share(share, judged, error.swapped)
    corrected = (found.value, found.interval) if found else (None, None)
    return JudgedRate(value, interval, *corrected, unjudged=share.n - judged)
