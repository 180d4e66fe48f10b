"""Where shards are scored: in this process, in one process of several, or on a Ray cluster."""

from refusal_cliff.select.engine.local import ENGINES, Engine, Progress, Rank, run_shards

__all__ = ["ENGINES", "Engine", "Progress", "Rank", "run_shards"]
