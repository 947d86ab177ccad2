"""Which elements a condition holds for: bools in compiled code, else ones and zeros of the elements' own type.

Outside compiled code torch takes four times as long to compare into bools, and to choose by them up to fifteen times as
long as to multiply, since a processor cannot foresee the branches.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["both", "choose", "count", "either", "greater", "less"]


def less(x: Tensor, y: Tensor | float) -> Tensor:
    """Where ``x < y``, which broadcasts against ``x``."""
    return x < y if torch.compiler.is_compiling() else torch.lt(x, y, out=torch.empty_like(x))


def greater(x: Tensor, y: Tensor | float) -> Tensor:
    """Where ``x > y``, which broadcasts against ``x``."""
    return x > y if torch.compiler.is_compiling() else torch.gt(x, y, out=torch.empty_like(x))


def both(mask: Tensor, other: Tensor) -> Tensor:
    """Where both hold; may change the first."""
    return mask & other if torch.compiler.is_compiling() else mask.mul_(other)


def either(mask: Tensor, other: Tensor) -> Tensor:
    """Where one of two holds."""
    return mask | other if torch.compiler.is_compiling() else torch.maximum(mask, other)


def choose(mask: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """``x`` where the mask holds, which may also be bool, or numbers in compiled code, else ``y``; both finite."""
    if torch.compiler.is_compiling():
        return torch.where(mask.to(torch.bool), x, y)
    return torch.lerp(y, x, mask.to(y.dtype))


def count(mask: Tensor) -> Tensor:
    """How many there are, 0-dim; as numbers they add up several times as fast as bools."""
    exact = mask.dtype in (torch.float32, torch.float64, torch.int32) and mask.numel() < 1 << 24
    return mask.sum(dtype=mask.dtype if exact else torch.float64)
