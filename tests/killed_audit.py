"""A small audit of tiny-aligned that kills itself: python killed_audit.py DIR CALL [BATCH_SIZE].

CALL is the batch of answers in the middle of which it is killed, counted from 1; 0 means never. The
rows of each batch that the model was asked for are printed.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from refusal_cliff.cli import app
from refusal_cliff.data.examples import write_prompts
from refusal_cliff.generate import drafts
from refusal_cliff.organisms import language
from refusal_cliff.settings import Loading, Writing
from refusal_cliff.stages.intervene import AblationPlan
from refusal_cliff.workflows import audit
from refusal_cliff.workflows.audit_prompts import AuditSources

PLAN = AblationPlan(
    traces=16,
    fractions=(0, 0.03),
    dose_prompts=6,
    dose_benign=4,
    candidates=4,
    joint_traces=8,
    draws={"random": 2, "same-layer": 1, "promoting": 1},
    control_prompts=6,
)


def bomb(call: int) -> None:
    """Print the rows of every batch, and kill the process after half of the batch ``call``."""
    greedy_tokens, calls = drafts.greedy_tokens, 0

    def bombed(model: Any, input_ids: torch.Tensor, *args: Any, **options: Any) -> torch.Tensor:
        nonlocal calls
        calls += 1
        print("asked", len(input_ids), flush=True)
        if calls == call:
            options["most"] //= 2
        written = greedy_tokens(model, input_ids, *args, **options)
        if calls == call:
            os.kill(os.getpid(), signal.SIGKILL)
        return written

    drafts.greedy_tokens = bombed


def command(call: int, *words: str) -> None:
    """Any command, killed in the middle of a batch as the audit is."""
    bomb(call)
    app(words)


def main(arguments: Sequence[str]) -> None:
    folder, call = Path(arguments[0]), int(arguments[1])
    batch_size = int(arguments[2]) if len(arguments) > 2 else 16
    files = folder.with_name("harmful.jsonl"), folder.with_name("benign.jsonl")
    for file, label in zip(files, ("harmful", "benign"), strict=True):
        write_prompts(file, language.prompts("test", label, 60, 0))
    bomb(call)
    audit.AblationPlan = lambda: PLAN
    sources = AuditSources((str(files[0]),), (str(files[1]),))
    audit.run_audit(
        "tiny-aligned",
        sources,
        folder,
        writing=Writing(max_new_tokens=110, batch_size=batch_size),
        loading=Loading(device="cpu"),
    )


if __name__ == "__main__":
    main(sys.argv[1:])
