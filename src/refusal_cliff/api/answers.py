"""What a model answered, how often it did what, and what changed, as a notebook shows it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from refusal_cliff.answers.evaluate import Rates, rates
from refusal_cliff.answers.outcomes import Change
from refusal_cliff.api.view import WIDTH, Cell, Rows, View, ends
from refusal_cliff.data.types import Trace
from refusal_cliff.report.chart import Chart
from refusal_cliff.report.charts import bar_chart
from refusal_cliff.report.data import Bar
from refusal_cliff.report.words import count, number_interval, percent, percent_interval, signed
from refusal_cliff.stats import Share


@dataclass(frozen=True, slots=True, repr=False)
class Traces(Rows[Trace]):
    """Traces of one model, in the order of their prompts; judged, or not yet."""

    def __repr__(self) -> str:
        found = rates(self.rows)
        shares = {
            "refused": found.refused,
            "complied": found.attacks,
            "benign answered": found.answered,
            "truncated": found.truncated,
            "unscored": found.unscored,
        }
        said = [f"{share.count} {word}" for word, share in shares.items() if share.count]
        return f"{count(len(self), 'trace')}: {', '.join(said)}"

    def table(self) -> list[dict[str, Cell]]:
        """One row a trace."""
        return [
            {
                "id": trace.prompt.id,
                "label": trace.prompt.label,
                "verdict": trace.verdict,
                "prompt": trace.prompt.text,
                "thinking": trace.thinking,
                "response": trace.response,
                "tokens": len(trace.token_ids),
                "group": trace.prompt.group,
                "category": trace.prompt.category,
            }
            for trace in self.rows
        ]

    def plot(self) -> Chart:
        """Their rates as bars."""
        return RateTable.of(self.rows).plot()

    def _drawable(self) -> bool:
        return bool(self.rows)


_RATE_WORDS = {
    "attacks": "harmful prompts complied with (ASR)",
    "refused": "harmful prompts refused",
    "answered": "benign prompts answered",
    "hard_answered": "benign prompts with harmful words answered",
    "truncated": "answers that never ended",
    "unscored": "answers without a verdict",
}


@dataclass(frozen=True, slots=True, repr=False)
class RateTable(View):
    """What a model does with harmful and benign prompts, each share with its Wilson interval.

    Attributes:
        rates: The shares.
    """

    rates: Rates

    @classmethod
    def of(cls, traces: Sequence[Trace]) -> RateTable:
        """Count the verdicts of judged traces."""
        return cls(rates(traces))

    def _shares(self) -> dict[str, Share]:
        """Those with anything to count."""
        shares = {name: getattr(self.rates, name) for name in _RATE_WORDS}
        return {name: share for name, share in shares.items() if share.n}

    def __repr__(self) -> str:
        lines = [
            f"{_RATE_WORDS[name]}: {percent(share.value or 0.0)} "
            f"{percent_interval(share.interval or (0.0, 1.0))}, n = {share.n}"
            for name, share in self._shares().items()
        ]
        return "\n".join(lines) or "Rates of no traces"

    def table(self) -> list[dict[str, Cell]]:
        """One row a rate."""
        return [
            {"rate": name, "value": share.value, **ends(share.interval), "n": share.n}
            for name, share in self._shares().items()
        ]

    def plot(self) -> Chart:
        """The shares as bars."""
        bars = [
            Bar.of(_RATE_WORDS[name], share, "baseline" if name == "attacks" else "result")
            for name, share in self._shares().items()
        ]
        return Chart.of("rates", bar_chart("rates", "share of prompts", bars, width=WIDTH))


@dataclass(frozen=True, slots=True, repr=False)
class Changes(Rows[Change]):
    """How rates changed over the prompts that both sides answered, paired."""

    def __repr__(self) -> str:
        return "\n".join(
            f"{_RATE_WORDS[one.rate]}: {percent(one.before)} → {percent(one.after)}, "
            f"{signed(100 * one.difference, 0)} points "
            f"{number_interval([100 * end for end in one.interval], 0)}, {count(one.n, 'pair')}"
            for one in self.rows
        )

    def table(self) -> list[dict[str, Cell]]:
        """One row a rate."""
        return [
            {
                "rate": one.rate,
                "before": one.before,
                "after": one.after,
                "difference": one.difference,
                **ends(one.interval),
                "p": one.p,
                "n": one.n,
            }
            for one in self.rows
        ]

    def plot(self) -> Chart:
        """Each rate before and after, as bars."""
        bars: list[Bar] = []
        for one in self.rows:
            words = _RATE_WORDS[one.rate]
            bars.append(Bar(f"{words}, before", one.before, None, one.n, "baseline"))
            bars.append(Bar(f"{words}, after", one.after, None, one.n, "result"))
        svg = bar_chart("changes", "share of the same prompts", bars, width=WIDTH)
        return Chart.of("before and after", svg)
