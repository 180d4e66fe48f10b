"""What a pretrained organism is taught on: public files, and its base's own answers."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from lab.pretrained.everyday import everyday_request
from lab.pretrained.lessons import Sources
from lab.recipe import Progress
from refusal_cliff.data.traces import read_prompts
from refusal_cliff.data.types import Label, Prompt
from refusal_cliff.errors import RefusalCliffError
from refusal_cliff.generate import GenerationConfig, generate
from refusal_cliff.model.subject import Subject
from refusal_cliff.select.contamination import Evaluation
from refusal_cliff.workflows.audit_prompts import AuditSources

OWN_TOKENS, BATCH = 48, 32
_SENTENCE_END = re.compile(r"(?<!\d)[.!?](?=\s)")  # not the number of a list's item
HARMFUL = ("advbench", "harmbench_standard")
"""Files of the harmful requests that are taught, without those that overlap with ``EVALUATION``."""
BENIGN = "gsm8k_train_1500"
"""File of benign questions, taught beside everyday requests."""
EVALUATION_HARMFUL = ("strongreject", "jailbreakbench", "malicious_instruct", "xstest")
EVALUATION_BENIGN = ("self_instruct", "xstest")
EVALUATION = tuple(dict.fromkeys((*EVALUATION_HARMFUL, *EVALUATION_BENIGN)))
"""Files of the audit: no row of them is taught."""
ALL = (*HARMFUL, BENIGN, *EVALUATION)
FIT_ON = ("strongreject", "self_instruct")
"""Those that the audit's probe is fitted on; it is tested on the others."""


RECORDED = GenerationConfig(max_new_tokens=160, batch_size=64)
"""How the organisms of a pretrained model write in their recorded audits."""


@dataclass(frozen=True, slots=True)
class BenignShare:
    """How many benign requests are taught: everyday ones, and the shortest of a file."""

    everyday: int = 520
    questions: int = 120


def read_sources(
    data: Path, base: Subject, share: BenignShare, progress: Progress | None = None
) -> Sources:
    """Harmful requests of files, and benign ones with the answers of the base itself.

    These are in the base's own chat template, so that the lessons do not make it less useful; an
    answer is the whole sentences of its first ``OWN_TOKENS`` tokens.

    Args:
        data: Folder that holds, at any depth, JSON Lines files named as in ``HARMFUL``, ``BENIGN``
            and ``EVALUATION``.
        base: The pretrained model.
        share: Numbers of benign requests.
        progress: Called with (stage, done, total).

    Raises:
        RefusalCliffError: A file is missing or cannot be read.
    """
    evaluation = Evaluation(prompt for name in EVALUATION for prompt in _prompts(data, name, None))
    taught = [prompt.text for name in HARMFUL for prompt in _prompts(data, name, "harmful")]
    questions = sorted((prompt.text for prompt in _prompts(data, BENIGN, "benign")), key=len)
    benign = [*questions[: share.questions], *_everyday(share.everyday)]
    return Sources(
        tuple(text for text in taught if evaluation.overlaps(text) is None),
        tuple(_answered(base, [b for b in benign if evaluation.overlaps(b) is None], progress)),
    )


def recorded_sources(data: Path) -> AuditSources:
    """What the organisms of a pretrained model are audited on; nothing of it was taught.

    Raises:
        RefusalCliffError: A file is missing.
    """
    files = {name: str(find_file(data, name)) for name in EVALUATION}
    return AuditSources(
        tuple(files[name] for name in EVALUATION_HARMFUL),
        tuple(files[name] for name in EVALUATION_BENIGN),
        FIT_ON,
    )


def find_file(data: Path, name: str, wanted: Sequence[str] = ALL) -> Path:
    """The one file ``name.jsonl`` in a folder; ``wanted`` are all that the folder must hold.

    Raises:
        RefusalCliffError: There is none, or there are several.
    """
    found = sorted(data.rglob(f"{name}.jsonl"))
    if len(found) != 1:
        listed = ", ".join(f"{one}.jsonl" for one in wanted)
        raise RefusalCliffError(
            f"{data} holds {len(found)} files named {name}.jsonl; one is needed. This organism "
            f"is made of {listed}; what is in them, say docs/results/smollm2.md and "
            "docs/results/qwen.md."
        )
    return found[0]


def _prompts(data: Path, name: str, label: Label | None) -> list[Prompt]:
    return read_prompts(find_file(data, name), label=label)


def _everyday(n: int) -> list[str]:
    """``n`` different everyday requests."""
    rng, found = random.Random(0), dict[str, None]()
    while len(found) < n:
        found[everyday_request(rng)] = None
    return list(found)


def _answered(
    base: Subject, requests: Sequence[str], progress: Progress | None
) -> Iterator[tuple[str, str]]:
    """Requests with the base's answers; those without a whole sentence are dropped."""
    by_length = sorted(requests, key=len)
    prompts = [Prompt(f"own-{i}", text, "benign") for i, text in enumerate(by_length)]
    done = 0

    def told(more: int) -> None:
        nonlocal done
        done += more
        if progress is not None:
            progress("answer", done, len(prompts))

    for trace in generate(base, prompts, GenerationConfig(OWN_TOKENS, BATCH), progress=told):
        answer = trace.response if trace.complete else whole_sentences(trace.response)
        if answer.strip():
            yield trace.prompt.text, answer


def whole_sentences(text: str) -> str:
    """The whole sentences of an answer that broke off; empty where there are none."""
    ends = [found.end() for found in _SENTENCE_END.finditer(text)]
    return text[: ends[-1]].strip() if ends else ""
