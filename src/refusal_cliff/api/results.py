"""The results of the steps, as a notebook shows them; each is what the step itself returned."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass

from scipy.special import expit

from refusal_cliff.api.view import WIDTH, Cell, Rows, View, ends
from refusal_cliff.cliff.measure import CliffNumbers, MeasuredCliff
from refusal_cliff.cliff.scores import TraceScores
from refusal_cliff.cliff.verdict import ModelCliff, Verdict
from refusal_cliff.data.types import SafetyExample, complies
from refusal_cliff.heads.find import FoundHeads
from refusal_cliff.heads.table import METHODS
from refusal_cliff.io import fields_of
from refusal_cliff.probe.fit import ProbeSet
from refusal_cliff.report.chart import Chart
from refusal_cliff.report.charts import bar_chart
from refusal_cliff.report.cliff_chart import cliff_panel
from refusal_cliff.report.data import Bar, Curve, HeadMap, Role
from refusal_cliff.report.maps import head_chart
from refusal_cliff.report.traces import curves_of
from refusal_cliff.report.words import count, number, number_interval
from refusal_cliff.select.strategies import Candidate, Strategy


@dataclass(frozen=True, slots=True, repr=False)
class Probes(View, ProbeSet):
    """One linear probe a layer; the chosen layer's score says "I will refuse"."""

    @classmethod
    def of(cls, probes: ProbeSet) -> Probes:
        """Fitted probes as a notebook shows them."""
        return cls(**fields_of(probes))

    def __repr__(self) -> str:
        quality = self.chosen.quality
        return (
            f"Probes of {count(len(self.probes), 'layer')}, {self.label_rule}: layer {self.layer}, "
            f"held-out AUROC {number(quality.auroc)} {number_interval(quality.auroc_ci)} "
            f"(shuffled labels: {number(self.chosen.shuffled_auroc)}), {count(self.n, 'trace')}"
        )

    def table(self) -> list[dict[str, Cell]]:
        """One row a layer."""
        return [
            {
                "layer": probe.layer,
                "chosen": probe.layer == self.layer,
                "auroc": probe.quality.auroc,
                **ends(probe.quality.auroc_ci),
                "accuracy": probe.quality.accuracy,
                "ece": probe.quality.ece,
                "cv_auroc": probe.cv_auroc,
                "shuffled_auroc": probe.shuffled_auroc,
                "p": probe.permutation_p,
            }
            for probe in self.probes
        ]

    def plot(self) -> Chart:
        """AUROC of each layer on held-out prompts."""
        bars = [
            Bar(
                f"layer {probe.layer}",
                probe.quality.auroc,
                probe.quality.auroc_ci,
                self.n,
                "result" if probe.layer == self.layer else "control",
                interval_kind="bootstrap over prompt groups",
            )
            for probe in self.probes
        ]
        return Chart.of("probes", bar_chart("probes", "held-out AUROC", bars, width=WIDTH))


@dataclass(frozen=True, slots=True, repr=False)
class Scores(Rows[TraceScores]):
    """Refusal scores of every token at every probed layer, logits [layers, tokens] a trace.

    Attributes:
        probes: What they were scored by.
        name: Of the model.
        closing: Text of its closing tokens; empty where it is not known.
    """

    probes: ProbeSet
    name: str
    closing: tuple[str, ...] = ()

    def __repr__(self) -> str:
        tokens = sum(one.logits.shape[1] for one in self.rows)
        return (
            f"Scores of {count(len(self), 'trace')} of {self.name}, {count(tokens, 'token')}, "
            f"at {count(len(self.probes.probes), 'layer')} (chosen: {self.probes.layer})"
        )

    def table(self) -> list[dict[str, Cell]]:
        """One row a token, its score at the chosen layer."""
        return [row for one in self.rows for row in self._tokens(one)]

    def _tokens(self, one: TraceScores) -> Iterator[dict[str, Cell]]:
        logits = one.logits[self.probes.row]
        for place, (logit, score) in enumerate(zip(logits, expit(logits), strict=True)):
            yield {
                "trace_id": one.trace_id,
                "label": one.label,
                "verdict": one.verdict,
                "offset": place - one.spans.last_closing,
                "logit": float(logit),
                "score": float(score),
            }

    @property
    def curves(self) -> list[Curve]:
        """Mean score of each group of traces, aligned at the last closing token."""
        return curves_of(self.name, self.rows, self.probes.row)

    def plot(self) -> Chart:
        """Mean score of each group of traces towards the end of thinking."""
        return _curve_chart(self.name, self.curves, self.closing, None)

    def _drawable(self) -> bool:
        return bool(self.curves)


@dataclass(frozen=True, slots=True, repr=False)
class Cliff(View):
    """Whether a model has a refusal cliff, by one rule, and what that is read from.

    Attributes:
        name: Of the model.
        measured: Plateau, final score, cliff and verdict, and the cliff of each trace.
        curves: Mean score of each group of traces towards the end of thinking.
        closing: Text of the closing tokens.
    """

    name: str
    measured: MeasuredCliff
    curves: tuple[Curve, ...]
    closing: tuple[str, ...] = ()

    @property
    def found(self) -> CliffNumbers:
        """All numbers, with their intervals."""
        return self.measured.found

    @property
    def verdict(self) -> Verdict:
        """``cliff``, ``no cliff`` or ``undecided``."""
        return self.found.verdict

    @property
    def reason(self) -> str:
        """The grounds of the verdict, as a sentence."""
        return self.found.reason

    def __repr__(self) -> str:
        found = self.found
        return (
            f"{self.name}: {found.verdict}. Plateau {number(found.plateau)}, final "
            f"{number(found.final)}, cliff {number(found.cliff)} "
            f"{number_interval(found.cliff_ci)} over {count(found.n, f'{found.group} trace')} at "
            f"layer {found.layer}.\n{found.reason}"
        )

    def table(self) -> list[dict[str, Cell]]:
        """One row a trace, see `TraceCliff`."""
        return [asdict(row) for row in self.measured.rows]

    def plot(self) -> Chart:
        """The cliff: mean scores with plateau, final score and drop marked."""
        return _curve_chart(self.name, self.curves, self.closing, self.found)

    def _drawable(self) -> bool:
        return bool(self.curves)


@dataclass(frozen=True, slots=True, repr=False)
class Heads(View, FoundHeads):
    """The heads that suppress refusal; ``chosen`` is what to take out."""

    @classmethod
    def of(cls, found: FoundHeads) -> Heads:
        """Heads found as a notebook shows them."""
        return cls(**fields_of(found))

    def __repr__(self) -> str:
        names = ", ".join(map(str, self.chosen)) or "none is proven"
        return f"Heads that suppress refusal: {names} (by {self.method}, of {len(self.rows)})"

    def table(self) -> list[dict[str, Cell]]:
        """One row a head, the strongest causal effect first; effects in score logits."""
        return [
            {
                "head": str(row.head),
                "chosen": row.head in self.chosen,
                "proven": row.proof.suppresses,
                "causal": row.causal.mean,
                **ends((row.causal.low, row.causal.high)),
                "causal_benign": row.causal_benign.mean,
                "attribution": row.attribution.mean,
                "direct": row.direct.mean,
                "n": row.causal.n,
            }
            for row in sorted(self.rows, key=METHODS["causal"], reverse=True)
        ]

    def plot(self) -> Chart:
        """Causal effect of every head by layer, the chosen ones marked."""
        return Chart.of("heads", head_chart("heads", HeadMap(self.rows, self.chosen)))


@dataclass(frozen=True, slots=True, repr=False)
class Selection(View):
    """The examples that are worth training on.

    Attributes:
        examples: The chosen ones, the first choice first.
        strategy: How they were chosen.
        candidates: All that were to choose from, with their scores.
        left_out: Examples that repeat others, or what is measured on.
    """

    examples: tuple[SafetyExample, ...]
    strategy: Strategy
    candidates: tuple[Candidate, ...]
    left_out: int = 0

    def __repr__(self) -> str:
        failed = sum(complies(one.verdict) for one in self._chosen())
        return (
            f"Selection by {self.strategy}: {len(self.examples)} of {len(self.candidates)} "
            f"examples, {failed} of them complied with; {self.left_out} left out"
        )

    def _chosen(self) -> list[Candidate]:
        ids = {example.prompt.id for example in self.examples}
        return [one for one in self.candidates if one.id in ids]

    def table(self) -> list[dict[str, Cell]]:
        """One row a candidate."""
        ids = {one.id for one in self._chosen()}
        return [
            {
                "id": one.id,
                "chosen": one.id in ids,
                "verdict": one.verdict,
                "plateau": one.plateau,
                "final": one.final,
                "cliff": one.cliff,
                "category": one.category,
                "tokens": one.tokens,
            }
            for one in self.candidates
        ]

    def plot(self) -> Chart:
        """Share that the model complied with, among the chosen and in the whole pool."""
        parts: tuple[tuple[str, Role, Sequence[Candidate]], ...] = (
            ("chosen", "result", self._chosen()),
            ("all candidates", "control", self.candidates),
        )
        bars = [
            Bar(label, sum(complies(c.verdict) for c in part) / len(part), None, len(part), role)
            for label, role, part in parts
            if part
        ]
        svg = bar_chart("selection", "complied with before training", bars, width=WIDTH)
        return Chart.of("selection", svg)


def _curve_chart(
    name: str, curves: Sequence[Curve], closing: Sequence[str], marks: ModelCliff | None
) -> Chart:
    title = f"refusal score of {name} towards the end of thinking"
    if not curves:
        return Chart.of(title, bar_chart("cliff", "no group has three traces", [], width=WIDTH))
    return Chart.of(title, cliff_panel("cliff", curves, closing, marks, width=WIDTH))
