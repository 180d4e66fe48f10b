"""From what a user names to a judge."""

from __future__ import annotations

from refusal_cliff.errors import RefusalCliffError
from refusal_cliff.generate.endpoint import KEY_VARIABLE, EndpointConfig
from refusal_cliff.io import without_folder
from refusal_cliff.judges.guards import GUARDS, GuardJudge, guard_name
from refusal_cliff.judges.interface import Judge
from refusal_cliff.judges.rubric import RubricJudge, rubric_name
from refusal_cliff.judges.rules import RulesJudge
from refusal_cliff.judges.speakers import LocalSpeaker, ServedSpeaker, Speaker
from refusal_cliff.settings import JUDGES, JudgeSettings
from refusal_cliff.user_text import require_model_of_rubric

_REPLY = 1024
"""Most tokens of a general model's reply: it may reason before its verdict."""


def judge_of(settings: JudgeSettings) -> Judge:
    """The judge that a user named, loaded; see `chosen_judge`."""
    return chosen_judge(settings.name, settings.model, settings.endpoint, settings.key)


def full_name(settings: JudgeSettings) -> str:
    """`Judge.name`, without loading the judge: what verdicts and keys are marked with.

    Raises:
        RefusalCliffError: There is no such judge, or its model is not named.
    """
    return judge_name(settings.name, settings.model)


def chosen_judge(
    name: str, model: str | None = None, endpoint: str | None = None, key: str = KEY_VARIABLE
) -> Judge:
    """A judge by its name.

    Args:
        name: One of ``JUDGES``.
        model: The judge's weights, or its name at the endpoint; a guard's usual ones by default.
        endpoint: Address of an OpenAI-compatible server; ``None`` runs the model here.
        key: Environment variable that holds the server's key.

    Raises:
        RefusalCliffError: There is no such judge, or its model is not named or cannot be loaded.
    """
    judge_name(name, model)  # refuses what cannot be built
    if name == "rules":
        return RulesJudge()
    if name == "rubric":
        return RubricJudge(_speaker(str(model), endpoint, key, _REPLY))
    guard = GUARDS[name]
    return GuardJudge(name, _speaker(model or guard.model, endpoint, key, guard.max_new_tokens))


def judge_name(name: str, model: str | None = None) -> str:
    """What the judge will be called, without loading it; arguments as for `chosen_judge`.

    Raises:
        RefusalCliffError: There is no such judge, or its model is not named.
    """
    if name not in JUDGES:
        raise RefusalCliffError(f"Unknown judge {name!r}. Choose one of: {', '.join(JUDGES)}.")
    if name == "rules":
        return RulesJudge.name
    if name != "rubric":
        return guard_name(name, model or GUARDS[name].model)
    require_model_of_rubric(name, model)
    return rubric_name(str(model))


def published_name(judge: str) -> str:
    """A judge's name without where its model lies on this machine: for files that are published."""
    name, bracket, model = judge.partition(" (")
    return f"{name} ({without_folder(model.removesuffix(')'))})" if bracket else name


def _speaker(model: str, endpoint: str | None, key: str, limit: int) -> Speaker:
    if endpoint is None:
        return LocalSpeaker(model, limit)
    return ServedSpeaker(EndpointConfig(endpoint, model, limit, key_variable=key))
