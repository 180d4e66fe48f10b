"""What a page holds compressed, its trace reader above all; its one script, allowed by hash."""

from __future__ import annotations

import gzip
import json
from base64 import b64encode
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from importlib.resources import files
from typing import Any

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from refusal_cliff.report.data import HeadShares, Reader, ReaderTrace, Side
from refusal_cliff.report.palette import LEVELS
from refusal_cliff.report.words import token_text, visible
from refusal_cliff.thinking import Spans

FULL = 100
"""The byte of score 1: two decimals are what is read out, and finer ones compress worse."""
MISSING = 255
"""The byte of a token that has no score."""
HEAD_STEPS = 127
"""Steps of the largest contribution of a head in a trace."""


@dataclass(frozen=True, slots=True)
class PackedReader:
    """What the template writes into the page.

    Attributes:
        index: All that the list and the open trace's text need.
        scores: The levels of each trace, compressed alone, so that only the open one is unpacked.
        more: Of each trace, alone too: what heads add, and the same prompt with the heads out.
    """

    index: Markup
    scores: Sequence[Markup]
    more: Sequence[Markup]


def page_script() -> str:
    """The one script, the same in every page."""
    names = ("page.js", "reader.js")
    return "".join(
        files("refusal_cliff.report").joinpath(name).read_text(encoding="utf-8") for name in names
    )


def source_hash(script: str) -> str:
    """The source expression that lets a Content-Security-Policy run this script alone."""
    return f"'sha256-{b64encode(sha256(script.encode()).digest()).decode()}'"


def quantised(scores: NDArray[np.floating[Any]]) -> bytes:
    """Scores as one byte each, row after row.

    Args:
        scores: [layers, tokens], in 0 … 1; NaN where there is none.

    Returns:
        ``FULL`` times the score, rounded; ``MISSING`` for NaN.
    """
    known = np.isfinite(scores)
    levels = np.rint(FULL * np.clip(np.where(known, scores, 0.0), 0.0, 1.0))
    return np.where(known, levels, MISSING).astype(np.uint8).tobytes()


def packed(reader: Reader) -> PackedReader:
    """The reader as texts that are safe inside a page, whatever the traces say."""
    index = {
        "layers": list(reader.layers),
        "layer": reader.layer,
        "first": visible(reader.first),
        "full": FULL,
        "steps": LEVELS - 1,
        "traces": [_entry(trace) for trace in reader.traces],
    }
    return PackedReader(
        index=_packed_json(index),
        scores=[compressed(trace.levels) for trace in reader.traces],
        more=[_packed_json(_more(trace)) for trace in reader.traces],
    )


def _more(trace: ReaderTrace) -> dict[str, Any]:
    return {
        "heads": trace.heads and _heads(trace.heads),
        "after": trace.after and _side(trace.after),
    }


def _heads(shares: HeadShares) -> dict[str, Any]:
    """Contributions as whole numbers of steps: ``HEAD_STEPS`` make the largest of the trace."""
    values = shares.values.astype(np.float64)
    step = float(np.abs(values).max(initial=0.0)) / HEAD_STEPS or 1.0
    return {
        "names": list(map(str, shares.heads)),
        "out": list(map(str, shares.out)),
        "step": step,
        "values": np.rint(values / step).astype(int).tolist(),
    }


def _side(after: Side) -> dict[str, Any]:
    return {
        "verdict": visible(after.verdict),
        "spans": after.spans and _ends(after.spans),
        "pieces": _pieces(after.pieces, after.spans),
        "levels": list(after.levels),
    }


def _entry(trace: ReaderTrace) -> dict[str, Any]:
    """A trace without its scores; every text with its hidden characters made visible."""
    texts = ("id", "prompt", "label", "verdict", "kind", "source", "category")
    return {
        **{name: visible(getattr(trace, name)) for name in texts},
        "cliff": None if trace.cliff is None else round(trace.cliff, 4),
        "spans": trace.spans and _ends(trace.spans),
        "scored": bool(trace.levels),
        "pieces": _pieces(trace.pieces, trace.spans),
    }


def _ends(spans: Spans) -> list[int]:
    return [spans.prompt, spans.thinking, spans.closing]


def _pieces(pieces: Sequence[str], spans: Spans | None) -> list[str]:
    """The tokens' texts; closing tokens on one line, so that they can be pointed at."""
    closing = range(0) if spans is None else range(spans.thinking, spans.closing)
    return [token_text(one) if at in closing else visible(one) for at, one in enumerate(pieces)]


def _packed_json(content: dict[str, Any]) -> Markup:
    return compressed(json.dumps(content, separators=(",", ":")).encode())


def compressed(data: bytes) -> Markup:
    """Compressed, in base64, which has no character that ends an element.

    Without a time, so that the same run makes the same page.
    """
    return Markup(b64encode(gzip.compress(data, 6, mtime=0)).decode())
