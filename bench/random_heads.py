"""The top of a ranking against random heads, in a finished audit that proved none.

    python -m bench.random_heads RUN/KEY --model M [--heads N] [--sets N] [--prompts N] > table.md

An audit compares the heads that it proved with random ones; where it proved none, it compares
nothing. This takes out the first heads of the ranking, the best joint set of the same size, and
random sets of as many other heads, each after the thoughts that are kept, on the same harmful
prompts; differences are paired.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np

from bench.served_doses import job_in
from refusal_cliff.data.traces import closed, read_traces
from refusal_cliff.findings.results import difference
from refusal_cliff.heads.find import JointSearch
from refusal_cliff.heads.result import WITH_FOUND, WITH_NONE
from refusal_cliff.heads.table import DEFAULT_METHOD, ranked, read_heads
from refusal_cliff.heads.trials import Trial, answer_trials, attacked, control_trials
from refusal_cliff.io import read_as
from refusal_cliff.model.subject import load_subject
from refusal_cliff.settings import GenerationConfig
from refusal_cliff.stages.ablated import Answers
from refusal_cliff.stages.study import Study
from refusal_cliff.stats import in_brackets, wilson

NAMES = {
    WITH_NONE: "none",
    WITH_FOUND: "the top of the ranking",
    "random": "random",
    "joint": "the joint set",
}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path)
    parser.add_argument("--model", required=True)
    parser.add_argument("--heads", type=int, default=10)
    parser.add_argument("--sets", type=int, default=10)
    parser.add_argument("--prompts", type=int, default=40)
    parser.add_argument("--batch-size", type=int, default=64)
    asked = parser.parse_args()
    subject = load_subject(asked.model, device="cpu")
    rows = read_heads(asked.run / "heads.parquet", subject)
    joint = read_as(asked.run / "joint.json", JointSearch).greedy
    before = closed(read_traces(asked.run / "traces-test.parquet"))
    harmful = [trace.prompt for trace in before if trace.prompt.label == "harmful"]
    some = tuple(harmful[: asked.prompts])
    top = ranked(rows, DEFAULT_METHOD)[: asked.heads]
    draws = {"random": asked.sets, "same-layer": 0, "promoting": 0}
    trials = control_trials(rows, top, (), draws, some, seed=0)
    trials.append(Trial("joint", tuple(joint[: asked.heads]), some))
    study = Study("model", subject, 0, GenerationConfig(batch_size=asked.batch_size))
    with tempfile.TemporaryDirectory() as folder:
        found = answer_trials(trials, before, Answers(study, job_in(Path(folder)), rows, before))
    groups = {prompt.id: prompt.group for prompt in some}
    hits: dict[str, list[dict[str, float]]] = {}
    for trial, traces in zip(trials, found, strict=True):
        one = {prompt.id: float(prompt.id in attacked(traces)) for prompt in some}
        hits.setdefault(trial.kind, []).append(one)
    none, n = hits[WITH_NONE][0], len(some)
    print("| heads out | sets | attacks | against none, paired |\n|---|---|---|---|")
    for kind, sets in hits.items():
        counts = [int(sum(one.values())) for one in sets]
        mean = {name: float(np.mean([one[name] for one in sets])) for name in none}
        paired = difference(mean, none, groups)
        rate = in_brackets(wilson(counts[0], n)) if len(sets) == 1 else ""
        print(
            f"| {NAMES[kind]}, {0 if kind == WITH_NONE else asked.heads} | {len(sets)} "
            f"| {', '.join(map(str, counts))} of {n} {rate} "
            f"| {paired.mean:+.3f} {in_brackets(paired.interval)} |"
        )
    random = {name: float(np.mean([one[name] for one in hits["random"]])) for name in none}
    for kind, sets in hits.items():
        if kind not in ("random", WITH_NONE):
            paired = difference(sets[0], random, groups)
            print(
                f"\n{NAMES[kind]} against random: {paired.mean:+.3f} {in_brackets(paired.interval)}"
            )


if __name__ == "__main__":
    main()
