"""How far rounding may put apart two ways to compute one number."""

from __future__ import annotations

import torch

_RELATIVE = {torch.float64: 1e-6, torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}


def multiplied_in(dtype: torch.dtype) -> torch.dtype:
    """The precision of products of matrices of this type.

    Where TensorFloat-32 is allowed (``torch.set_float32_matmul_precision``), which many programs
    do, those of float32 are as coarse as float16's: both have 10 bits.
    """
    allowed = torch.backends.cuda.matmul.fp32_precision == "tf32" and torch.cuda.is_available()
    return torch.float16 if dtype == torch.float32 and allowed else dtype


def tolerance(dtype: torch.dtype) -> float:
    """Largest relative difference that rounding explains in a model of this precision."""
    return _RELATIVE.get(multiplied_in(dtype), _RELATIVE[torch.bfloat16])
