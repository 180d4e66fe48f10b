"""Answers that are not written here: those that a user has, and those of a server."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from refusal_cliff.cliff.source import answered_trace, told_trace
from refusal_cliff.data.fields import BadRow
from refusal_cliff.data.journal import Journal
from refusal_cliff.data.traces import row_of_trace
from refusal_cliff.data.types import LeftOut, Prompt, Trace
from refusal_cliff.errors import RefusalCliffError
from refusal_cliff.generate.adapters import AdapterServer
from refusal_cliff.generate.backend import Backend
from refusal_cliff.model.subject import Subject
from refusal_cliff.progress import More

MOST_UNUSABLE = 0.5
"""Share of a server's answers that may be unusable; more are no accident."""


@dataclass(frozen=True, slots=True)
class Adapters:
    """Where heads are taken out by a server, see ``stages.ablated``.

    Attributes:
        server: The server.
        folder: Where the adapters are written; the server reads them at the same path.
    """

    server: AdapterServer
    folder: Path


@dataclass(frozen=True)
class Elsewhere:
    """Where answers come from, if they are not written here.

    Attributes:
        given: Unjudged traces that are there already, by the id of their prompt.
        made_from: What they were read from, as JSON.
        server: Who gives first answers to all other prompts; ``None`` for the model here.
        adapters: Who answers without heads; ``None`` for the model here.
    """

    given: Mapping[str, Trace] = field(default_factory=dict)
    made_from: Mapping[str, str] = field(default_factory=dict)
    server: Backend | None = None
    adapters: Adapters | None = None

    def described(self) -> dict[str, Any]:
        """What first answers depend on, as JSON; nothing where the model here writes them all."""
        given = {"given": dict(self.made_from)} if self.given else {}
        return given if self.server is None else {**given, "server": self.server.description()}

    def ablating(self) -> dict[str, Any]:
        """What answers without heads depend on, as JSON; nothing where they are written here."""
        if self.adapters is None:
            return {}
        server = self.adapters.server
        return {"ablated_by": server.backend(server.config.model).description()}

    def known(self, prompts: Sequence[Prompt]) -> dict[str, Trace]:
        """The traces that are there, with these prompts' groups."""
        return {p.id: replace(self.given[p.id], prompt=p) for p in prompts if p.id in self.given}


NOWHERE = Elsewhere()


def served(
    server: Backend,
    subject: Subject,
    prompts: Sequence[Prompt],
    journal: Journal | None,
    progress: More | None = None,
    name: str = "served",
) -> dict[str, Trace]:
    """Ask a server, and read its answers as unjudged traces of the model, by the id of the prompt.

    An answer that cannot be measured is not among them: a server that tells no token ids may write
    what its text does not give back. The model here is left to answer these prompts.

    Args:
        server: Who answers.
        subject: The model that it serves.
        prompts: What to ask.
        journal: Keeps every answer; what is in it is not asked again.
        progress: Told of each answer.
        name: What the answers are called in the journal.

    Raises:
        RefusalCliffError: A prompt got no answer, or most cannot be measured; all are kept.
    """

    def key(prompt: Prompt) -> str:
        return f"{name} {prompt.id}"

    failed: list[LeftOut] = []
    said = {} if journal is None else dict(journal.rows)

    def finished(result: Trace | LeftOut) -> None:
        if isinstance(result, LeftOut):
            failed.append(result)
        else:
            row = {"id": key(result.prompt), "served": row_of_trace(result)}
            said[row["id"]] = row
            if journal is not None:
                journal.add(row)
        if progress is not None:
            progress(1)

    missing = [prompt for prompt in prompts if key(prompt) not in said]
    if missing:
        server.answer(missing, finished)
    require_all(failed, len(prompts))
    found: dict[str, Trace] = {}
    unusable: list[LeftOut] = []
    for prompt in prompts:
        try:
            told = told_trace("the server's answer", 1, said[key(prompt)]["served"], subject)
            found[prompt.id] = replace(answered_trace(told, subject), prompt=prompt)
        except BadRow as error:
            unusable.append(LeftOut(prompt.id, None, str(error)))
    if len(unusable) > MOST_UNUSABLE * len(prompts):
        raise RefusalCliffError(
            f"{len(unusable)} of {len(prompts)} answers of the server cannot be measured; the "
            f"first, {unusable[0].id}: {unusable[0].why} If the server has another model or chat "
            "template than --model, name the same for both."
        )
    return found


def require_all(failed: Sequence[LeftOut], asked: int) -> None:
    """Refuse to go on without some answers.

    Raises:
        RefusalCliffError: There is no answer to a prompt; the others are kept.
    """
    if failed:
        raise RefusalCliffError(
            f"{len(failed)} of {asked} prompts got no answer from the server; the first, "
            f"{failed[0].id}: {failed[0].why}. All others are kept: the same command again asks "
            "only for these. Or take them out of the files."
        )
