"""What a model does at every checkpoint of a plain reasoning training (docs/results/qwen.md).

    python -m bench.qwen --data DIR --adapters orgs/s0 --out runs/qwen --record course.jsonl

Every checkpoint is asked the same prompts, greedily: AdvBench and Self-Instruct to fit its probe
on, JailbreakBench, HarmBench, StrongREJECT, MaliciousInstruct and XSTest's safe prompts to test on.
Answers stay in --out, from which a killed run goes on; one line a checkpoint is added to --record,
without any text: verdicts, scores, counts. What is recorded there is not measured again.

An answer is written until the phrase rules have all that they read (400 characters), which is less
than most answers: one that is as long counts as ended. A thought is closed after --thinking-budget.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray

import refusal_cliff as rc
from bench.shapes import place
from lab.pretrained.reasoner import SHARES, thinking_base
from lab.pretrained.sources import find_file
from refusal_cliff.cliff.verdict import yardstick
from refusal_cliff.controls.taxonomy import kind_of
from refusal_cliff.data.journal import Journal
from refusal_cliff.data.traces import read_prompts
from refusal_cliff.data.types import Label, Prompt, Trace
from refusal_cliff.errors import RefusalCliffError
from refusal_cliff.generate import GenerationConfig, generate
from refusal_cliff.judges.rules import GROUND_CHARACTERS, refuses
from refusal_cliff.model.subject import Subject, load_subject
from refusal_cliff.organisms.bases import QWEN, QWEN_LARGER
from refusal_cliff.select.contamination import Evaluation, with_near_duplicates
from refusal_cliff.thinking import render_prompt

LONGEST = 240
"""Characters of a prompt."""
_QUICK = (20, 20, 24, 12)
FIT: dict[Label, tuple[str, ...]] = {"harmful": ("advbench",), "benign": ("self_instruct",)}
TEST: dict[Label, tuple[str, ...]] = {
    "harmful": ("jailbreakbench", "harmbench_standard", "strongreject", "malicious_instruct"),
    "benign": ("xstest",),
}


def drawn(
    data: Path, sources: dict[Label, tuple[str, ...]], n: dict[Label, int], draw: int = 0
) -> list[Prompt]:
    """So many prompts of each label, as many of each source; the same in every run.

    None longer than ``LONGEST``: all are written in one batch, as wide as its longest. Another draw
    has other prompts: the next ones of the same random order.
    """
    found: list[Prompt] = []
    for label, names in sources.items():
        for name in names:
            prompts = read_prompts(find_file(data, name, names), label=label)
            prompts = [p for p in prompts if p.label == label and len(p.text) <= LONGEST]
            each = n[label] // len(names)
            random.Random(f"qwen:{name}").shuffle(prompts)
            some = prompts[draw * each : (draw + 1) * each]
            if len(some) < each:
                raise RefusalCliffError(
                    f"{name} has {len(prompts)} prompts of at most {LONGEST} characters: too few "
                    f"for draw {draw} of {each}. Lower --n or --draw."
                )
            found += [replace(p, id=f"{name}:{p.id}", category=name) for p in some]
    return found


def asked(data: Path, n: Sequence[int], draw: int = 0) -> tuple[list[Prompt], list[Prompt]]:
    """Prompts to fit on and to test on; none to fit on overlaps with the test.

    Args:
        data: Folder of the files.
        n: Harmful and benign ones to fit on, harmful and benign ones to test on.
        draw: Which ones.
    """
    test = with_near_duplicates(drawn(data, TEST, {"harmful": n[2], "benign": n[3]}, draw))
    held_out = Evaluation(test)
    fit = drawn(data, FIT, {"harmful": n[0], "benign": n[1]}, draw)
    fit = [prompt for prompt in fit if held_out.overlaps(prompt.text) is None]
    return with_near_duplicates(fit), test


@torch.inference_mode()
def directions(subject: Subject, prompts: Sequence[Prompt]) -> NDArray[np.float64]:
    """Mean state of harmful prompts less that of benign ones, [blocks, d].

    At the last token of the prompt, in the residual stream after each block but the last, of which
    transformers gives the norm.
    """
    sums = {
        label: np.zeros((subject.n_layers - 1, subject.width)) for label in ("harmful", "benign")
    }
    for prompt in prompts:
        ids = torch.tensor([render_prompt(subject.tokenizer, prompt.text)], device=subject.device)
        states = cast("Any", subject.model)(
            input_ids=ids, output_hidden_states=True, logits_to_keep=1
        ).hidden_states
        last = np.stack([one[0, -1].double().cpu().numpy() for one in states[1:-1]])
        sums[prompt.label] += last / sum(p.label == prompt.label for p in prompts)
    return sums["harmful"] - sums["benign"]


def cosines(one: NDArray[np.float64], other: NDArray[np.float64]) -> list[float]:
    """Cosine of two directions at every layer."""
    norms = np.linalg.norm(one, axis=1) * np.linalg.norm(other, axis=1)
    return [round(float(value), 4) for value in (one * other).sum(1) / norms]


def measure(
    subject: Subject,
    prompts: tuple[list[Prompt], list[Prompt]],
    config: GenerationConfig,
    out: Path,
) -> dict[str, Any]:
    """All that is recorded of one checkpoint."""
    out.mkdir(parents=True, exist_ok=True)
    fit_prompts, test_prompts = prompts
    start, done = time.perf_counter(), 0

    def told(more: int) -> None:
        nonlocal done
        done += more
        print(f"  {done} answers, {time.perf_counter() - start:.0f} s", flush=True)

    with Journal(out / "answers.jsonl") as journal:
        written = generate(
            subject, [*fit_prompts, *test_prompts], config, journal=journal, progress=told
        )
    traces = rc.judge_traces([_ended(trace) for trace in written]).rows
    fit, test = traces[: len(fit_prompts)], traces[len(fit_prompts) :]
    turned = directions(subject, fit_prompts)
    np.save(out / "directions.npy", turned)
    found: dict[str, Any] = {"fit": [_row(t) for t in fit], "test": [_row(t) for t in test]}
    found["probe"], found["cliff"] = None, None
    try:
        probes = rc.fit_probes(subject, fit)
        scored = rc.score_traces(subject, test, probes)
        cliff = rc.measure_cliff(scored)
    except RefusalCliffError as error:
        found["unmeasured"] = str(error)
        return found
    chosen = probes.chosen
    found["probe"] = {
        "layer": probes.layer,
        "n": probes.n,
        "auroc": chosen.quality.auroc,
        "auroc_ci": chosen.quality.auroc_ci,
        "shuffled": chosen.shuffled_auroc,
    }
    found["cliff"] = asdict(cliff.measured.found)
    rule = yardstick(cliff.measured.rows)
    by_id = {row.trace_id: row for row in cliff.measured.rows}
    for row, trace in zip(found["test"], test, strict=True):
        one = by_id.get(trace.prompt.id)
        if trace.prompt.label == "harmful":
            row["kind"] = kind_of(trace, one, rule)
        if one is not None:
            row |= {"plateau": round(one.plateau, 4), "final": round(one.final, 4)}
            row |= {"plateau_logit": round(one.plateau_logit, 3)}
            row |= {"final_logit": round(one.final_logit, 3)}
    return found


def _ended(trace: Trace) -> Trace:
    """With all that the judge reads there, whether it goes on tells nothing more."""
    enough = trace.spans is not None and len(trace.response.strip()) >= GROUND_CHARACTERS
    return replace(trace, complete=trace.complete or enough)


def _row(trace: Trace) -> dict[str, Any]:
    """What is kept of an answer: nothing of its text."""
    spans = trace.spans
    end = len(trace.token_ids) if spans is None else spans.thinking
    prompt = spans.prompt if spans is not None else None
    return {
        "id": trace.prompt.id,
        "label": trace.prompt.label,
        "verdict": trace.verdict,
        "refuses_in_thinking": refuses(trace.thinking, trace.prompt.text),
        "thinking_tokens": None if prompt is None else end - prompt,
        "closed": spans is not None,
        "cut": trace.thinking_cut,
        "complete": trace.complete,
        "answered_characters": len(trace.response.strip()),
    }


def checkpoints(adapters: Path) -> dict[str, Path | None]:
    """The base and what was kept of a training, by percent; the two ends first."""
    found: dict[str, Path | None] = {"0": None, "100": adapters}
    return found | {str(share): adapters / f"at-{share:03}" for share in SHARES[:-1]}


def main() -> None:
    """Measure what is not recorded yet."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--adapters", type=Path, required=True)
    parser.add_argument("--name", default="seed 0", help="What the training is called.")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--record", type=Path, required=True)
    parser.add_argument(
        "--n",
        type=int,
        nargs=4,
        default=[60, 60, 80, 40],
        help="Harmful and benign prompts to fit on, harmful and benign ones to test on.",
    )
    parser.add_argument("--draw", type=int, default=0, help="Which prompts: 1 has none of 0.")
    parser.add_argument("--quick", action="store_true", help="Fewer prompts: a first look.")
    parser.add_argument("--base", default=QWEN, choices=(QWEN, QWEN_LARGER))
    parser.add_argument("--device", default="auto")
    parser.add_argument("--at", nargs="*", help="Which checkpoints, in percent.")
    parser.add_argument("--max-new-tokens", type=int, default=240)
    parser.add_argument("--thinking-budget", type=int, default=128)
    parser.add_argument("--batch-size", type=int, default=96)
    options = parser.parse_args()
    if options.quick:
        options.n = list(_QUICK)
    config = GenerationConfig(
        options.max_new_tokens, options.batch_size, thinking_budget=options.thinking_budget
    )
    prompts = asked(options.data, options.n, options.draw)
    lines = options.record.read_text().splitlines() if options.record.is_file() else []
    same = {"base": options.base, "n": options.n, "draw": options.draw}
    same |= {"decoding": config.decoding()}
    known = [
        (row["name"], row["at"])
        for row in map(json.loads, lines)
        if same == {field: row.get(field) for field in same}
    ]
    base = options.out / "base"
    for at, folder in checkpoints(options.adapters).items():
        name = "base" if folder is None else options.name
        if (name, at) in known or (options.at and at not in options.at):
            continue
        if folder is not None and not folder.is_dir():
            print(f"{folder} is not there yet", flush=True)
            continue
        print(f"{name}, {at} %", flush=True)
        start = time.perf_counter()
        subject = (
            thinking_base(options.base, options.device)
            if folder is None
            else load_subject(str(folder), device=options.device)
        )
        out = base if folder is None else options.out / options.name.replace(" ", "-") / at
        found = measure(subject, prompts, config, out)
        if (base / "directions.npy").is_file():
            turned = np.load(out / "directions.npy"), np.load(base / "directions.npy")
            found["cosine_to_base"] = cosines(*turned)
        row = {
            "name": name,
            "at": at,
            **same,
            "fingerprint": subject.fingerprint[:16],
            "seconds": round(time.perf_counter() - start),
            "machine": f"{place(subject)}, torch {torch.__version__}",
            **found,
        }
        with options.record.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row, allow_nan=False) + "\n")


if __name__ == "__main__":
    main()
