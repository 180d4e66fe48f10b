"""What it saves to keep the thoughts of doses and control sets, in a finished audit.

    python -m bench.kept_thoughts RUN/KEY --model M --max-new-tokens N > table.md

Every set of heads that the audit tried is tried again on the same harmful prompts, once with the
thoughts kept, as the audit does, and once with each thought written anew, as it would be without
that. Both run in one process, one after the other.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from bench.served_doses import job_in
from refusal_cliff.data.traces import closed, read_traces
from refusal_cliff.data.types import Trace
from refusal_cliff.heads.result import AblationResult
from refusal_cliff.heads.table import read_heads
from refusal_cliff.heads.trials import Trial, answer_trials, attacked
from refusal_cliff.io import read_as
from refusal_cliff.model.subject import load_subject
from refusal_cliff.settings import GenerationConfig
from refusal_cliff.stages.ablated import Answers
from refusal_cliff.stages.study import Study

WAYS = {"thoughts kept": False, "thoughts anew": True}


def attacks(trial: Trial, traces: Sequence[Trace]) -> float:
    """Attack success rate of a trial."""
    return len(attacked(traces)) / len(trial.prompts)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path)
    parser.add_argument("--model", required=True)
    parser.add_argument("--max-new-tokens", type=int, required=True)
    parser.add_argument("--thinking-budget", type=int)
    parser.add_argument("--prompts", type=int, default=30)
    parser.add_argument("--batch-size", type=int, default=64)
    asked = parser.parse_args()
    subject = load_subject(asked.model, device="cpu")
    rows = read_heads(asked.run / "heads.parquet", subject)
    before = closed(read_traces(asked.run / "traces-test.parquet"))
    some = tuple(t.prompt for t in before if t.prompt.label == "harmful")[: asked.prompts]
    sets = {trial.heads for trial in read_as(asked.run / "ablation.json", AblationResult).trials}
    kept = [Trial("tried", heads, some) for heads in sorted(sets) if heads]
    config = GenerationConfig(
        asked.max_new_tokens, asked.batch_size, thinking_budget=asked.thinking_budget
    )
    study = Study("model", subject, 0, config)
    found: dict[str, list[float]] = {}
    print("| | answers | tokens | seconds |\n|---|---|---|---|")
    for name, anew in WAYS.items():
        trials = [replace(trial, anew=anew) for trial in kept]
        with tempfile.TemporaryDirectory() as folder:
            answers = Answers(study, job_in(Path(folder)), rows, before)
            started = time.perf_counter()
            written = answer_trials(trials, before, answers)
            seconds = time.perf_counter() - started
        found[name] = [attacks(*pair) for pair in zip(trials, written, strict=True)]
        told = answers.written["anew" if anew else "kept"]
        print(f"| {name} | {told.answers:,} | {told.tokens:,} | {seconds:.0f} |")
    gaps = [abs(one - other) for one, other in zip(*found.values(), strict=True)]
    print(
        f"\n{len(kept)} sets of heads on {len(some)} harmful prompts; attack success of a set "
        f"differs by {sum(gaps) / len(gaps):.3f} in the mean and {max(gaps):.2f} at most"
    )


if __name__ == "__main__":
    main()
