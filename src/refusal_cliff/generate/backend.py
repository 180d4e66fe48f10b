"""What a way of generating must offer, and the local one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from refusal_cliff.data.types import LeftOut, Prompt, Trace, shortened
from refusal_cliff.errors import RefusalCliffError
from refusal_cliff.generate.local import check_prompt, generate
from refusal_cliff.model.memory import BatchLimit
from refusal_cliff.model.subject import Subject
from refusal_cliff.settings import GenerationConfig

Finished = Callable[[Trace | LeftOut], None]

_BATCHES_AT_ONCE = 4
"""What a kill can lose; several, so that the stragglers of one batch fill the next."""


class Backend(Protocol):
    """Anything that lets a model answer prompts."""

    def description(self) -> dict[str, Any]:
        """What the answers depend on, as JSON; never a secret."""
        ...

    def answer(self, prompts: Sequence[Prompt], finished: Finished) -> None:
        """Answer every prompt once, in any order, and hand over each as soon as it is done.

        Args:
            prompts: What to ask.
            finished: Takes a trace, or a prompt that cannot be answered with the reason.

        Raises:
            RefusalCliffError: No prompt can be answered, for example because a server is down.
        """
        ...


@dataclass(frozen=True, slots=True)
class LocalBackend:
    """A Transformers model on this machine."""

    subject: Subject
    config: GenerationConfig

    def description(self) -> dict[str, Any]:
        """Model, weights and decoding; not the batch size, on which no answer depends."""
        return {
            "backend": "transformers",
            "model": self.subject.name,
            "fingerprint": self.subject.fingerprint,
            "stops": sorted(self.subject.ending.stops),
            "closer": self.subject.format.closer,
            **self.config.decoding(),
        }

    def answer(self, prompts: Sequence[Prompt], finished: Finished) -> None:
        """A few batches at a time; prompts that do not fit the model are left out."""
        fitting: list[Prompt] = []
        for prompt in prompts:
            try:
                check_prompt(self.subject, prompt)
            except RefusalCliffError as error:
                finished(LeftOut(prompt.id, None, shortened(error)))
            else:
                fitting.append(prompt)
        limit, size = BatchLimit(self.config.batch_size), self.config.batch_size * _BATCHES_AT_ONCE
        for start in range(0, len(fitting), size):
            some = fitting[start : start + size]
            generate(self.subject, some, self.config, limit=limit, finished=finished)
