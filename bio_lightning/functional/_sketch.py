"""Quantiles from counts in bins of equal relative width: counts of different tensors add up, sorted values do not."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from bio_lightning.functional._layer import computing_dtype, pieces

__all__ = ["ACCURACY", "BINS", "sketch", "sketched_quantiles"]

ACCURACY = 0.005  # largest relative error of a quantile
_BASE = (1 + ACCURACY) / (1 - ACCURACY)
_REACH = math.ceil(math.log(1e6) / math.log(_BASE))  # bins on either side of 1
BINS = 2 * _REACH + 2


@torch.no_grad()
def sketch(values: Tensor) -> Tensor:
    """Number of values in each bin.

    Args:
        values: Any shape, >= 0. Below 1e-6 they count as 0, above 1e6 as 1e6; NaN counts as 1.

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
        exponent = piece.to(computing_dtype(piece)).clamp(min=0).log_().mul_(1 / math.log(_BASE)).ceil_()
        exponent.nan_to_num_(nan=0.0, posinf=_REACH, neginf=-_REACH - 1).clamp_(-_REACH - 1, _REACH)
        counts += torch.bincount(exponent.add_(_REACH + 1).to(torch.int32), minlength=BINS)
    return counts


@torch.no_grad()
def sketched_quantiles(counts: Tensor, probabilities: tuple[float, ...]) -> Tensor:
    """Quantiles of what was counted, each within ``ACCURACY`` of a value that was there.

    Args:
        counts: Sum of what :func:`sketch` returned, shape ``(BINS,)``; at least one value.
        probabilities: In [0, 1]; the quantile at ``p`` is the value with ``floor(p * (n - 1))`` smaller ones.

    Returns:
        float64, shape ``(len(probabilities),)``.

    Example:
        >>> sketched_quantiles(sketch(torch.tensor([0.0, 2.0, 0.0])), (0.0, 1.0))
        tensor([0.0000, 2.0037], dtype=torch.float64)
    """
    cumulated = counts.to(torch.float64).cumsum(0)
    rank = torch.tensor(probabilities, dtype=torch.float64, device=counts.device) * (cumulated[-1] - 1)
    index = torch.searchsorted(cumulated, rank, right=True).clamp(max=BINS - 1)
    value = 2 / (_BASE + 1) * _BASE ** (index.to(torch.float64) - _REACH - 1)
    return torch.where(index == 0, torch.zeros_like(value), value)
