"""Judges say what an answer does: refuse, comply, harm; or that they could not tell."""

from refusal_cliff.judges.interface import (
    Answer,
    Judge,
    Judgement,
    Remembering,
    answer_of,
    judge_traces,
    kept_judgements,
    knows_harm,
)
from refusal_cliff.judges.rules import RulesJudge
from refusal_cliff.settings import BY_RULES, JudgeSettings

__all__ = [
    "BY_RULES",
    "Answer",
    "Judge",
    "JudgeSettings",
    "Judgement",
    "Remembering",
    "RulesJudge",
    "answer_of",
    "judge_traces",
    "kept_judgements",
    "knows_harm",
]
