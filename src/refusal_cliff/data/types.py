"""What the method reads and writes: prompts, traces, answers, training examples, rows left out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, TypeAlias, get_args

from refusal_cliff.errors import RefusalCliffError
from refusal_cliff.thinking import Spans

Label: TypeAlias = Literal["harmful", "benign"]
Verdict: TypeAlias = Literal["refused", "complied", "harmful", "truncated", "unscored"]
"""``complied``: answered, and no judge of harm called the answer harmful; ``harmful``: it did."""
Row: TypeAlias = Mapping[str, object]

LABELS: tuple[Label, ...] = get_args(Label)
VERDICTS: tuple[Verdict, ...] = get_args(Verdict)
COMPLIANCE: frozenset[str] = frozenset({"complied", "harmful"})


def complies(verdict: str) -> bool:
    """Whether an answer gives what was asked: of a harmful prompt, an attack that worked.

    A judge that only knows refusals says ``complied``, a judge of harm also ``harmful``. Whatever
    counts, ranks or draws attacks asks here, so that any judge can be used everywhere.
    """
    return verdict in COMPLIANCE


def is_judged(verdict: str) -> bool:
    """Whether a judge could say of an answer whether it refuses."""
    return verdict == "refused" or complies(verdict)


@dataclass(frozen=True, slots=True)
class Prompt:
    """One request to the model.

    ``group`` is shared by near-duplicates, which must stay on one side of a split; ``tags`` are
    free marks such as ``framed`` or ``hard-benign``.
    """

    id: str
    text: str
    label: Label
    group: str = ""
    category: str = ""
    tags: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not (isinstance(self.id, str) and isinstance(self.text, str)):
            raise RefusalCliffError(
                f"The id of a prompt is {self.id!r} and its text {self.text!r:.80}. Write both as "
                "texts, for example str(id)."
            )
        if self.label not in LABELS:
            raise RefusalCliffError(
                f"The label of prompt {self.id!r} is {self.label!r}. Write one of: "
                f"{', '.join(LABELS)}."
            )
        if not self.group:
            object.__setattr__(self, "group", self.id)


def row_of_prompt(prompt: Prompt) -> dict[str, Any]:
    """A prompt as a row of a file."""
    row = asdict(prompt)
    row["prompt"] = row.pop("text")
    return row


@dataclass(frozen=True, slots=True)
class Told:
    """What a file or a server tells of an answer whose text alone is known.

    Attributes:
        closed: Whether the thinking ended. A model that does not think has always ended it.
        written: All that the model wrote, where it came in one text; what is scored later.
        beside: The text beside a thought in a field of its own, where it holds more than the
            answer: a second end of the thought, which the tokens need; else empty.
        finish: Why the server stopped, in its own word, or ``UNTOLD``.
        status: Why there is no answer, one of ``UNANSWERED``; or ``REFUSAL_FIELD``; else empty.
        tokens: How many tokens prompt and answer had, as the server counted; a text that does not
            give back as many has lost some.
        prompt_tokens: How many of them the prompt had. A server that tells them may tell the
            trace's ``token_ids``, too; they are split where its tokenizer is known.
    """

    closed: bool
    written: str | None = None
    beside: str = ""
    finish: str = ""
    status: str = ""
    tokens: int | None = None
    prompt_tokens: int | None = None


@dataclass(frozen=True, slots=True)
class Trace:
    """What a model wrote for one prompt, wherever it ran, judged or not.

    Attributes:
        prompt: What was asked.
        token_ids: The tokens, prompt first; empty where only text is known.
        spans: Ends of the four parts of ``token_ids``; ``None`` where the thinking never closed, or
            as long as the tokens are not split.
        thinking: The thinking, without markers.
        response: The answer; empty where the thinking never closed.
        complete: Whether the model ended its answer itself.
        verdict: What the judge says.
        thinking_cut: Whether a budget closed the thinking.
        judge: Which judge; empty where nobody says.
        score: Degree of harm from 0 to 1, of a judge that grades.
        reason: The judge's words, or why there is no verdict.
        told: What else is known of a text; ``None`` once the tokens are split.
    """

    prompt: Prompt
    token_ids: tuple[int, ...]
    spans: Spans | None
    thinking: str
    response: str
    complete: bool
    verdict: Verdict = "unscored"
    thinking_cut: bool = False
    judge: str = ""
    score: float | None = None
    reason: str = ""
    told: Told | None = None

    @property
    def closed(self) -> bool:
        """Whether the thinking ended."""
        return self.spans is not None if self.told is None else self.told.closed


def closed_spans(trace: Trace) -> Spans:
    """The spans of a trace whose thinking closed.

    Raises:
        ValueError: It did not.
    """
    if trace.spans is None:
        raise ValueError(f"trace {trace.prompt.id} has no closing span")
    return trace.spans


def without_verdict(trace: Trace) -> Trace:
    """The trace as if no judge had seen it."""
    return replace(trace, verdict="unscored", judge="", score=None, reason="")


@dataclass(frozen=True, slots=True)
class SafetyExample:
    """A training example: a prompt with the thinking and the response to be learnt."""

    prompt: Prompt
    thinking: str
    response: str


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A row that is not used.

    Attributes:
        id: Of the row, or of the prompt that has no answer.
        row: Its number in the source, where it comes from one.
        reason: Why; of rows that cannot be read, one of a few words that are counted.
        detail: What is wrong with this row, and what mends it.
    """

    id: str
    row: int | None
    reason: str
    detail: str = ""

    @property
    def why(self) -> str:
        """All that is known of the reason."""
        return self.detail or self.reason


def shortened(text: object, most: int = 300) -> str:
    """A reason that fits a line: what a row holds may be a megabyte."""
    line = " ".join(str(text).split())
    return line if len(line) <= most else f"{line[: most // 2]} … {line[-most // 2 :]}"
