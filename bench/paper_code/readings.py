"""Faults in how states are read: the mean curve, the depth profile, the position, the text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple, replace
from typing import cast

import numpy as np
import torch
from scipy.interpolate import CubicSpline
from scipy.special import expit

from bench.paper_code.case import Case, Effect, level_effects, verdict_rows
from refusal_cliff.answers.evaluate import rates
from refusal_cliff.cliff.scores import TraceScores, score_traces
from refusal_cliff.controls.table import Cell, mean_cell, share_cell
from refusal_cliff.data.traces import closed
from refusal_cliff.data.types import Trace
from refusal_cliff.generate.local import answer
from refusal_cliff.judges import RulesJudge, judge_traces
from refusal_cliff.model.blocks import decoder_of
from refusal_cliff.model.capture import ProbeScores, capture
from refusal_cliff.probe.quality import Floats, measure_quality
from refusal_cliff.stats import Share
from refusal_cliff.thinking import Spans, render_prompt, response_text, split_spans, tokenise_trace
from refusal_cliff.workflows.demo import GENERATION

POINTS = 100
DRAWN = (*range(0, POINTS, 5), POINTS - 1)
"""Points of the curve that the paper's figures draw."""
BATCH = 4
SYSTEM = "You are a helpful assistant."
FALL = 0.3
"""Least drop of a mean curve that has a middle to count points below."""


def right_aligned(curves: Sequence[Floats], fill: float) -> Floats:
    """Curves that end together, [curves, longest]; ``fill`` before the shorter ones begin."""
    width = max(map(len, curves))
    return np.stack([np.r_[np.full(width - len(curve), fill), curve] for curve in curves])


def resampled(curve: Floats) -> Floats:
    """A curve on 100 evenly spaced points, by a cubic spline through all of its own."""
    places = np.linspace(0, len(curve) - 1, POINTS)
    return CubicSpline(np.arange(len(curve)), curve)(places)


def in_the_fall(curve: Floats, plateau: float, final: float) -> int:
    """How many points at the end of a curve lie nearer to the final score than to the plateau."""
    high = np.flatnonzero(curve >= (plateau + final) / 2)
    return len(curve) - 1 - int(high[-1]) if len(high) else len(curve)


def curve_effects(case: Case) -> list[Effect]:
    """Shorter traces count as zeros before they begin; then 100 points, of which 21 are drawn."""
    row, found = case.probes.row, verdict_rows(case.scores, case.probes.row)
    by_id = {trace.trace_id: trace for trace in case.scores}
    chosen = [by_id[cliff.trace_id] for cliff in found]
    curves = [expit(t.logits[row, : t.spans.closing].astype(np.float64)) for t in chosen]
    groups = [trace.group for trace in chosen]
    masked, padded = right_aligned(curves, np.nan), right_aligned(curves, 0.0)
    effects = []
    for share in (0.25, 0.5, 0.75):
        place = round(share * (padded.shape[1] - 1))
        there = np.flatnonzero(np.isfinite(masked[:, place]))
        ours = mean_cell(masked[there, place].tolist(), [groups[at] for at in there], case.seed)
        theirs = mean_cell(padded[:, place].tolist(), groups, case.seed)
        effects.append(Effect(f"mean curve at {share:.0%} of its length", ours, theirs))
    levels = [float(np.mean([getattr(cliff, name) for cliff in found])) for name in _LEVELS]
    counts = [None, None]
    if levels[0] - levels[1] >= FALL:
        ours, theirs = np.nanmean(masked, 0), resampled(padded.mean(0))[list(DRAWN)]
        counts = [in_the_fall(curve, *levels) for curve in (ours, theirs)]
    cells = [Cell(count, None, len(chosen)) for count in counts]
    return [*effects, Effect("points drawn below the middle of the fall", *cells)]


_LEVELS = ("plateau", "final")


def layer_effects(case: Case) -> list[Effect]:
    """The probe after the final norm, used on states before it; ours is a probe for each depth."""
    probe, last = case.after.chosen, case.subject.n_layers
    layers = (last // 2, last - 1)
    reader = ProbeScores(dict.fromkeys(layers, (probe.weight, probe.bias)), len(case.scores))
    capture(case.subject, [trace.token_ids for trace in closed(case.test)], [reader])
    theirs = [
        replace(trace, logits=logits)
        for trace, logits in zip(case.scores, reader.logits, strict=True)
    ]
    effects = []
    for row, layer in enumerate(layers):
        own = [probe.layer for probe in case.probes.probes].index(layer)
        cells = [final_auroc(case.scores, own, case.seed), final_auroc(theirs, row, case.seed)]
        here = [
            Effect("AUROC", *cells),
            *level_effects(case.scores, theirs, (own, row), case.seed),
        ]
        effects += [replace(one, measure=f"{one.measure} after block {layer}") for one in here]
    return effects


def final_auroc(scores: Sequence[TraceScores], row: int, seed: int = 0) -> Cell:
    """AUROC of final scores, refused harmful against answered benign."""
    kept = [
        trace
        for trace in scores
        if (trace.label, trace.verdict) in (("harmful", "refused"), ("benign", "complied"))
    ]
    finals = np.array([trace.logits[row, trace.spans.last_closing] for trace in kept])
    return auroc_cell(finals, kept, seed)


def auroc_cell(logits: Floats, kept: Sequence[TraceScores], seed: int) -> Cell:
    """AUROC of one number a trace."""
    labels = np.array([trace.label == "harmful" for trace in kept], dtype=np.int64)
    found = measure_quality(logits, labels, [trace.group for trace in kept], seed)
    return Cell(found.auroc, found.auroc_ci, len(kept))


@torch.inference_mode()
def last_places(case: Case, token_ids: Sequence[Sequence[int]]) -> Floats:
    """Logits of the probe after the final norm at place −1 of right-padded batches."""
    probe, pad = case.after.chosen, cast("int", case.subject.tokenizer.pad_token_id)
    weight, found = torch.as_tensor(probe.weight), []
    for start in range(0, len(token_ids), BATCH):
        rows = [torch.tensor(ids) for ids in token_ids[start : start + BATCH]]
        ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=pad)
        lengths = torch.tensor([len(row) for row in rows])
        mask = (torch.arange(ids.shape[1]) < lengths[:, None]).long()
        states = decoder_of(case.subject.model)(ids, attention_mask=mask, use_cache=False)[0]
        found += (states[:, -1] @ weight + probe.bias).tolist()
    return np.array(found)


def position_effects(case: Case) -> list[Effect]:
    """The state at place −1 of a batch whose tokenizer pads on the right."""
    traces = closed(case.test)
    ours = score_traces(case.subject, traces, case.after)
    begun = [t.token_ids[: t.spans.closing] for t in traces if t.spans is not None]
    logits = last_places(case, begun)
    width = [max(map(len, begun[at - at % BATCH :][:BATCH])) for at in range(len(begun))]
    at_pad = Share(sum(len(ids) < n for ids, n in zip(begun, width, strict=True)), len(begun))
    classes = {trace.prompt.id for trace in case.classes()}
    kept = [at for at, trace in enumerate(ours) if trace.trace_id in classes]
    found = {row.trace_id: row for row in verdict_rows(ours)}
    there = [at for at, trace in enumerate(ours) if trace.trace_id in found]
    groups = [ours[at].group for at in there]
    finals = [[found[ours[at].trace_id].final for at in there], expit(logits[there]).tolist()]
    return [
        Effect("traces read at a pad", share_cell(Share(0, len(begun))), share_cell(at_pad)),
        Effect("final", *(mean_cell(values, groups, case.seed) for values in finals)),
        Effect(
            "AUROC",
            final_auroc(ours, 0, case.seed),
            auroc_cell(logits[kept], [ours[at] for at in kept], case.seed),
        ),
    ]


def text_effects(case: Case) -> list[Effect]:
    """The thinking as text, tokenised again, after a blank line that the model did not write."""
    tokenizer, fmt = case.subject.tokenizer, case.subject.format
    traces, same, moved = closed(case.test), 0, []
    for trace in traces:
        assert trace.spans is not None  # closed
        plain, _ = tokenise_trace(tokenizer, fmt, trace.prompt.text, trace.thinking, "")
        same += tuple(plain) == trace.token_ids[: trace.spans.closing]
        text = "\n\n" + trace.thinking
        ids, spans = tokenise_trace(tokenizer, fmt, trace.prompt.text, text, "")
        moved.append(replace(trace, token_ids=tuple(ids), spans=spans))
    theirs = score_traces(case.subject, moved, case.probes)
    row = case.probes.row
    other = Share(len(traces) - same, len(traces))
    return [
        Effect("other tokens than generated", share_cell(Share(0, other.n)), share_cell(other)),
        *level_effects(case.scores, theirs, (row, row), case.seed),
        Effect("AUROC", *(final_auroc(scores, row, case.seed) for scores in (case.scores, theirs))),
    ]


def system_effects(case: Case) -> list[Effect]:
    """Thinking written after a system prompt, which the probe's text leaves out."""
    subject, tokenizer = case.subject, case.subject.tokenizer
    message = [{"role": "system", "content": SYSTEM}]
    system = str(tokenizer.apply_chat_template(message, tokenize=False))
    ahead = list(tokenizer(system, add_special_tokens=False)["input_ids"])
    prompts = [render_prompt(tokenizer, trace.prompt.text) for trace in case.test]
    written = answer(subject, [[*ahead, *ids] for ids in prompts], GENERATION.max_new_tokens)
    asked = zip(case.test, prompts, written, strict=True)
    again = judge_traces([written_again(case, *one) for one in asked], RulesJudge())
    bare = closed(again)
    whole = [behind(trace, ahead) for trace in bare]
    ours, theirs = (score_traces(subject, traces, case.probes) for traces in (whole, bare))
    row = case.probes.row
    attacks = [share_cell(rates(traces).attacks) for traces in (case.test, again)]
    return [
        Effect("ASR, no system prompt → one", *attacks),
        *level_effects(ours, theirs, (row, row), case.seed),
    ]


def written_again(case: Case, trace: Trace, prompt: Sequence[int], new: Sequence[int]) -> Trace:
    """A trace of other new tokens after the same prompt."""
    tokenizer, ids = case.subject.tokenizer, (*prompt, *new)
    spans = split_spans(ids, len(prompt), tokenizer, case.subject.format)
    response = "" if spans is None else response_text(tokenizer, ids, spans)
    complete = new[-1] == tokenizer.eos_token_id
    return Trace(trace.prompt, ids, spans, "", response, complete)


def behind(trace: Trace, ahead: Sequence[int]) -> Trace:
    """A closed trace after some more tokens."""
    assert trace.spans is not None  # closed
    ends = (len(ahead) + end for end in astuple(trace.spans))
    return replace(trace, token_ids=(*ahead, *trace.token_ids), spans=Spans(*ends))
