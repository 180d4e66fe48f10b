"""Doses of a finished audit again: heads taken out by adapters on a server, and here.

    python -m bench.served_doses RUN/KEY --model M --endpoint URL [--endpoint-model NAME]
        --adapters-dir DIR [--kind joint] [--harmful N] [--benign N] [--anew N] > table.md

Reads a finished run, and asks some of the same test prompts without the same heads: after the
thoughts that are kept (the heads out at every token, as a server can have it), and for the largest
set thought anew. Sets that may not be written as an adapter are left out. Greedy on both sides.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from refusal_cliff.answers.evaluate import rates
from refusal_cliff.data.traces import read_traces
from refusal_cliff.generate.adapters import AdapterServer
from refusal_cliff.generate.endpoint import EndpointConfig
from refusal_cliff.heads.find import JointSearch
from refusal_cliff.heads.result import is_dose
from refusal_cliff.heads.table import read_heads
from refusal_cliff.heads.trials import Trial, answer_trials
from refusal_cliff.io import read_as
from refusal_cliff.model.subject import load_subject
from refusal_cliff.run.pipeline import Job, Stage
from refusal_cliff.settings import GenerationConfig, Server
from refusal_cliff.stages.ablated import Answers, may_be_written, written_of
from refusal_cliff.stages.elsewhere import Adapters, Elsewhere
from refusal_cliff.stages.study import Study
from refusal_cliff.stats import Share
from refusal_cliff.workflows.audit import QUICK_PLAN

HEADING = ("heads", "thoughts", "n", "attacks here", "attacks served", "same tokens", "check")


def main() -> None:
    """Print the table, then what it took."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    for option in ("--model", "--endpoint", "--adapters-dir"):
        parser.add_argument(option, required=True)
    parser.add_argument("--endpoint-model")
    parser.add_argument("--kind", help="joint, or top- and a ranking; all without it")
    parser.add_argument("--harmful", type=int, default=12)
    parser.add_argument("--benign", type=int, default=6)
    parser.add_argument("--anew", type=int, default=0, help="prompts to think on anew")
    parser.add_argument("--max-new-tokens", type=int, default=160)
    asked = parser.parse_args()
    subject = load_subject(asked.model, device="cpu")
    rows = read_heads(asked.run / "heads.parquet", subject)
    before = read_traces(asked.run / "traces-test.parquet")
    greedy = read_as(asked.run / "joint.json", JointSearch).greedy
    prompts = [trace.prompt for trace in before]
    plan = replace(QUICK_PLAN, dose_prompts=asked.harmful, dose_benign=asked.benign)
    doses = [
        trial
        for trial in plan.trials(rows, (), greedy, prompts, 0, everywhere=True)
        if asked.kind in (None, trial.kind)
        and is_dose(trial.kind)
        and may_be_written(rows, trial.heads)
    ]
    some = tuple(p for p in prompts if p.label == "harmful")[: asked.anew]
    if some:
        doses.append(Trial(doses[-1].kind, doses[-1].heads, some, anew=True))
    generation = GenerationConfig(asked.max_new_tokens, batch_size=32)
    config = EndpointConfig(asked.endpoint_model or asked.model, Server(asked.endpoint), generation)
    adapters = Adapters(AdapterServer(config), Path(asked.adapters_dir))
    found, told = [], []
    for where in (Elsewhere(), Elsewhere(adapters=adapters)):
        study = Study("model", subject, 0, generation, elsewhere=where)
        with tempfile.TemporaryDirectory() as folder:
            answers = Answers(study, job_in(Path(folder)), rows, before)
            start = time.perf_counter()
            found.append(answer_trials(doses, before, answers))
            told.append((answers, time.perf_counter() - start))
    checks = {frozenset(one.heads): one.check for one in told[1][0].served.values()}
    _print(HEADING)
    _print(["---"] * len(HEADING))
    for trial, here, there in zip(doses, *found, strict=True):
        same = sum(a.token_ids == b.token_ids for a, b in zip(here, there, strict=True))
        check = checks[frozenset(trial.heads)]
        _print(
            (
                f"{len(trial.heads)}, {trial.kind}",
                "anew" if trial.anew else "kept",
                str(len(here)),
                *(_share(rates(traces).attacks) for traces in (here, there)),
                f"{same} of {len(here)}",
                f"{check.other} other of {check.tokens}, {check.telling} telling, "
                f"furthest {check.furthest:.4f}",
            )
        )
    for name, (answers, seconds) in zip(("here", "served"), told, strict=True):
        print(f"\n{name}: {answers.written}, {seconds:.0f} s")
    print(f"\nwithout heads: {written_of(subject, before)}")


def job_in(folder: Path) -> Job:
    """A stage at work in a folder, watched by nobody."""
    stage = Stage("model/ablate", (), (), {}, lambda _: {})
    return Job(stage, folder, folder, lambda *_: None, {}, folder / "journal")


def _share(share: Share) -> str:
    low, high = share.interval or (0.0, 1.0)
    return f"{share.value or 0:.2f} [{low:.2f}, {high:.2f}], n = {share.n}"


def _print(cells: Sequence[str]) -> None:
    print(f"| {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
