"""Which judge a user named, before anything is loaded: what goes with a job to other processes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # slow to import, and an argument is to be checked at once
    from refusal_cliff.judges.interface import Judge


@dataclass(frozen=True, slots=True)
class JudgeSettings:
    """A judge by its settings; the options of every command that judges.

    Attributes:
        name: One of `choose.NAMES`.
        model: Its weights, or its name at the endpoint; a guard's usual ones by default.
        endpoint: Its server; ``None`` runs it here.
        key: Environment variable that holds the server's key.
        error: What `judge calibrate` wrote of it; ``None`` takes what ships with the package.
    """

    name: str = "rules"
    model: str | None = None
    endpoint: str | None = None
    key: str = "OPENAI_API_KEY"
    error: Path | None = None

    @property
    def full_name(self) -> str:
        """`Judge.name`, without loading the judge: what verdicts and keys are marked with.

        Raises:
            RefusalCliffError: There is no such judge, or its model is not named.
        """
        from refusal_cliff.judges.choose import judge_name

        return judge_name(self.name, self.model)

    def judge(self) -> Judge:
        """The judge, loaded; see `chosen_judge`."""
        from refusal_cliff.judges.choose import chosen_judge

        return chosen_judge(self.name, self.model, self.endpoint, self.key)


BY_RULES = JudgeSettings()
"""The phrase rules: what judges where nobody named a judge."""
