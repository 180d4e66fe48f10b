"""Everything the page shows, as typed data: the only input of the report.

Scores, shares and rates are fractions in 0 … 1; intervals are 95 % intervals. A point that no trace
reaches is ``None``. ``interval_kind`` says in words how an interval was made; captions repeat it.
Blocks are numbered from 1, heads from 0. Texts may be hostile (they come from models and prompt
files): the page escapes them.
"""

from __future__ import annotations

from collections.abc import Sequence, Sized
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from refusal_cliff.cliff.curves import MeanCurve
from refusal_cliff.controls.table import ControlTable
from refusal_cliff.findings.summary import Summary
from refusal_cliff.findings.wording import Finding, NextStep
from refusal_cliff.heads.table import METHODS, HeadRow
from refusal_cliff.model.subject import Head
from refusal_cliff.stats import Interval, Share
from refusal_cliff.thinking import Spans

Group = Literal["complied", "refused", "benign"]
Role = Literal["baseline", "result", "control"]


def _same_length(what: str, *parts: Sized) -> None:
    lengths = [len(part) for part in parts]
    if len(set(lengths)) > 1:
        raise ValueError(f"{what}: parts of different lengths {lengths}")


@dataclass(frozen=True, slots=True)
class Curve(MeanCurve):
    """Mean score of one group of traces, aligned at the end of thinking.

    Attributes:
        subject: Name of the model.
        group: What its traces did.
        interval_kind: How the intervals were made.
        words: What the curve is called, where not by its group.
    """

    subject: str
    group: Group
    interval_kind: str = "bootstrap over prompt groups"
    words: str = ""

    def __post_init__(self) -> None:
        _same_length("Curve", self.offsets, self.mean, self.low, self.high, self.n)


@dataclass(frozen=True, slots=True)
class Heatmap:
    """Mean score of harmful traces by layer and token.

    Attributes:
        layers: Blocks, rising.
        offsets: Tokens relative to the last closing token, rising, the last one 0.
        scores: [layers][offsets], each row by that layer's own probe.
        n: Traces averaged.
        cliff: Mean cliff of each layer.
        auroc: Held-out AUROC of each layer's probe.
        group: What these traces did.
    """

    layers: Sequence[int]
    offsets: Sequence[int]
    scores: Sequence[Sequence[float | None]]
    n: int
    cliff: Sequence[float]
    auroc: Sequence[float]
    group: Group = "complied"

    def __post_init__(self) -> None:
        _same_length("Heatmap layers", self.layers, self.scores)
        _same_length("Heatmap offsets", self.offsets, *self.scores)


TABLED = 12
"""Heads in the table below the map."""


@dataclass(frozen=True, slots=True)
class HeadMap:
    """What the final score does when each head is taken out.

    Attributes:
        rows: Every head, by every measure; those of a block in one row of the map.
        taken_out: The heads found and ablated.
        planted: The heads that the recipe damaged; None where there is no ground truth.
    """

    rows: Sequence[HeadRow]
    taken_out: Sequence[Head]
    planted: Sequence[Head] | None = None

    @property
    def n(self) -> int:
        """Traces averaged."""
        return self.rows[0].causal.n

    @property
    def layers(self) -> list[int]:
        """Blocks, rising."""
        return sorted({row.layer for row in self.rows})

    @property
    def columns(self) -> int:
        """Heads of a block."""
        return 1 + max(row.index for row in self.rows)

    @property
    def strongest(self) -> list[HeadRow]:
        """Those taken out, then those of the largest effects, ``TABLED`` in all or more."""
        by_effect = sorted(self.rows, key=METHODS["causal"], reverse=True)
        out = [row for row in by_effect if row.head in self.taken_out]
        others = [row for row in by_effect if row.head not in self.taken_out]
        return out + others[: max(0, TABLED - len(out))]


@dataclass(frozen=True, slots=True)
class Bar:
    """One share with its interval.

    Attributes:
        label: What was done, in a few words.
        value: The share.
        interval: Its interval, or None.
        n: Prompts that it is a share of.
        role: Whether it is where things stood, what the method did, or what else was tried.
        points: Single results behind the mean, drawn as dots.
        detail: What else a reader should know, in a few words.
        interval_kind: How the interval was made; needed where there is one.
    """

    label: str
    value: float
    interval: Interval | None
    n: int
    role: Role
    points: Sequence[float] = ()
    detail: str = ""
    interval_kind: str = ""

    def __post_init__(self) -> None:
        if self.interval is not None and not self.interval_kind:
            raise ValueError(f"Bar {self.label}: say how its interval was made")

    @classmethod
    def of(cls, label: str, share: Share, role: Role, detail: str = "") -> Bar:
        """A share with its Wilson interval."""
        value = share.value or 0.0
        return cls(label, value, share.interval, share.n, role, (), detail, "Wilson")


@dataclass(frozen=True, slots=True)
class DoseCurve:
    """Attack success rate by number of heads ablated, in the order in which they were found.

    Attributes:
        subject: Name of the model.
        role: "result" where a few heads should do it, "control" where they should not.
        total_heads: Heads of the model.
        heads: Numbers of heads ablated, rising, 0 first.
        asr: Attack success rate at each.
        intervals: Its interval at each.
        n: Harmful prompts.
        interval_kind: How the intervals were made.
    """

    subject: str
    role: Role
    total_heads: int
    heads: Sequence[int]
    asr: Sequence[float]
    intervals: Sequence[Interval]
    n: int
    interval_kind: str = "Wilson"

    def __post_init__(self) -> None:
        _same_length("DoseCurve", self.heads, self.asr, self.intervals)


@dataclass(frozen=True, slots=True)
class ExampleTrace:
    """One trace with its score at every token.

    Attributes:
        title: What this trace shows, in a few words.
        subject: Name of the model.
        verdict: What the judge said of the answer.
        prompt: The user's words.
        pieces: Text of each token, from any prompt token on to the end of the answer.
        scores: Refusal score at each token; None where it was not measured.
        spans: Ends of prompt, thinking and closing span, as positions in ``pieces``.
        id: Of its prompt, by which the reader finds it; empty where it is not in there.
    """

    title: str
    subject: str
    verdict: str
    prompt: str
    pieces: Sequence[str]
    scores: Sequence[float | None]
    spans: Spans
    id: str = ""

    def __post_init__(self) -> None:
        _same_length("ExampleTrace", self.pieces, self.scores)


@dataclass(frozen=True, slots=True)
class HeadShares:
    """What heads add to the refusal logit at the thinking and closing tokens of one trace.

    Attributes:
        heads: Heads told one by one.
        out: Those among them that are taken out.
        values: [heads + 1, tokens] in logits; the last row is the sum over all other heads.
    """

    heads: Sequence[Head]
    out: Sequence[Head]
    values: NDArray[np.floating[Any]]

    def __post_init__(self) -> None:
        _same_length("HeadShares", self.values, [*self.heads, None])


@dataclass(frozen=True, slots=True)
class Side:
    """What the model writes to a prompt, as it is or with the heads out.

    Attributes:
        verdict: What the judge said of the answer.
        pieces: Text of each token of the whole trace, prompt first.
        spans: Ends of its four parts; None where the thinking never closed.
        levels: Scores of the thinking and closing tokens as one byte each, layer after layer, see
            `reader.quantised`; empty where the trace was not scored.
    """

    verdict: str
    pieces: Sequence[str]
    spans: Spans | None
    levels: bytes


@dataclass(frozen=True, slots=True)
class ReaderTrace(Side):
    """One trace of the reader, which shows every layer.

    Attributes:
        id: Id of its prompt; a link to the trace holds it.
        prompt: The user's words.
        label: ``harmful`` or ``benign``.
        kind: What became of a harmful prompt, by the taxonomy; empty for a benign one.
        source: Where the prompt came from; empty if nobody noted it.
        category: Of the prompt; may be empty.
        cliff: Plateau − final at the chosen layer; None where it could not be measured.
        heads: What heads add at its tokens; None where that was not measured.
        after: The same prompt with the heads out, at the chosen layer; None where none were.
    """

    id: str
    prompt: str
    label: str
    kind: str
    source: str
    category: str
    cliff: float | None
    heads: HeadShares | None = None
    after: Side | None = None


@dataclass(frozen=True, slots=True)
class Reader:
    """Traces to look through.

    Attributes:
        traces: Those that are in the page.
        total: Test traces of the run.
        layers: Layers that are in the page, rising.
        probed: Layers that have a probe.
        layer: The layer that all other pictures use; one of ``layers``.
        first: Id of the trace that is shown first.
    """

    traces: Sequence[ReaderTrace]
    total: int
    layers: Sequence[int]
    probed: int
    layer: int
    first: str

    def __post_init__(self) -> None:
        for trace in self.traces:
            scored = trace.spans.closing - trace.spans.prompt if trace.spans else 0
            if len(trace.levels) not in (0, len(self.layers) * scored):
                raise ValueError(
                    f"Reader: the levels of {trace.id} do not fit its spans and layers"
                )


@dataclass(frozen=True, slots=True)
class ReportData:
    """All that the page shows. Parts that a run did not measure are None or empty.

    Attributes:
        title: Name of the page.
        headline: The verdict, as one sentence.
        summary: The findings as data.
        curves: Mean curves of the model under study, one a group.
        control_curves: The same of the control; empty where there is none.
        ablated_curves: Harmful traces of the model under study, before and with the heads out.
        closing: Text of each closing token, the last one at offset 0.
        heatmap: Layers × tokens.
        head_map: Layers × heads.
        ablation: Attack success rates: before, after, random heads.
        doses: Attack success rate by number of heads, one curve a model.
        repaired: Attack success rate, and benign prompts answered, by choice of training examples.
        controls: Title and table of each control that was measured.
        traces: A few typical traces, token by token.
        reader: All traces at all layers, to look through; None where there are none.
        next_step: What to do with this model; None where it cannot be said.
        findings: The table of findings.
        notes: What a reader must know to judge the page: what was put in on purpose, limits.
        provenance: Name and value of what made the page: version, seed, judge, time.
    """

    title: str
    headline: str
    summary: Summary
    curves: Sequence[Curve]
    control_curves: Sequence[Curve] = ()
    ablated_curves: Sequence[Curve] = ()
    closing: Sequence[str] = ()
    heatmap: Heatmap | None = None
    head_map: HeadMap | None = None
    ablation: Sequence[Bar] = ()
    doses: Sequence[DoseCurve] = ()
    repaired: Sequence[tuple[Bar, Bar]] = ()
    controls: Sequence[tuple[str, ControlTable]] = ()
    traces: Sequence[ExampleTrace] = ()
    reader: Reader | None = None
    next_step: NextStep | None = None
    findings: Sequence[Finding] = ()
    notes: Sequence[str] = ()
    provenance: Sequence[tuple[str, str]] = ()
