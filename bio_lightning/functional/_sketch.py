"""Quantiles from counts in bins of some relative width: counts of different tensors add up, sorted values do not.

A bin holds the numbers that share the upper bits of their float32: sign, exponent and seven bits of the fraction. That
takes no logarithm, and makes bins between 0.4 and 0.8 % wide.
"""

from __future__ import annotations

import struct

import torch
from torch import Tensor

from bio_lightning.functional._layer import pieces

__all__ = ["ACCURACY", "BINS", "sketch", "sketched_quantiles"]

_LOWER = 16  # bits that do not matter


def _upper_bits(value: float) -> int:
    bits: int = struct.unpack("=i", struct.pack("=f", value))[0]
    return bits >> _LOWER


ACCURACY = 0.005  # largest relative error of a quantile
_SMALLEST = _upper_bits(1e-6)
BINS = _upper_bits(1e6) - _SMALLEST + 2  # the first one for zeros


@torch.no_grad()
def sketch(values: Tensor) -> Tensor:
    """Number of values in each bin.

    Args:
        values: Any shape, >= 0. Below 1e-6 they count as 0, above 1e6 as 1e6; NaN as one of these.

    Returns:
        int64, shape ``(BINS,)``; counts of several tensors may be added.

    Example:
        >>> sketch(torch.ones(3)).max()
        tensor(3)

    References:
        Masson et al., DDSketch: a fast and fully-mergeable quantile sketch with relative-error guarantees, VLDB, 2019.
    """
    counts = torch.zeros(BINS, dtype=torch.int64, device=values.device)
    for piece in pieces(values):
        bits = piece.to(torch.float32).view(torch.int32)  # those of a negative number are negative
        counts += torch.bincount((bits >> _LOWER).sub_(_SMALLEST - 1).clamp_(0, BINS - 1), minlength=BINS)
    return counts


@torch.no_grad()
def sketched_quantiles(counts: Tensor, probabilities: tuple[float, ...]) -> Tensor:
    """Quantiles of what was counted, each within ``ACCURACY`` of a value that was there.

    Args:
        counts: Sum of what :func:`sketch` returned, shape ``(..., BINS)``; at least one value.
        probabilities: In [0, 1]; the quantile at ``p`` is the value with ``floor(p * (n - 1))`` smaller ones.

    Returns:
        float64, shape ``(..., len(probabilities))``.

    Example:
        >>> sketched_quantiles(sketch(torch.tensor([0.0, 2.0, 0.0])), (0.0, 1.0))
        tensor([0.0000, 2.0078], dtype=torch.float64)
    """
    cumulated = counts.to(torch.float64).cumsum(-1)
    rank = torch.tensor(probabilities, dtype=torch.float64, device=counts.device) * (cumulated[..., -1:] - 1)
    index = torch.searchsorted(cumulated, rank, right=True).clamp(max=BINS - 1)
    edges = ((torch.stack([index, index + 1]) + (_SMALLEST - 1)) << _LOWER).to(torch.int32).view(torch.float32)
    low, high = edges.to(torch.float64)
    value = 2 * low * high / (low + high)  # as far from either, relative to it
    return torch.where(index == 0, torch.zeros_like(value), value)
