"""The trace reader inside the page: its data compressed, its one script, allowed by its hash."""

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

from refusal_cliff.report.data import Reader, ReaderTrace
from refusal_cliff.report.palette import LEVELS
from refusal_cliff.report.words import token_text, visible

FULL = 100
"""The byte of score 1: two decimals are what is read out, and finer ones compress worse."""
MISSING = 255
"""The byte of a token that has no score."""


@dataclass(frozen=True, slots=True)
class PackedReader:
    """What the template writes into the page.

    Attributes:
        script: The script, the same in every page.
        policy: Its source expression in the page's Content-Security-Policy.
        index: All but the scores, compressed: base64 has no character that ends an element.
        scores: The levels of each trace, compressed alone, so that only the open one is unpacked.
    """

    script: Markup
    policy: Markup
    index: Markup
    scores: Sequence[Markup]


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
    script = files("refusal_cliff.report").joinpath("reader.js").read_text(encoding="utf-8")
    index = {
        "layers": list(reader.layers),
        "layer": reader.layer,
        "first": visible(reader.first),
        "full": FULL,
        "steps": LEVELS - 1,
        "traces": [_entry(trace) for trace in reader.traces],
    }
    return PackedReader(
        script=Markup(script),
        policy=Markup(f"'sha256-{b64encode(sha256(script.encode()).digest()).decode()}'"),
        index=_packed(json.dumps(index, separators=(",", ":")).encode()),
        scores=[_packed(trace.levels) for trace in reader.traces],
    )


def _entry(trace: ReaderTrace) -> dict[str, Any]:
    """A trace without its scores; every text with its hidden characters made visible."""
    texts = ("id", "prompt", "label", "verdict", "kind", "source", "category")
    spans = trace.spans
    return {
        **{name: visible(getattr(trace, name)) for name in texts},
        "cliff": None if trace.cliff is None else round(trace.cliff, 4),
        "spans": spans and [spans.prompt, spans.thinking, spans.closing],
        "scored": bool(trace.levels),
        "pieces": [_piece(trace, at) for at in range(len(trace.pieces))],
    }


def _piece(trace: ReaderTrace, at: int) -> str:
    spans, piece = trace.spans, trace.pieces[at]
    closing = spans is not None and spans.thinking <= at < spans.closing
    return token_text(piece) if closing else visible(piece)


def _packed(data: bytes) -> Markup:
    """Compressed, in base64; without a time, so that the same run makes the same page."""
    return Markup(b64encode(gzip.compress(data, 6, mtime=0)).decode())
