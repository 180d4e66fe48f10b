"""Which heads pull the refusal score down: direct contribution and exact causal effect."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from transformers import Cache

from refusal_cliff.ablation import ablated_rows
from refusal_cliff.blocks import decoder_of
from refusal_cliff.capture import HeadContributions, ProbeScores, Progress, capture
from refusal_cliff.errors import RefusalCliffError
from refusal_cliff.io import atomic_path
from refusal_cliff.models import Head, Subject
from refusal_cliff.probe import Probe
from refusal_cliff.stats import bootstrap_mean
from refusal_cliff.thinking import Spans
from refusal_cliff.traces import Trace

Floats: TypeAlias = NDArray[np.floating[Any]]

MAX_FRACTION = 0.03
"""Heads that may be ablated (paper §5)."""
TRACES_AT_ONCE = 32
SAME = 1e-3


def direct_contributions(
    subject: Subject, traces: Sequence[Trace], probe: Probe, progress: Progress | None = None
) -> Floats:
    """What each head adds to the score logit at the last closing token, in one forward pass.

    Returns:
        [traces, layers, heads], in logits; zero after the probe's layer.
    """
    positions = [_spans(trace).last_closing for trace in traces]
    reader = HeadContributions(subject, positions, probe.weight, probe.layer)
    capture(subject, [trace.token_ids for trace in traces], [reader], progress=progress)
    return reader.values


@torch.inference_mode()
def causal_effects(
    subject: Subject, traces: Sequence[Trace], probe: Probe, progress: Progress | None = None
) -> Floats:
    """Rise of the final score logit when one head is taken out over the closing tokens.

    Exact, and without a forward pass a head: the thinking is run once and its keys and values are
    kept; for the heads of block l, only the closing tokens are run again, only from block l on, all
    heads of the block in one batch.

    Returns:
        [traces, layers, heads], in logits: positive where a head suppresses refusal; zero after
        the probe's layer.

    Raises:
        RefusalCliffError: The model's blocks cannot be run one by one with the same result.
    """
    effects = np.zeros((len(traces), subject.n_layers, subject.n_heads), dtype=np.float32)
    scores = ProbeScores({probe.layer: (probe.weight, probe.bias)}, len(traces))
    capture(subject, [trace.token_ids for trace in traces], [scores])
    for start in range(0, len(traces), TRACES_AT_ONCE):
        chosen = traces[start : start + TRACES_AT_ONCE]
        closing = _ClosingPass(subject, chosen, probe)
        base = closing.final_logits(1, [()])[:, 0]
        place = [_spans(trace).last_closing for trace in chosen]
        whole = [scores.logits[start + row][0, at] for row, at in enumerate(place)]
        _check_same(subject, base, np.asarray(whole))
        for layer in range(1, probe.layer + 1):
            heads = [(Head(layer, index),) for index in range(subject.blocks[layer - 1].n_heads)]
            if heads:
                changed = closing.final_logits(layer, heads) - base[:, None]
                effects[start : start + len(chosen), layer - 1, : len(heads)] = changed
        if progress is not None:
            progress(start + len(chosen), len(traces))
    return effects


def _check_same(subject: Subject, base: Floats, whole: Floats) -> None:
    gap = float(np.abs(base - whole).max())
    tolerance = SAME if subject.model.dtype in (torch.float32, torch.float64) else 0.25
    if gap > tolerance * max(1.0, float(np.abs(whole).max())):
        raise RefusalCliffError(
            f"The blocks of {subject.name} cannot be run one by one: with no head ablated the "
            f"final score logit differs by {gap:.3g} from the model's own. Heads of this "
            "architecture cannot be ranked by causal effect yet."
        )


def _spans(trace: Trace) -> Spans:
    if trace.spans is None:
        raise ValueError(f"trace {trace.prompt.id} has no closing span")
    return trace.spans


class _KeptThoughts:
    """A key-value cache of the thinking that is read, never grown: each block sees it once."""

    def __init__(self, states: Sequence[tuple[torch.Tensor, torch.Tensor]], copies: int) -> None:
        self._states = states
        self._copies = copies

    def update(
        self, keys: torch.Tensor, values: torch.Tensor, layer_idx: int, *_: object, **__: object
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values of the thinking before those given."""
        old_keys, old_values = (
            kept.repeat_interleave(self._copies, 0) for kept in self._states[layer_idx]
        )
        return torch.cat([old_keys, keys], -2), torch.cat([old_values, values], -2)


class _ClosingPass:
    """The closing tokens of some traces, ready to be run again from any block on."""

    def __init__(self, subject: Subject, traces: Sequence[Trace], probe: Probe) -> None:
        self._subject = subject
        self._probe = probe
        self._weight = torch.as_tensor(probe.weight, dtype=torch.float32, device=subject.device)
        spans = [_spans(trace) for trace in traces]
        prefix = [trace.token_ids[: s.thinking] for trace, s in zip(traces, spans, strict=True)]
        closing = [
            trace.token_ids[s.thinking : s.closing] for trace, s in zip(traces, spans, strict=True)
        ]
        self._last = torch.tensor([len(tokens) - 1 for tokens in closing], device=subject.device)
        ids, mask = _padded(prefix, subject.device, left=True)  # the newest keys end in one place
        decoder = decoder_of(subject.model)
        cache = decoder(
            input_ids=ids,
            attention_mask=mask,
            position_ids=(mask.cumsum(1) - 1).clamp(min=0),
            use_cache=True,
        ).past_key_values
        self._thoughts = [(layer.keys, layer.values) for layer in cache.layers]
        self._calls: dict[int, tuple[torch.Tensor, list[Any], dict[str, Any]]] = {}
        closing_ids, closing_mask = _padded(closing, subject.device)
        first = torch.tensor([len(tokens) for tokens in prefix], device=subject.device)
        handles = [
            block.module.register_forward_pre_hook(self._recorder(block.layer), with_kwargs=True)
            for block in subject.blocks
        ]
        try:
            decoder(
                input_ids=closing_ids,
                attention_mask=torch.cat([mask, closing_mask], 1),
                position_ids=first[:, None] + torch.arange(closing_ids.shape[1]).to(first),
                past_key_values=cache,
                use_cache=True,
            )
        finally:
            for handle in handles:
                handle.remove()

    def _recorder(self, layer: int) -> Callable[..., None]:
        def record(module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            del module
            named = dict(kwargs)
            states, *rest = args or (named.pop("hidden_states"),)
            self._calls[layer] = (states, rest, named)

        return record

    def final_logits(self, layer: int, sets: Sequence[Sequence[Head]]) -> Floats:
        """Score logit at the last closing token with each set of heads taken out, [traces, sets].

        Args:
            layer: Block to start from: the first that any of the sets touches.
            sets: Sets of heads.
        """
        subject, copies = self._subject, len(sets)
        kept = _KeptThoughts(self._thoughts, copies)
        states = self._calls[layer][0]
        batch = states.shape[0]
        states = states.repeat_interleave(copies, 0)

        def again(value: Any) -> Any:
            return kept if isinstance(value, Cache) else _copied(value, batch, copies)

        with ablated_rows(subject, list(sets) * batch):
            for number in range(layer, self._probe.layer + 1):
                _, rest, named = self._calls[number]
                arguments = [again(value) for value in rest]
                by_name = {name: again(value) for name, value in named.items()}
                output = subject.blocks[number - 1].module(states, *arguments, **by_name)
                states = output[0] if isinstance(output, tuple) else output
        rows = torch.arange(len(states), device=states.device)
        final = states[rows, self._last.repeat_interleave(copies)].float()
        logits = final @ self._weight + self._probe.bias
        return logits.reshape(batch, copies).cpu().numpy()


def _copied(value: Any, batch: int, copies: int) -> Any:
    """An argument of a block, repeated for every set where it has a row for each trace."""
    if isinstance(value, torch.Tensor) and value.dim() > 1 and value.shape[0] == batch:
        return value.repeat_interleave(copies, 0)
    if isinstance(value, tuple):
        return tuple(_copied(part, batch, copies) for part in value)
    return value


def _padded(
    rows: Sequence[Sequence[int]], device: torch.device, *, left: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and attention mask, both [rows, longest row]."""
    ids = torch.zeros(len(rows), max(len(row) for row in rows), dtype=torch.long)
    mask = torch.zeros_like(ids)
    for place, row in enumerate(rows):
        start = ids.shape[1] - len(row) if left else 0
        ids[place, start : start + len(row)] = torch.tensor(row)
        mask[place, start : start + len(row)] = 1
    return ids.to(device), mask.to(device)


@dataclass(frozen=True, slots=True)
class HeadRow:
    """One head, measured over traces; all numbers in score logits at the last closing token.

    Attributes:
        layer: Block, from 1.
        index: Head, from 0.
        causal: Mean rise when the head is taken out, over the harmful traces measured.
        causal_low: Lower end of its bootstrap interval over prompt groups.
        causal_high: Upper end.
        causal_benign: The same mean over benign traces: a head that acts only on harmful prompts
            has none.
        sign_consistency: Share of the harmful traces with the sign of the mean.
        direct: Mean direct contribution over the harmful traces measured; the paper's score times
            the probe's norm.
        direct_refused: The same over refused traces; ``None`` where there are none.
        n: Harmful traces measured.
    """

    layer: int
    index: int
    causal: float
    causal_low: float
    causal_high: float
    causal_benign: float
    sign_consistency: float
    direct: float
    direct_refused: float | None
    n: int = 0

    @property
    def head(self) -> Head:
        """The head itself."""
        return Head(self.layer, self.index)


METHODS: dict[str, Callable[[HeadRow], float]] = {
    "causal": lambda row: row.causal,
    "direct": lambda row: -row.direct,
    "direct-contrast": lambda row: (row.direct_refused or 0.0) - row.direct,
}
"""Rankings, strongest suppression first. ``direct`` is the paper's."""


def measure_heads(
    subject: Subject,
    harmful: Sequence[Trace],
    refused: Sequence[Trace],
    benign: Sequence[Trace],
    probe: Probe,
    *,
    seed: int = 0,
    progress: Progress | None = None,
) -> list[HeadRow]:
    """Measure every head by every method.

    Args:
        subject: The model.
        harmful: Traces whose fall is to be explained: complied ones where there are enough.
        refused: Refused traces, for the contrast; may be empty.
        benign: Benign traces; at least one.
        probe: The probe whose score counts.
        seed: Seed of the bootstrap.
        progress: Called with (traces done, traces).
    """
    total = len(harmful) + len(benign)
    first = None if progress is None else lambda done, _: progress(done, total)
    then = None if progress is None else lambda done, _: progress(len(harmful) + done, total)
    causal = causal_effects(subject, harmful, probe, first)
    on_benign = causal_effects(subject, benign, probe, then).mean(0)
    direct = direct_contributions(subject, harmful, probe).mean(0)
    of_refused = direct_contributions(subject, refused, probe).mean(0) if refused else None
    groups = [trace.prompt.group for trace in harmful]
    rows = []
    for head in subject.heads():
        layer, index = head.layer, head.index
        here = causal[:, layer - 1, index].astype(np.float64)
        low, high = bootstrap_mean(here, groups, seed=seed, resamples=500)
        rows.append(
            HeadRow(
                layer=layer,
                index=index,
                causal=float(here.mean()),
                causal_low=low,
                causal_high=high,
                causal_benign=float(on_benign[layer - 1, index]),
                sign_consistency=float((np.sign(here) == np.sign(here.mean())).mean()),
                direct=float(direct[layer - 1, index]),
                direct_refused=(
                    None if of_refused is None else float(of_refused[layer - 1, index])
                ),
                n=len(harmful),
            )
        )
    return rows


def ranked(rows: Sequence[HeadRow], method: str = "causal") -> list[Head]:
    """Heads by a ranking of ``METHODS``, the strongest suppression first."""
    return [row.head for row in sorted(rows, key=METHODS[method], reverse=True)]


def budget(total: int, fraction: float = MAX_FRACTION) -> int:
    """Heads in a fraction of all, rounded down; at least one."""
    return max(1, int(fraction * total + 1e-9))


def select_heads(
    rows: Sequence[HeadRow], fraction: float = MAX_FRACTION, method: str = "causal"
) -> list[Head]:
    """The refusal suppression heads: the strongest few of a ranking that do suppress.

    By causal effect, a head counts only if its interval lies above zero.
    """
    suppressing = {
        row.head
        for row in rows
        if METHODS[method](row) > 0 and (method != "causal" or row.causal_low > 0)
    }
    strongest = ranked(rows, method)[: budget(len(rows), fraction)]
    return [head for head in strongest if head in suppressing]


def write_heads(path: Path, rows: Sequence[HeadRow]) -> None:
    """Write ``heads.parquet``, one row per head."""
    with atomic_path(path) as temporary:
        pq.write_table(pa.Table.from_pylist([asdict(row) for row in rows]), temporary)


def read_heads(path: Path) -> list[HeadRow]:
    """Read what `write_heads` wrote."""
    return [HeadRow(**row) for row in pq.read_table(path).to_pylist()]
