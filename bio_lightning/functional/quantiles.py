"""Tabulated inverse distribution functions: they turn a hashed uniform into any distribution."""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor

__all__ = ["from_quantiles", "gamma_quantiles", "gamma_table", "interpolate", "quantile_table", "segments"]

_GAMMA_REACH = 5.5  # in standard deviations: further out than any normal that is drawn
_GAMMA_POINTS = 2049


def quantile_table(values: Tensor, points: int = 1025) -> Tensor:
    """Quantiles of ``values`` at ``points`` equally spaced probabilities from 0 to 1.

    Args:
        values: Any shape, at least one element.
        points: Length of the table, at least 2.

    Returns:
        Shape ``(points,)``, non-decreasing, in the dtype of ``values`` (float32 for half precision).

    Example:
        >>> quantile_table(torch.tensor([3.0, 1.0, 2.0]), points=5)
        tensor([1.0000, 1.5000, 2.0000, 2.5000, 3.0000])
    """
    ordered = values.detach().flatten().to(torch.promote_types(values.dtype, torch.float32)).sort().values
    probability = torch.linspace(0, 1, points, dtype=torch.float64, device=values.device)
    return interpolate(ordered, probability * (len(ordered) - 1)).to(ordered.dtype)


def segments(table: Tensor) -> Tensor:
    """The straight lines between the entries of a float32 table: low half where one begins, high half how far it rises.

    One lookup finds both; in compiled code lookups cost more than all the arithmetic around them.

    Args:
        table: Shape ``(points,)``. One in float64 does not fit and is given back as it is.

    Returns:
        int64, shape ``(points - 1,)``.

    Example:
        >>> from_quantiles(torch.tensor([0.25, 0.5]), segments(torch.tensor([0.0, 1.0, 4.0])))
        tensor([0.5000, 1.0000])
    """
    if table.dtype == torch.float64:
        return table
    begin, rise = (part.contiguous().view(torch.int32).to(torch.int64) for part in (table[:-1], table.diff()))
    return (rise << 32) | (begin & 0xFFFFFFFF)


def from_quantiles(uniform: Tensor, table: Tensor) -> Tensor:
    """Values with the distribution of ``table`` from uniforms on (0, 1).

    Args:
        uniform: Any shape.
        table: From :func:`quantile_table`, or its :func:`segments`.

    Example:
        >>> from_quantiles(torch.tensor([0.25, 0.5]), torch.tensor([0.0, 1.0, 4.0]))
        tensor([0.5000, 1.0000])
    """
    packed = table.dtype == torch.int64
    count = len(table) if packed else len(table) - 1
    position = uniform * count
    low = position.to(torch.int32).clamp_(max=count - 1)
    if packed:
        both = table[low]
        begin, rise = (half.to(torch.int32).view(torch.float32) for half in (both, both >> 32))
    else:
        begin = table[low]
        rise = table[low + 1] - begin
    return begin + rise * (position - low)


def interpolate(table: Tensor, position: Tensor) -> Tensor:
    """Linear interpolation in a table at fractional positions, which are clamped to its ends."""
    position = position.clamp(0, len(table) - 1)
    low = position.floor().to(torch.int64).clamp(max=max(len(table) - 2, 0))
    high = (low + 1).clamp(max=len(table) - 1)
    return torch.lerp(table[low].to(position.dtype), table[high].to(position.dtype), position - low)


@functools.lru_cache(maxsize=64)
def gamma_table(nu: float) -> Tensor:
    """Quantiles of the gamma distribution with mean 1 and standard deviation ``nu`` on a grid of normal scores.

    Returns:
        float64, one-dimensional, on the CPU.
    """
    shape = torch.tensor(1.0 / nu**2, dtype=torch.float64)
    score = torch.linspace(-_GAMMA_REACH, _GAMMA_REACH, _GAMMA_POINTS, dtype=torch.float64)
    probability = torch.special.ndtr(score)
    low = torch.full_like(score, math.log(1e-300))
    high = torch.full_like(score, math.log(1.0 + 40.0 * nu + 60.0 * nu**2))
    for _ in range(80):  # bisection in log space: the lower tail of a wide gamma spans hundreds of decades
        middle = (low + high) / 2
        below = torch.special.gammainc(shape, middle.exp() * shape) < probability
        low, high = torch.where(below, middle, low), torch.where(below, high, middle)
    return ((low + high) / 2).exp()


def gamma_quantiles(normal: Tensor, nu: float, table: Tensor | None = None) -> Tensor:
    """Gamma variates with mean 1 and standard deviation ``nu`` from standard normal ones, rank for rank.

    The quantile function is smooth in the normal score, so linear interpolation on a fine grid is exact to about 1e-6
    for ``nu`` up to 1, and to 4e-5 for 5.

    Args:
        normal: Any shape.
        nu: Standard deviation, > 0.
        table: The :func:`gamma_table` on the device of ``normal``, where that is at hand.

    Example:
        >>> gamma_quantiles(torch.tensor([0.0]), 0.5)  # the median of a skewed distribution is below its mean
        tensor([0.9180])
    """
    table = gamma_table(nu).to(normal.device) if table is None else table
    position = (normal.to(torch.float64) + _GAMMA_REACH) * ((_GAMMA_POINTS - 1) / (2 * _GAMMA_REACH))
    return interpolate(table, position).to(normal.dtype)
