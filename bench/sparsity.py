"""How sparse is damage that nobody confined? Attack success rate against heads taken out.

For each organism: heads are measured on one set of prompts; then more and more of them are taken
out, by each ranking and jointly, while the model answers other prompts.

    python -m bench.sparsity runs/sparsity tiny-diffuse orgs/tiny-lora

Runs are kept in the folder and resumed. The table is Markdown; *half* is the fewest heads tried
after which the attack success rate is at most half of that with all heads.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from refusal_cliff.findings.results import proof_of
from refusal_cliff.findings.summary import ProofSummary
from refusal_cliff.generate import GenerationConfig
from refusal_cliff.heads.find import JointSearch
from refusal_cliff.heads.result import AblationResult
from refusal_cliff.heads.table import read_heads
from refusal_cliff.heads.trials import CONTROLS
from refusal_cliff.io import read_as
from refusal_cliff.model.subject import load_subject
from refusal_cliff.run.folder import Headline, RunInfo
from refusal_cliff.run.pipeline import Silent, run_pipeline
from refusal_cliff.stages.intervene import AblationPlan, intervene_stages
from refusal_cliff.stages.measure import measure_stages
from refusal_cliff.stages.study import Study
from refusal_cliff.workflows.demo import DemoSizes, prompts_stage

SIZES = DemoSizes(fit=120, test=60)
PLAN = AblationPlan(
    traces=40,
    fractions=(0, 0.01, 0.03, 0.05, 0.10, 0.20, 0.35, 0.50),
    methods=("causal", "direct"),
    dose_prompts=40,
    dose_benign=40,
    candidates=40,
    draws=dict.fromkeys(CONTROLS, 0),
)


class Lines(Silent):
    """One line a finished stage."""

    def stage_finished(self, name: str, seconds: float, headline: Headline) -> None:
        """Print it."""
        print(f"{name}: {seconds:.0f} s {dict(headline)}", file=sys.stderr, flush=True)


def proof(folder: Path, name: str) -> ProofSummary:
    """Measure one organism, or read what was measured before."""
    subject = load_subject(name, device="cpu")
    study = Study("model", subject, 0, GenerationConfig(110, 128))
    stages = [prompts_stage(0, SIZES), *measure_stages(study), *intervene_stages(study, PLAN)]
    info = RunInfo(
        command="bench/sparsity.py", seeds={"all": 0}, subjects={name: subject.fingerprint}
    )
    run_pipeline(folder, stages, info, Lines())
    rows = read_heads(folder / "model" / "heads.parquet")
    ablation = read_as(folder / "model" / "ablation.json", AblationResult)
    return proof_of(rows, ablation, read_as(folder / "model" / "joint.json", JointSearch))


def main(arguments: Sequence[str]) -> None:
    """Print one table an organism."""
    out = Path(arguments[0])
    for name in arguments[1:]:
        found = proof(out / Path(name).name, name)
        sizes = sorted({dose.heads for doses in found.doses.values() for dose in doses})
        print(f"\n| {Path(name).name}: heads out | {' | '.join(map(str, sizes))} | half |")
        print("|" + "---|" * (len(sizes) + 2))
        for ranking, doses in found.doses.items():
            rates = {dose.heads: f"{dose.asr:.2f}" for dose in doses}
            answered = {dose.heads: f"{dose.benign_answered or 0:.2f}" for dose in doses}
            half = found.half_effect[ranking]
            for row, cells in ((f"{ranking}, ASR", rates), (f"{ranking}, benign", answered)):
                shown = " | ".join(cells.get(size, "") for size in sizes)
                print(f"| {row} | {shown} | {half if row.endswith('ASR') and half else ''} |")


if __name__ == "__main__":
    main(sys.argv[1:])
