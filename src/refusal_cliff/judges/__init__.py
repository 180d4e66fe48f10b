"""Judges say what an answer does: refuse, comply, harm; or that they could not tell."""

from refusal_cliff.judges.interface import Answer, Judge, Judgement, answer_of
from refusal_cliff.judges.rules import RulesJudge, judge, judge_all

__all__ = ["Answer", "Judge", "Judgement", "RulesJudge", "answer_of", "judge", "judge_all"]
