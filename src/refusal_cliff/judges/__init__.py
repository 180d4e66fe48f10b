"""Judges say what an answer does: refuse or comply."""

from refusal_cliff.judges.rules import judge, judge_all

__all__ = ["judge", "judge_all"]
