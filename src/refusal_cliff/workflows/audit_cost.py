"""What an audit is going to write: answers and tokens, counted before anything is written."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from pathlib import Path

from refusal_cliff.data.types import LABELS, Prompt
from refusal_cliff.generate.again import ANSWER_TOKENS
from refusal_cliff.generate.local import answer
from refusal_cliff.heads.trials import sizes
from refusal_cliff.model.subject import Subject
from refusal_cliff.stages.asking import asked_first, each_once
from refusal_cliff.stages.intervene import AblationPlan
from refusal_cliff.stages.study import Study
from refusal_cliff.thinking import render_prompt
from refusal_cliff.workflows.audit_prompts import AuditPrompts

TRIED, TRIED_ROWS = 32, 8
"""Tokens and rows that the speed of a machine is measured with."""
USUAL_ANSWER = 500
"""Tokens of thinking and answer for which a time is told: what short reasoning traces have."""


@dataclass(frozen=True, slots=True)
class Part:
    """Answers of one kind.

    Attributes:
        name: What they are for.
        answers: How many at most.
        most: Tokens of each at most.
        here: Whether this machine writes them.
    """

    name: str
    answers: int
    most: int
    here: bool = True


@dataclass(frozen=True, slots=True)
class AuditCost:
    """All that an audit writes, besides controls that are asked for.

    Attributes:
        parts: By kind, in the order of the audit.
        subject: The model, to measure the speed of this machine with.
        prompts: Some of the prompts.
        adapters: Where a server's adapters are written; ``None`` without one that takes heads out.
    """

    parts: tuple[Part, ...]
    subject: Subject
    prompts: tuple[Prompt, ...]
    adapters: Path | None = None

    def tokens(self, of_answer: int) -> int:
        """Tokens that this machine writes, where an answer has so many or its most."""
        return sum(part.answers * min(part.most, of_answer) for part in self.parts if part.here)

    def speed(self) -> float:
        """Tokens a second that this machine writes now, measured on a few rows."""
        asked = self.prompts[:TRIED_ROWS]
        rows = [render_prompt(self.subject.tokenizer, prompt.text) for prompt in asked]
        answer(self.subject, rows, 2)  # the first pass sets things up
        start = time.perf_counter()
        written = answer(self.subject, rows, TRIED)
        return sum(map(len, written)) / (time.perf_counter() - start)


def audit_cost(
    prompts: AuditPrompts, study: Study, plan: AblationPlan, first: int | None
) -> AuditCost:
    """Count what an audit will ask at most.

    Args:
        prompts: All that may be asked.
        study: Who answers, and how.
        plan: How many sets of heads are tried.
        first: Prompts of each label and part of a quick audit, which asks more only where a class
            is short; ``None`` for all.
    """
    fit, test = (asked_first(part, study.seed, first) for part in (prompts.fit, prompts.test))
    asked = [prompt for part in (fit, test) for found in part.values() for prompt in found]
    missing = sum(prompt.id not in prompts.given for prompt in asked)
    heads = len(study.subject.heads())
    rankings = len(plan.methods) + 1  # and jointly
    doses = rankings * sum(n > 0 for n in sizes(heads, plan.fractions))
    kinds = {label: len(each_once(prompts.test, label)[:first]) for label in LABELS}
    dose = min(kinds["harmful"], plan.dose_prompts) + min(kinds["benign"], plan.dose_benign)
    control = (sum(plan.draws.values()) + 1) * min(kinds["harmful"], plan.control_prompts)
    most = min(study.generation.max_new_tokens, study.subject.context or sys.maxsize)
    adapters = study.elsewhere.adapters
    ablated = adapters is None
    return AuditCost(
        (
            Part("answers of the model", missing, most, not study.elsewhere.server),
            Part(
                "the same test prompts without the heads found",
                sum(map(len, test.values())),
                most,
                ablated,
            ),
            Part("doses, thoughts kept", doses * dose, ANSWER_TOKENS, ablated),
            Part("control sets, thoughts kept", control, ANSWER_TOKENS),
        ),
        study.subject,
        tuple(prompts.test),
        None if adapters is None else adapters.folder,
    )


def cost_lines(cost: AuditCost) -> list[str]:
    """What is going to be written, in words."""
    lines = [
        f"{part.answers:,} {part.name}, at most {part.most:,} tokens each"
        + ("" if part.here else ", by the server")
        for part in cost.parts
    ]
    if cost.adapters is not None:
        lines.append(
            f"The server takes heads out by adapters in {cost.adapters}. A set with a head that "
            "does not suppress refusal is taken out here, and is not in the count of tokens here."
        )
    length = min(USUAL_ANSWER, max(part.most for part in cost.parts))
    return [*lines, f"{cost.tokens(length):,} tokens here, if an answer has {length}"]


def time_lines(cost: AuditCost) -> list[str]:
    """How long that takes here, and what would save time; the speed is measured for it."""
    speed = cost.speed()
    hours = cost.tokens(USUAL_ANSWER) / speed / 3600
    return [
        f"This machine writes {speed:,.0f} tokens a second now: about {hours:,.1f} hours of "
        "writing. Larger batches (--batch-size) are faster where memory allows.",
        "--quick asks 40 prompts of each kind; --traces FILE takes answers that you have; "
        "--endpoint URL lets a server give the first answers.",
    ]
