"""Ways to let a model write traces."""

from refusal_cliff.generate.config import GenerationConfig
from refusal_cliff.generate.local import answer, generate
from refusal_cliff.generate.sampling import repeated

__all__ = ["GenerationConfig", "answer", "generate", "repeated"]
