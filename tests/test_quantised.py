"""Weights that are no plain numbers are refused in one paragraph."""

from __future__ import annotations

from pathlib import Path

import pytest

from refusal_cliff.errors import RefusalCliffError
from refusal_cliff.model.weights import require_floats


def test_a_damaged_type_of_a_tensor_is_named_in_one_line() -> None:
    """What the header of a file calls a type may be a megabyte of brackets."""
    with pytest.raises(RefusalCliffError, match="not ordinary floating-point numbers") as caught:
        require_floats(Path("model.safetensors"), {"a.weight": "[" * 100_000})
    assert len(str(caught.value)) < 600
