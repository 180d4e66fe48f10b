"""Where probes come from, and so what they may be used on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from refusal_cliff import __version__
from refusal_cliff.data.traces import Trace
from refusal_cliff.model.subject import Subject

ReadPoint = Literal["resid_post", "final_norm"]


@dataclass(frozen=True, slots=True)
class Provenance:
    """What probes were fitted on.

    Attributes:
        model: What the user called the model.
        fingerprint: The model's fingerprint.
        data_hash: SHA-256 over the ids, labels, verdicts and tokens of the traces used.
        read_point: ``resid_post``: the residual stream after a block, before any final norm;
            ``final_norm``: the state after the norm that follows the last block (the paper's).
        position: ``last-closing``: the token from which the first response token is predicted.
        polarity: A high score says "I will refuse".
        version: Of this package.
    """

    model: str
    fingerprint: str
    data_hash: str
    read_point: ReadPoint = "resid_post"
    position: Literal["last-closing"] = "last-closing"
    polarity: Literal["high score refuses"] = "high score refuses"
    version: str = __version__


def provenance_of(
    subject: Subject, traces: Iterable[Trace], read_point: ReadPoint = "resid_post"
) -> Provenance:
    """Provenance of probes fitted on ``traces``; their order does not matter."""
    rows = sorted(
        (trace.prompt.id, trace.prompt.label, trace.verdict, list(trace.token_ids))
        for trace in traces
    )
    digest = hashlib.sha256(json.dumps(rows).encode()).hexdigest()
    return Provenance(subject.name, subject.fingerprint, digest, read_point)
