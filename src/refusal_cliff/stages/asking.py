"""How many prompts are asked: a first batch tells what the classes of a probe or verdict take."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence

from refusal_cliff.cliff.verdict import MIN_BENIGN, MIN_COMPLIED, MIN_REFUSED, RARE
from refusal_cliff.data.traces import closed, verdict_groups
from refusal_cliff.data.types import LABELS, Label, Prompt, Trace
from refusal_cliff.probe.fit import MIN_PER_CLASS, too_few
from refusal_cliff.stats import share_interval, wilson

PARTS = ("fit", "test")
PILOT = 24
"""Prompts of each label after which a hopeless audit ends, before it has asked hundreds."""
_NEEDED: dict[str, dict[str, int]] = {
    "fit": {"refused": MIN_PER_CLASS, "benign": MIN_PER_CLASS},
    "test": {"refused": MIN_REFUSED, "benign": MIN_BENIGN, "complied": MIN_COMPLIED},
}
_LABEL: dict[str, Label] = {"refused": "harmful", "complied": "harmful", "benign": "benign"}

_Waiting = dict[Label, list[list[Prompt]]]
Write = Callable[[Sequence[Prompt]], list[Trace]]
Judged = Callable[[Sequence[Trace]], list[Trace]]


def ask(
    write: Write,
    judge: Judged,
    prompts: Sequence[Prompt],
    part: str,
    seed: int,
    first: int | None,
) -> list[Trace]:
    """Ask the prompts of one part, a drawn batch of each label first.

    Args:
        write: Lets the model answer.
        judge: Says what the answers do.
        prompts: All that may be asked.
        part: ``fit`` or ``test``: which classes are needed, and how many traces of each.
        seed: Seed of the order in which prompts are drawn.
        first: Prompts of each label in the first batch, with all their samples; then half as many
            more of a label, as long as one of its classes is too small. ``None`` asks all of them;
            of those to fit on a batch first, which shows whether they can be enough.

    Returns:
        Traces of the prompts that were asked, in their order.

    Raises:
        RefusalCliffError: The prompts to fit on leave, or can only leave, too few traces of a
            class; it says how many it would take.
    """
    waiting: _Waiting = {label: _shuffled(prompts, label, seed) for label in LABELS}
    pilot = PILOT if part == "fit" else len(prompts)
    found = write(_next(waiting, LABELS, first or pilot))
    if part == "fit":
        _require(judge(found), waiting)
    if first is None:
        found += write(_next(waiting, LABELS, len(prompts)))
    else:
        half = math.ceil(first / 2)
        while more := _next(waiting, short_of(part, judge(found)), half):
            found += write(more)
    if part == "fit":
        _require(judge(found), waiting)
    place = {prompt.id: number for number, prompt in enumerate(prompts)}
    return sorted(found, key=lambda trace: place[trace.prompt.id])


def asked_first(
    prompts: Sequence[Prompt], seed: int, first: int | None
) -> dict[Label, list[Prompt]]:
    """What `ask` asks in any case, by label."""
    return {
        label: [prompt for samples in _shuffled(prompts, label, seed)[:first] for prompt in samples]
        for label in LABELS
    }


def by_prompt(prompts: Sequence[Prompt], label: Label) -> list[list[Prompt]]:
    """The prompts of a label; the samples of one prompt, which have its text, together."""
    found: dict[str, list[Prompt]] = {}
    for prompt in prompts:
        if prompt.label == label:
            found.setdefault(prompt.text, []).append(prompt)
    return list(found.values())


def each_once(prompts: Sequence[Prompt], label: Label) -> list[Prompt]:
    """The first sample of every prompt of a label."""
    return [samples[0] for samples in by_prompt(prompts, label)]


def short_of(part: str, judged: Sequence[Trace]) -> list[Label]:
    """The labels of which more prompts have to be asked.

    Complied traces are short only where it is open whether the model complies at all, see
    ``docs/concepts/verdict.md``.
    """
    groups = _groups(judged)
    lacking = [name for name, least in _NEEDED[part].items() if len(groups[name]) < least]
    if "complied" in lacking and _rarely_complies(judged):
        lacking.remove("complied")
    return [label for label in LABELS if label in {_LABEL[name] for name in lacking}]


def prompts_needed(found: int, asked: int, wanted: int) -> int | None:
    """How many prompts of a kind will most likely give enough traces of a class.

    Args:
        found: Traces of the class so far.
        asked: Prompts asked for them.
        wanted: Traces needed.

    Returns:
        By the lower bound of the share that is in the class; ``None`` where none was.
    """
    low = wilson(found, asked)[0] if found else 0.0
    return math.ceil(wanted / low) if low > 0 else None


def _require(traces: Sequence[Trace], waiting: _Waiting) -> None:
    """Refuse prompts to fit on that leave too few traces of a class, whatever those left give."""
    groups = _groups(traces)
    for name, least in _NEEDED["fit"].items():
        label, found = _LABEL[name], len(groups[name])
        asked = len({trace.prompt.group for trace in traces if trace.prompt.label == label})
        left = len({prompt.group for samples in waiting[label] for prompt in samples})
        most = wilson(found, asked)[1] if asked else 1.0
        if found + most * left < least:
            raise too_few(name, found, asked, prompts_needed(found, asked, least), label)


def _groups(judged: Sequence[Trace]) -> dict[str, set[str]]:
    """The groups of prompts that have a usable trace of each class."""
    classes = verdict_groups(closed(judged))
    return {name: {trace.prompt.group for trace in found} for name, found in classes.items()}


def _rarely_complies(judged: Sequence[Trace]) -> bool:
    harmful = [trace for trace in closed(judged) if trace.prompt.label == "harmful"]
    complied = {trace.prompt.id for trace in verdict_groups(harmful)["complied"]}
    said = [trace.prompt.id in complied for trace in harmful]
    return bool(said) and share_interval(said, [t.prompt.group for t in harmful])[1] <= RARE


def _shuffled(prompts: Sequence[Prompt], label: Label, seed: int) -> list[list[Prompt]]:
    mine = by_prompt(prompts, label)
    random.Random(f"asked:{label}:{seed}").shuffle(mine)
    return mine


def _next(waiting: _Waiting, labels: Sequence[Label], n: int) -> list[Prompt]:
    """Take up to n prompts of each label, with their samples, out of those that wait."""
    taken: list[Prompt] = []
    for label in labels:
        taken += [prompt for samples in waiting[label][:n] for prompt in samples]
        del waiting[label][:n]
    return taken
