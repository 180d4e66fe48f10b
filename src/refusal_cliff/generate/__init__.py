"""Ways to let a model write traces."""

from refusal_cliff.generate.local import GenerationConfig, answer, generate

__all__ = ["GenerationConfig", "answer", "generate"]
