"""docs/reference/models.md, made by loading every architecture.

python tests/models_page.py > docs/reference/models.md
"""

from __future__ import annotations

import transformers
from architectures import (
    ARCHITECTURES,
    HEADS,
    ILL_CONDITIONED,
    LAYERS,
    UNSUPPORTED,
    architecture_subject,
)

from refusal_cliff.errors import RefusalCliffError
from refusal_cliff.model.subject import Subject

HEAD = f"""# Which models can be measured

Any decoder of transformers whose blocks add to one residual stream. A model is not looked up in a
list: at load, one batch of two short rows is run, and every block must turn out to be a sum of its
input and its parts, each times one number, to the precision of the weights; each row alone must
give what it gave in the batch. A model that does not is refused, with the block and the reason.

Tested on {len(ARCHITECTURES)} architectures (transformers {transformers.__version__}; random
weights, {LAYERS} blocks, {HEADS} heads, float32; {", ".join(ILL_CONDITIONED)} in float64, as its
random weights blow up rounding), each for the following, relative 1e-4
(`pytest tests/test_architectures.py`; this page is `python tests/models_page.py`):

- residuals are those of Hugging Face's `output_hidden_states`;
- embedding + heads + projection biases + all other parts = probe logit, at every token and block;
- a right-padded batch gives what single rows give (so a decoder must look back only);
- a head taken out while the model runs = its projection columns zeroed, in the logits and in greedy
  generation with the key-value cache;
- the causal sweep over heads, which runs only some blocks and tokens again, gives what a whole
  forward pass with each head taken out gives (1e-5 of the logit).

*Norm after* is a norm between the projection and the residual stream, *factor* what attention is
multiplied by before it is added. Blocks without softmax attention have no heads: they are listed,
and only their residual stream is measured.

| architecture | class | head width | norm after | factor | blocks without heads |
|---|---|---|---|---|---|
"""

REFUSED = """
## Refused

| architecture | why |
|---|---|
"""


def row(name: str, subject: Subject) -> str:
    """One line of the table."""
    first = next(block for block in subject.blocks if block.attention is not None)
    norm = first.attention.norm if first.attention is not None else None
    factor = first.attention.factor if first.attention is not None else 1.0
    cells = [
        f"`{name}`",
        type(subject.model).__name__,
        str(subject.head_width(first.layer)),
        "" if norm is None else type(norm).__name__,
        f"{factor:.3g}",
        "; ".join(f"{layer}: {why}" for layer, why in subject.skipped.items()),
    ]
    return f"| {' | '.join(cells)} |\n"


def refusal(name: str) -> str:
    """The reason why an architecture cannot be measured."""
    try:
        architecture_subject(name)
    except RefusalCliffError as error:
        return f"| `{name}` | {error} |\n"
    raise AssertionError(f"{name} is supported: move it")


def models_page() -> str:
    """The whole page."""
    rows = "".join(row(name, architecture_subject(name)) for name in ARCHITECTURES)
    return HEAD + rows + REFUSED + "".join(map(refusal, UNSUPPORTED))


if __name__ == "__main__":
    print(models_page(), end="")
