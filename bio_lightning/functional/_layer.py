"""Statistics of one layer: summed in float64, so that they do not depend on how the layer is cut into shards.

Where several processes hold it together, see :func:`~bio_lightning.functional._shards.in_parts_of`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bio_lightning.functional._shards import add_up_all

__all__ = ["computing_dtype", "mean", "mean_abs", "ratio", "std", "total"]


def computing_dtype(tensor: Tensor) -> torch.dtype:
    """float32 for half precision, else the tensor's own: what an elementwise rule is computed in."""
    return torch.promote_types(tensor.dtype, torch.float32)


def total(x: Tensor) -> Tensor:
    """Sum over all elements as a 0-dim tensor in float64."""
    return add_up_all(x.sum(dtype=torch.float64), x.numel())[0]


def mean(x: Tensor) -> Tensor:
    """Mean over all elements as a 0-dim tensor in the computing dtype; 0 for an empty tensor."""
    return _mean(x).to(computing_dtype(x))


def _mean(x: Tensor) -> Tensor:
    """In float64. Values that every process has in full weigh the same in it as in one process."""
    added, count = add_up_all(x.sum(dtype=torch.float64), x.numel())
    return added / count


def mean_abs(x: Tensor) -> Tensor:
    """Mean absolute value over all elements as a 0-dim tensor."""
    return mean(x.abs())


def std(x: Tensor) -> Tensor:
    """Standard deviation (population) over all elements as a 0-dim tensor; 0 for an empty tensor."""
    centred = x.to(torch.float64)
    centred = centred - _mean(centred)
    return _mean(centred.square()).sqrt().to(computing_dtype(x))


def ratio(numerator: Tensor, denominator: Tensor, at_zero: float) -> Tensor:
    """``numerator / denominator``, and ``at_zero`` where the denominator is 0: no 0/0 without a chosen meaning."""
    safe = torch.where(denominator == 0, torch.ones_like(denominator), denominator)
    return torch.where(denominator == 0, torch.full_like(safe, at_zero), numerator / safe)
