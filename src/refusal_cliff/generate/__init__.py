"""Ways to let a model write traces."""

from refusal_cliff.generate.local import answer, generate
from refusal_cliff.generate.sampling import repeated
from refusal_cliff.settings import GenerationConfig

__all__ = ["GenerationConfig", "answer", "generate", "repeated"]
