"""The refusal score over the tokens, and the verdict on a model."""
