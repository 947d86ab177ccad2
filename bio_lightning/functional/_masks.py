"""Which elements a condition holds for: bools in compiled code, else ones and zeros of the elements' own type.

Outside compiled code torch takes four times as long to compare into bools, and to choose by them up to fifteen times as
long as to multiply, since a processor cannot foresee the branches.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["both", "choose", "count", "either", "greater", "less", "surplus"]


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
    """How many are not 0, 0-dim, of zeros and ones of either sign; floats are counted faster than bools."""
    if not _adds_up(mask):
        return torch.count_nonzero(mask)
    flat = mask.flatten()
    return torch.dot(flat, flat)  # three quarters of a sum's time


def surplus(signs: Tensor) -> Tensor:
    """How many more are 1 than -1, 0-dim, of zeros and ones of either sign."""
    return signs.sum(dtype=signs.dtype if _adds_up(signs) else torch.float64)


def _adds_up(mask: Tensor) -> bool:
    """Whether the elements' own type has every whole number that a sum of them can reach."""
    return mask.dtype in (torch.float32, torch.float64) and mask.numel() < 1 << 24
