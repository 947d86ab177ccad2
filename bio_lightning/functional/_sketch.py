"""Quantiles from counts in bins of some relative width: counts of different tensors add up, sorted values do not.

A bin holds the numbers that round to the same bfloat16, whose eight significant bits make bins between 0.4 and 0.8 %
wide. That takes no logarithm, and the bits of a bfloat16 number its place.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bio_lightning.functional._layer import pieces

__all__ = ["ACCURACY", "BINS", "sketch", "sketched_quantiles"]


def _bits(value: float) -> int:
    """Of positive numbers, these grow with the number, by 1 from one to the next."""
    return int(torch.tensor(value, dtype=torch.bfloat16, device="cpu").view(torch.int16))


_PIECE = 1 << 20  # counting does not need the cache, only some end to the memory
ACCURACY = 2**-8  # largest relative error of a quantile
_ZERO = _bits(1e-6) - 1  # what counts as 0
BINS = _bits(1e6) - _ZERO + 1


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
    first, *more = (_counted(piece) for piece in pieces(values, _PIECE))
    return sum(more, first)


def _counted(piece: Tensor) -> Tensor:
    bits = piece.to(torch.bfloat16).view(torch.int16)  # those of a negative number are negative
    return torch.bincount(bits.clamp(_ZERO, _ZERO + BINS - 1).sub_(_ZERO), minlength=BINS)


def sketched_quantiles(counts: Tensor, probabilities: tuple[float, ...]) -> Tensor:
    """Quantiles of what was counted, each within ``ACCURACY`` of a value that was there.

    Args:
        counts: Sum of what :func:`sketch` returned, shape ``(..., BINS)``; at least one value.
        probabilities: In [0, 1]; the quantile at ``p`` is the value with ``floor(p * (n - 1))`` smaller ones.

    Returns:
        float64, shape ``(..., len(probabilities))``.

    Example:
        >>> sketched_quantiles(sketch(torch.tensor([0.0, 3.0, 0.0])), (0.0, 1.0))
        tensor([0., 3.], dtype=torch.float64)
    """
    cumulated = counts.to(torch.int64).cumsum(-1)
    smaller = torch.tensor(probabilities, dtype=torch.float64, device=counts.device) * (cumulated[..., -1:] - 1)
    index = torch.searchsorted(cumulated, smaller.to(torch.int64), right=True)
    value = (index + _ZERO).to(torch.int16).view(torch.bfloat16).to(torch.float64)
    return value.masked_fill_(index.logical_not(), 0.0)
