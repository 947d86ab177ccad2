"""Which elements a condition holds for: bools in compiled code, else ones and zeros of the elements' own type.

Outside compiled code torch takes six times as long to compare into bools, and to choose by them up to thirty times as
long as to multiply, since a processor cannot foresee the branches.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["both", "choose", "either", "holds"]


def holds(comparison: Callable[..., Tensor], x: Tensor, y: Tensor | float) -> Tensor:
    """Where ``comparison(x, y)`` holds, of torch's comparisons; ``y`` broadcasts against ``x``."""
    return comparison(x, y) if torch.compiler.is_compiling() else comparison(x, y, out=torch.empty_like(x))


def both(mask: Tensor, other: Tensor) -> Tensor:
    """Where both hold; may change the first."""
    return mask & other if torch.compiler.is_compiling() else mask.mul_(other)


def either(mask: Tensor, other: Tensor) -> Tensor:
    """Where one of two holds; may change the first."""
    return mask | other if torch.compiler.is_compiling() else torch.maximum(mask, other, out=mask)


def choose(mask: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """``x`` where the mask holds, which may be bool, else ``y``; both finite."""
    return torch.where(mask, x, y) if torch.compiler.is_compiling() else torch.lerp(y, x, mask.to(y.dtype))
