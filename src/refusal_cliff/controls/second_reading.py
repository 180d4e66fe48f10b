"""Does the verdict depend on how the probe reads? Other readings beside it, and the probe refitted.

- A probe fitted over the thinking, not at the last closing token: no artefact of one position.
- The next-token margin: how much more the model would begin a refusal than an answer, without any
  probe. Where a probe at the last closing token says no more than this, it is this.
- The probe relative to benign and refused traces at the same place, see `relative`.
- The probe fitted again on draws of the fitting prompts, and read on draws of the test prompts: the
  interval that the choice of prompts leaves, fitting included.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import ConfigDict, Field

from refusal_cliff.cliff.curves import TraceCliff, cliffs_of
from refusal_cliff.cliff.scores import TraceScores, scores_of
from refusal_cliff.cliff.verdict import (
    SHARE_OF_TRACES,
    Verdict,
    complied_rows,
    measured_rows,
    model_cliff,
    yardstick,
)
from refusal_cliff.controls.readings import (
    CLOSING,
    THINKING,
    Floats,
    Line,
    Reduced,
    Rows,
    fit_line,
    logistic_directions,
    rows_of,
    states_by_place,
    thinks,
)
from refusal_cliff.data.types import Trace
from refusal_cliff.errors import RefusalCliffError
from refusal_cliff.model.capture import capture
from refusal_cliff.model.final_norm import (
    AfterFinalNorm,
    at_read_point,
    find_final_norm,
    unembedding_rows,
)
from refusal_cliff.model.subject import Subject
from refusal_cliff.probe.fit import MIN_PER_CLASS, ProbeSet
from refusal_cliff.probe.quality import auroc, calibrate
from refusal_cliff.progress import Progress
from refusal_cliff.settings import DEFAULT_POOL
from refusal_cliff.stats import Correlation, Fraction, Ordered, percentiles, resampled_counts
from refusal_cliff.thinking import Spans

NEAR = 16
"""Tokens before the last closing token that are places of their own."""
TENTHS = 10
LEAST_DISTANCE = 0.1
"""Of the median distance of all places; where groups are nearer together, they measure noise."""


def places(spans: Spans) -> NDArray[np.int64]:
    """The place of each token from the first thinking token to the last closing one.

    Returns:
        [tokens]: ``0 … NEAR - 1`` counted back from the last closing token, ``NEAR + tenth``
        before these.
    """
    last = spans.last_closing
    tokens = np.arange(spans.prompt, last + 1)
    back = last - tokens
    length = max(spans.thinking - spans.prompt, 1)
    tenth = np.clip(TENTHS * (tokens - spans.prompt) // length, 0, TENTHS - 1)
    return np.where(back < NEAR, back, NEAR + tenth).astype(np.int64)


def relative(traces: Sequence[TraceScores], row: int) -> list[TraceScores] | None:
    """The traces with one row of logits: ``(logit − benign) / (refused − benign)`` at each place.

    A probe calibrated at one token drifts over others, for every trace alike. Here each token is
    read against what benign and refused traces have *there*: so many tokens before the last closing
    token, or, further back, in that tenth of the thinking.

    Medians over the tokens of benign, and of refused harmful traces. Tokens outside thinking and
    closing keep 0; they are part of no plateau and no final score.

    Args:
        traces: All test traces.
        row: The probe, a row of their logits.

    Returns:
        ``None`` where refused traces do not stand above benign ones, or one of them is missing.
    """
    parts = [
        (places(t.spans), t.logits[row, t.spans.prompt : t.spans.last_closing + 1]) for t in traces
    ]
    pairs = list(zip(traces, parts, strict=True))
    benign = [part for trace, part in pairs if trace.label == "benign"]
    refused = [
        part for trace, part in pairs if trace.label == "harmful" and trace.verdict == "refused"
    ]
    if not benign or not refused:
        return None
    low, high = _medians(benign), _medians(refused)
    distance = high - low
    usual = float(np.nanmedian(distance))
    if not usual > 0:
        return None
    scale = np.fmax(distance, LEAST_DISTANCE * usual)  # where one group has no token, too
    found = []
    for trace, (at, here) in pairs:
        made = np.zeros((1, trace.logits.shape[1]), dtype=np.float32)
        level = np.where(np.isfinite(low[at]), low[at], float(np.nanmedian(low)))
        made[0, trace.spans.prompt : trace.spans.last_closing + 1] = (here - level) / scale[at]
        found.append(replace(trace, logits=made))
    return found


def _medians(
    parts: Sequence[tuple[NDArray[np.int64], NDArray[np.float32]]],
) -> NDArray[np.float64]:
    """Median logit at each place over traces (places, logits); NaN where they have no token."""
    at, values = map(np.concatenate, zip(*parts, strict=True))
    found = np.full(NEAR + TENTHS, np.nan)
    for place in np.unique(at):
        found[place] = np.median(values[at == place])
    return found


DRAWS = 100
"""Times that the probe is fitted again."""
OWN, OVER_THINKING, MARGIN = "own probe", "probe over the thinking", "next-token margin"
SAME_PLACE = "own probe, relative to the place"
STRICT = ConfigDict(extra="forbid", allow_inf_nan=False)
"""Of what a file holds: no other keys, and no number that is none."""


@dataclass(frozen=True, slots=True)
class Reading:
    """What the rule of the verdict says under one reading."""

    __pydantic_config__ = STRICT

    verdict: Annotated[Verdict, Field(description="The verdict on the model by this reading.")]
    share: Annotated[Fraction, Field(description="Share of the traces with a cliff.")]
    share_ci: Annotated[Ordered, Field(description="Its interval, over prompt groups.")]
    reason: Annotated[str, Field(description="The verdict's grounds, as a sentence.")]
    early_auroc: Annotated[
        Fraction | None,
        Field(description="How well plateaus alone tell refused from complied harmful traces."),
    ]


@dataclass(frozen=True, slots=True)
class SecondReadings:
    """Whether the verdict depends on how the probe reads."""

    __pydantic_config__ = STRICT

    readings: Annotated[
        dict[str, Reading],
        Field(
            description="By name: `own probe`, `own probe, relative to the place`, "
            "`probe over the thinking`, `next-token margin`."
        ),
    ]
    margin_at_closing: Annotated[
        Correlation | None,
        Field(
            description="Correlation of the probe with the next-token margin at the last closing "
            "token."
        ),
    ]
    margin_over_thinking: Annotated[
        Correlation | None, Field(description="The same correlation, of the plateaus.")
    ]
    beyond_margin: Annotated[
        Correlation | None,
        Field(
            description="Partial correlation of the probe's plateau with refusing, given the "
            "margin's."
        ),
    ]
    refit_share: Annotated[
        Ordered | None,
        Field(description="Interval of the share with a cliff, fitting of the probe included."),
    ]
    refit_cliff: Annotated[Ordered | None, Field(description="The same for the mean cliff.")]
    refit_cliffs: Annotated[
        Fraction | None,
        Field(
            description="Share of the refits in which at least a quarter of the traces have a "
            "cliff."
        ),
    ]
    draws: Annotated[int, Field(ge=0, description="Number of refits.")]


def second_readings(
    subject: Subject,
    fit: Sequence[Trace],
    test: Sequence[Trace],
    probes: ProbeSet,
    *,
    pool: str = DEFAULT_POOL,
    seed: int = 0,
    progress: Progress | None = None,
) -> SecondReadings:
    """Read the test traces in other ways than with the probe, and with the probe fitted again.

    Args:
        subject: The model.
        fit: Judged traces that the probe was fitted on.
        test: Judged traces.
        probes: The probe whose verdict is doubted.
        pool: How the thinking's scores become a plateau, as for that verdict.
        seed: Seed of folds and draws.
        progress: Called with (traces done, traces).

    Returns:
        No readings where no test trace of a harmful prompt has any thinking.
    """
    fit, test = ([trace for trace in part if thinks(trace)] for part in (fit, test))
    if not fit or not any(trace.prompt.label == "harmful" for trace in test):
        return SecondReadings({}, None, None, None, None, None, None, 0)
    probe = probes.chosen
    states = states_by_place(subject, fit, probes.layer, probes.read_point, progress)
    rows = rows_of(fit, states, CLOSING, "refused-vs-benign")
    lines = {OWN: Line(probe.weight, probe.bias)}
    thoughts = rows_of(fit, states, THINKING, "refused-vs-benign")
    if thoughts.has(MIN_PER_CLASS):
        lines[OVER_THINKING] = fit_line(thoughts, seed)
    refits = refitted(rows, probe.strength, seed) if rows.has(MIN_PER_CLASS) else []
    margin = _margin(subject, fit)
    read = _read(subject, test, probes, [*lines.values(), *refits], margin)
    cliffs = {name: cliffs_of(read, row, pool) for row, name in enumerate(lines)}
    if margin is not None:
        cliffs[MARGIN] = cliffs_of(read, len(lines) + len(refits), pool)
    if (levelled := relative(read, 0)) is not None:
        cliffs[SAME_PLACE] = cliffs_of(levelled, 0, pool)
    again = [cliffs_of(read, len(lines) + draw, pool) for draw in range(len(refits))]
    own, other = cliffs[OWN], cliffs.get(MARGIN)
    shares, drops = redrawn(again, seed)
    against = (None, None, None) if other is None else _against_margin(own, other)
    return SecondReadings(
        {name: _reading(found, seed) for name, found in cliffs.items()},
        *against,
        refit_share=percentiles(shares) if len(shares) else None,
        refit_cliff=percentiles(drops) if len(drops) else None,
        refit_cliffs=float((shares >= SHARE_OF_TRACES).mean()) if len(shares) else None,
        draws=len(shares),
    )


def refitted(rows: Rows, strength: float, seed: int) -> list[Line]:
    """The probe fitted on ``DRAWS`` draws of its rows, each calibrated on the rows not drawn.

    Args:
        rows: Those of one group are drawn together.
        strength: Inverse L2 strength, as for the probe.
        seed: Seed of the draws.
    """
    counts = resampled_counts(rows.groups, seed, DRAWS)
    weights = logistic_directions(rows, counts, strength)
    found: list[Line] = []
    for weight, count in zip(weights, counts, strict=True):
        left = count == 0
        labels = rows.labels[left]
        if not np.isfinite(weight).all() or set(labels.tolist()) != {0, 1}:
            continue
        slope, intercept = calibrate(rows.states[left] @ weight, labels)
        if slope > 0:
            found.append(Line(slope * weight, intercept))
    return found


def _read(
    subject: Subject,
    traces: Sequence[Trace],
    probes: ProbeSet,
    lines: Sequence[Line],
    margin: Floats | None,
) -> list[TraceScores]:
    """Logits of every line at every token, the margin (if any) last: a row each, in one pass."""
    inner = Reduced(probes.layer, lambda _, states: np.stack([line(states) for line in lines]))
    readers, taps = [inner], [at_read_point(inner, subject, probes.read_point)]
    if margin is not None:
        readers.append(Reduced(subject.n_layers, lambda _, states: states @ margin))
        taps.append(AfterFinalNorm(readers[-1], subject))
    capture(subject, [trace.token_ids for trace in traces], taps)
    logits = [np.vstack([reader.values[row] for reader in readers]) for row in range(len(traces))]
    return scores_of(traces, logits)


@torch.inference_mode()
def _margin(subject: Subject, traces: Sequence[Trace]) -> Floats | None:
    """Direction [d] after the final norm whose logit is the next-token margin.

    Mean unembedding row of the first tokens of refusals minus that of the first tokens of answers:
    along it lies the difference of these tokens' mean logits. ``None`` where the model has no
    unembedding or no final norm that can be found, or the traces hold one kind of answer only.
    """
    unembedding = subject.model.get_output_embeddings()
    firsts: dict[bool, list[int]] = {True: [], False: []}
    for trace in traces:
        if trace.spans is not None and trace.spans.closing < len(trace.token_ids):
            firsts[trace.verdict == "refused"].append(trace.token_ids[trace.spans.closing])
    if unembedding is None or not all(firsts.values()):
        return None
    try:
        find_final_norm(subject)
    except RefusalCliffError:
        return None
    refusals, answers = (
        unembedding_rows(subject.model, firsts[side]).mean(0) for side in (True, False)
    )
    return (refusals - answers).numpy().astype(np.float64)


def _reading(rows: Sequence[TraceCliff], seed: int) -> Reading:
    found = model_cliff(rows, seed)
    harmful = [row for row in rows if row.label == "harmful"]
    refused = np.array([int(row.verdict == "refused") for row in harmful], dtype=np.int64)
    both = 0 < refused.sum() < len(refused)
    early = float(auroc(refused, _plateaus(harmful))) if both else None
    return Reading(found.verdict, found.share_with_cliff, found.share_ci, found.reason, early)


def redrawn(
    again: Sequence[Sequence[TraceCliff]], seed: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Share with a cliff and mean cliff of each refit, on a draw of the test prompts each.

    Draws without enough benign or refused prompts to hold the others against are left out.
    """
    shares: list[float] = []
    drops: list[float] = []
    rng = np.random.default_rng(seed)
    for rows in again:
        drawn = _drawn(rows, rng)
        rule, (_, measured) = yardstick(drawn), measured_rows(drawn)
        if rule.ceiling is None or rule.floor is None or not complied_rows(drawn):
            continue
        shares.append(float(np.mean([rule.kind(row) == "cliff" for row in measured])))
        drops.append(float(np.mean([row.cliff for row in measured])))
    return np.array(shares), np.array(drops)


def _drawn(rows: Sequence[TraceCliff], rng: np.random.Generator) -> list[TraceCliff]:
    members: dict[str, list[TraceCliff]] = {}
    for row in rows:
        members.setdefault(row.group, []).append(row)
    groups = list(members.values())
    return [row for at in rng.integers(len(groups), size=len(groups)) for row in groups[at]]


def _against_margin(
    own: Sequence[TraceCliff], margin: Sequence[TraceCliff]
) -> tuple[float | None, float | None, float | None]:
    """Correlations with the margin at the last closing token and of plateaus; what is beyond it."""
    finals = (np.array([row.final_logit for row in rows]) for rows in (own, margin))
    return (
        _correlation(*finals),
        _correlation(_plateaus(own), _plateaus(margin)),
        _beyond(own, margin),
    )


def _plateaus(rows: Sequence[TraceCliff]) -> NDArray[np.float64]:
    return np.array([row.plateau_logit for row in rows])


def _correlation(first: NDArray[np.float64], second: NDArray[np.float64]) -> float | None:
    if len(first) < 3 or not (first.std() > 0 and second.std() > 0):
        return None
    return float(np.corrcoef(first, second)[0, 1])


def _beyond(own: Sequence[TraceCliff], margin: Sequence[TraceCliff]) -> float | None:
    """Partial correlation of the probe's plateau with refusal, given the margin's plateau."""
    mine, others = ([row for row in rows if row.label == "harmful"] for rows in (own, margin))
    refused = np.array([float(row.verdict == "refused") for row in mine])
    if len(mine) < 4 or refused.std() == 0:
        return None
    given = np.column_stack([np.ones(len(mine)), _plateaus(others)])
    left = (
        values - given @ np.linalg.lstsq(given, values, rcond=None)[0]
        for values in (_plateaus(mine), refused)
    )
    return _correlation(*left)
