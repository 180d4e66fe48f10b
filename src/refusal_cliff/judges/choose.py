"""From what a user names to a judge."""

from __future__ import annotations

from refusal_cliff.errors import RefusalCliffError
from refusal_cliff.generate.endpoint import EndpointBackend, EndpointConfig
from refusal_cliff.io import without_folder
from refusal_cliff.judges.guards import GUARDS, GuardJudge, guard_name
from refusal_cliff.judges.interface import Judge
from refusal_cliff.judges.rubric import RubricJudge, rubric_name
from refusal_cliff.judges.rules import RulesJudge
from refusal_cliff.judges.speakers import LocalSpeaker, Speaker
from refusal_cliff.settings import BY_RULES, JUDGES, GenerationConfig, JudgeSettings, Server

_REPLY = 1024
"""Most tokens of a general model's reply: it may reason before its verdict."""


def chosen_judge(
    name: str, model: str | None = None, endpoint: str | None = None, key: str = BY_RULES.key
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
    return judge_of(JudgeSettings(name, model, endpoint, key))


def judge_of(settings: JudgeSettings) -> Judge:
    """The judge that a user named, loaded; errors as of `chosen_judge`."""
    full_name(settings)  # refuses what there is not
    if settings.name == "rules":
        return RulesJudge()
    if settings.name == "rubric":
        return RubricJudge(_speaker(str(settings.model), settings, _REPLY))
    guard = GUARDS[settings.name]
    speaker = _speaker(settings.model or guard.model, settings, guard.max_new_tokens)
    return GuardJudge(settings.name, speaker)


def full_name(settings: JudgeSettings) -> str:
    """`Judge.name`, without loading the judge: what verdicts and keys are marked with.

    Raises:
        RefusalCliffError: There is no such judge.
    """
    name, model = settings.name, settings.model
    if name not in JUDGES:
        raise RefusalCliffError(f"Unknown judge {name!r}. Choose one of: {', '.join(JUDGES)}.")
    if name == "rules":
        return RulesJudge.name
    return rubric_name(str(model)) if name == "rubric" else guard_name(name, model)


def published_name(judge: str) -> str:
    """A judge's name without where its model lies on this machine: for files that are published."""
    name, bracket, model = judge.partition(" (")
    return f"{name} ({without_folder(model.removesuffix(')'))})" if bracket else name


def _speaker(model: str, settings: JudgeSettings, limit: int) -> Speaker:
    if settings.endpoint is None:
        return LocalSpeaker(model, limit)
    server = Server(settings.endpoint, key=settings.key)
    return EndpointBackend(EndpointConfig(model, server, GenerationConfig(limit)))
