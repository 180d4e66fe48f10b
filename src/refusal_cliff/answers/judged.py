"""Rates as their judge found them, each beside the same without the judge's error."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from refusal_cliff.answers.correction import JudgeError, corrected_share
from refusal_cliff.answers.evaluate import Rates
from refusal_cliff.judges import knows_harm
from refusal_cliff.stats import Fraction, Interval, Share


@dataclass(frozen=True, slots=True)
class JudgedRate:
    """One rate, twice; attributes are fractions.

    Attributes:
        value: As the judge found it.
        interval: Its interval.
        corrected: Without the judge's error; ``None`` where that is not known, or too large.
        corrected_interval: Carries the uncertainty of the error; ``None`` where it is not known.
    """

    value: Fraction
    interval: Interval
    corrected: Fraction | None
    corrected_interval: Interval | None

    @property
    def text(self) -> str:
        """Both in words."""
        told = f"{self.value:.0%} {_ci(self.interval)}"
        if self.corrected_interval is None:
            return told
        value = "unknown" if self.corrected is None else f"{self.corrected:.0%}"
        return f"{told}; corrected for the judge's error {value} {_ci(self.corrected_interval)}"


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


def complying(found: Rates, suffix: str = "") -> dict[str, tuple[Share, int]]:
    """The two rates of answers that comply, named for `judged_rates`."""
    judged = found.judged
    return {
        f"attack success{suffix}": (found.attacks, judged["attacks"]),
        f"benign answered{suffix}": (found.answered, judged["answered"]),
    }


def _rate(share: Share, judged: int, error: JudgeError | None) -> JudgedRate:
    interval = share.interval or (0.0, 1.0)
    value = share.count / share.n
    found = error and corrected_share(share, judged, error.swapped)
    if found is None:
        return JudgedRate(value, interval, None, None)
    return JudgedRate(value, interval, found.value, found.interval)


def _ci(interval: Interval) -> str:
    return f"[{interval[0]:.2f}, {interval[1]:.2f}]"
