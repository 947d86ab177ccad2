"""Histograms of weights, multipliers, firing rates and ages."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from bio_lightning.functional._layer import computing_dtype, pieces

__all__ = ["BINS", "Histogram", "histograms"]

BINS = 64


class Histogram(NamedTuple):
    """How often values fall into bins of equal width.

    Args:
        edges: Borders of the bins, ascending, one more than there are bins.
        counts: Values in each bin; the highest value belongs to the last.
        total: Sum of all values.
        squares: Sum of their squares.
    """

    edges: list[float]
    counts: list[float]
    total: float
    squares: float


@torch.no_grad()
def histograms(tensors: Mapping[str, Tensor], bins: int = BINS) -> dict[str, Histogram]:
    """A histogram of every tensor, in two transfers from the device whatever their number.

    Args:
        tensors: Any shapes; on other devices than the first they are copied.
        bins: Number of bins.

    Returns:
        Histograms by the tensors' names; none where a value, or the distance between two, is not finite, or there is
            no value.

    Example:
        >>> import torch
        >>> histograms({"a": torch.tensor([0.0, 0.0, 3.0, 4.0])}, bins=2)["a"]
        Histogram(edges=[0.0, 2.0, 4.0], counts=[2.0, 2.0], total=7.0, squares=25.0)
    """
    filled = {name: tensor.detach() for name, tensor in tensors.items() if tensor.numel() > 0}
    if not filled:
        return {}
    device = next(iter(filled.values())).device
    values = {name: tensor.to(device, computing_dtype(tensor)) for name, tensor in filled.items()}
    limits = torch.stack([torch.stack(torch.aminmax(value)).to(torch.float64) for value in values.values()])
    bounds = {name: (low, high) for name, (low, high) in zip(values, limits.tolist(), strict=True)}
    rows = torch.stack([_row(value, *bounds[name], bins) for name, value in values.items()])
    return {
        name: Histogram(_edges(*bounds[name], bins), counts, total, squares)
        for name, (total, squares, *counts) in zip(values, rows.tolist(), strict=True)
        if math.isfinite(bounds[name][1] - bounds[name][0])
    }


def _row(values: Tensor, low: float, high: float, bins: int) -> Tensor:
    """Sum, sum of squares and counts, float64."""
    scale = bins / (high - low) if high > low else 0.0
    counts = torch.zeros(bins, dtype=torch.int64, device=values.device)
    for piece in pieces(values):
        place = (piece - low).mul_(scale).nan_to_num_().clamp_(0, bins - 1)
        counts += torch.bincount(place.to(torch.int32), minlength=bins)
    squares = torch.linalg.vector_norm(values, dtype=torch.float64).square()
    return torch.cat([torch.stack([values.sum(dtype=torch.float64), squares]), counts])


def _edges(low: float, high: float, bins: int) -> list[float]:
    """Bins of one value have a width, too, since viewers draw none without."""
    spare = 0.0 if high > low else max(abs(low) * 1e-3, 1e-6)
    low, high = low - spare, high + spare
    return [low + (high - low) * number / bins for number in range(bins)] + [high]
