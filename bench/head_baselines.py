"""Do rankings that know nothing of refusal find the planted heads, too? On an organism of a run.

Reads the traces, the probe and the table of heads of a finished run, and ranks the heads by every
ranking and every baseline. The organism must be one whose planted heads are known.

    python -m bench.head_baselines runs/demo/tiny tiny
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from lab.head_bench import baseline_rankings, mean_quality, rankings
from refusal_cliff.data.traces import closed, read_traces
from refusal_cliff.generate import GenerationConfig
from refusal_cliff.heads.find import JointSearch
from refusal_cliff.heads.table import read_heads
from refusal_cliff.io import read_as
from refusal_cliff.model.subject import Head, load_subject
from refusal_cliff.organisms import planted_heads
from refusal_cliff.probe.files import read_probes
from refusal_cliff.stages.study import Study


def main() -> None:
    """Print one row a ranking, the best first."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path, help="folder of the model inside a run folder")
    parser.add_argument("model", help="the organism")
    args = parser.parse_args()
    subject = load_subject(args.model, device="cpu")
    rows = read_heads(args.run / "heads.parquet", subject)
    probe = read_probes(args.run / "probes.safetensors", args.run / "probes.json", subject).chosen
    fit = closed(read_traces(args.run / "traces-fit.parquet"))
    joint = read_as(args.run / "joint.json", JointSearch)
    greedy, chosen = joint.greedy, joint.chosen or ()
    study = Study(args.run.name, subject, 0, GenerationConfig())
    scores = rankings(rows, greedy, chosen) | baseline_rankings(study, rows, fit, probe)
    assert subject.source is not None
    truth = [Head(*head) for head in planted_heads(subject.source)]
    planted = np.array([row.head in truth for row in rows])
    found = {name: mean_quality(draws, planted) for name, draws in scores.items()}
    print("| ranking | average precision | recall at 3 % | recall at 10 % |\n|---|---|---|---|")
    for name, one in sorted(found.items(), key=lambda item: -item[1].average_precision):
        cells = (one.average_precision, one.recall_at_3_percent, one.recall_at_10_percent)
        print(f"| {name} | {' | '.join(f'{cell:.2f}' for cell in cells)} |")
    print("\nproven:", ", ".join(str(row.head) for row in rows if row.proof.proven) or "none")
    print("interval above zero:", sum(row.causal.low > 0 for row in rows), "of", len(rows))


if __name__ == "__main__":
    main()
