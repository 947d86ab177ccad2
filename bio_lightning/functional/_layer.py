"""Statistics of one layer: summed in float64, so that they do not depend on how the layer is cut into shards."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["computing_dtype", "mean", "mean_abs", "ratio", "std"]


def computing_dtype(tensor: Tensor) -> torch.dtype:
    """float32 for half precision, else the tensor's own: what an elementwise rule is computed in."""
    return torch.promote_types(tensor.dtype, torch.float32)


def mean(x: Tensor) -> Tensor:
    """Mean over all elements as a 0-dim tensor in the computing dtype; 0 for an empty tensor."""
    return (x.sum(dtype=torch.float64) / max(x.numel(), 1)).to(computing_dtype(x))


def mean_abs(x: Tensor) -> Tensor:
    """Mean absolute value over all elements as a 0-dim tensor."""
    return mean(x.abs())


def std(x: Tensor) -> Tensor:
    """Standard deviation (population) over all elements as a 0-dim tensor; 0 for an empty tensor."""
    centred = x.to(torch.float64)
    centred = centred - centred.sum() / max(x.numel(), 1)
    return (centred.square().sum() / max(x.numel(), 1)).sqrt().to(computing_dtype(x))


def ratio(numerator: Tensor, denominator: Tensor, at_zero: float) -> Tensor:
    """``numerator / denominator``, and ``at_zero`` where the denominator is 0: no 0/0 without a chosen meaning."""
    safe = torch.where(denominator == 0, torch.ones_like(denominator), denominator)
    return torch.where(denominator == 0, torch.full_like(safe, at_zero), numerator / safe)
