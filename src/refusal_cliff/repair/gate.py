"""A gate for model training: does a checkpoint keep within limits on harm and on the cliff?"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from refusal_cliff.answers.evaluate import Share, rates
from refusal_cliff.cliff.curves import cliffs_of
from refusal_cliff.cliff.scores import closed, score_traces
from refusal_cliff.cliff.verdict import ModelCliff, model_cliff
from refusal_cliff.data.traces import Prompt
from refusal_cliff.errors import RefusalCliffError
from refusal_cliff.generate import GenerationConfig, generate
from refusal_cliff.judges import judge_all
from refusal_cliff.model.subject import Subject
from refusal_cliff.probe.files import DESCRIPTION, WEIGHTS, check_probes_fit, read_probes


@dataclass(frozen=True, slots=True)
class Limits:
    """What a checkpoint may have at most, and at least.

    Attributes:
        cliff: Mean cliff over the complied harmful traces, or over all where few complied.
        asr: Attack success rate.
        answered: Least share of benign prompts answered; ``None`` asks for none.
    """

    cliff: float
    asr: float
    answered: float | None = None


@dataclass(frozen=True, slots=True)
class Checked:
    """What was found, and why the gate is closed; no reason means that it is open."""

    cliff: ModelCliff
    attacks: Share
    answered: Share
    reasons: tuple[str, ...]


def check(
    subject: Subject,
    probe: Path,
    prompts: Sequence[Prompt],
    limits: Limits,
    generation: GenerationConfig,
    *,
    progress: Callable[[int], None] | None = None,
) -> Checked:
    """Measure a model with a probe of another checkpoint of it.

    Args:
        subject: The model to be released.
        probe: Folder of a probe fitted on an earlier checkpoint: the same directions are read.
        prompts: Harmful ones, and benign ones if there is a limit on them.
        limits: What it must keep within.
        generation: How it answers.
        progress: Called with the number of traces just finished.

    Raises:
        RefusalCliffError: The probe does not fit, or there is nothing to measure.
    """
    description = probe / DESCRIPTION
    probes = read_probes(probe / WEIGHTS, description)
    check_probes_fit(probes, subject, description, same_space=True)
    traces = judge_all(generate(subject, prompts, generation, progress=progress))
    scored = score_traces(subject, closed(traces), probes)
    rows = cliffs_of(scored, probes.row)
    if not any(row.label == "harmful" for row in rows):
        raise RefusalCliffError(
            f"{subject.name} closed its thinking for none of {len(prompts)} prompts that are "
            "harmful, so there is no cliff to check. Allow longer answers (--max-new-tokens), or "
            "give harmful prompts."
        )
    cliff, found = model_cliff(rows), rates(traces)
    reasons = _reasons(cliff, found.attacks, found.answered, limits)
    return Checked(cliff, found.attacks, found.answered, tuple(reasons))


def _reasons(cliff: ModelCliff, attacks: Share, answered: Share, limits: Limits) -> list[str]:
    reasons: list[str] = []
    if cliff.cliff > limits.cliff:
        low, high = cliff.cliff_ci
        reasons.append(
            f"the cliff is {cliff.cliff:.2f} [{low:.2f}, {high:.2f}] over {cliff.n} {cliff.group} "
            f"traces, above the limit of {limits.cliff:g}"
        )
    if attacks.value is not None and attacks.value > limits.asr:
        reasons.append(
            f"the attack success rate is {_share(attacks)}, above the limit of {limits.asr:g}"
        )
    if limits.answered is not None:
        if answered.value is None:
            reasons.append("there is no benign prompt to check over-refusal on")
        elif answered.value < limits.answered:
            reasons.append(
                f"{_share(answered)} of the benign prompts are answered, below the limit of "
                f"{limits.answered:g}"
            )
    return reasons


def _share(share: Share) -> str:
    if share.value is None or share.interval is None:
        return "not measured"
    low, high = share.interval
    return f"{share.value:.2f} [{low:.2f}, {high:.2f}] (n = {share.n})"
