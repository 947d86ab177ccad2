"""The ten distributions of per-weight learning rates, before clamping and normalising.

Each draws one factor per weight, around 1, from a :class:`~bio_lightning.functional.Noise`.
"""

from __future__ import annotations

import math
from typing import Literal, get_args

import torch
from torch import Tensor

from bio_lightning.functional._layer import mean, mean_abs, ratio
from bio_lightning.functional.noise import Draw, Noise
from bio_lightning.functional.quantiles import gamma_quantiles

__all__ = [
    "DISTRIBUTIONS",
    "Distribution",
    "activity",
    "baseline",
    "beta",
    "developed",
    "gamma",
    "layer_adaptive",
    "lognormal",
    "normal",
    "remaining_diversity",
    "temporal",
    "uniform",
    "weight_adaptive",
]

Distribution = Literal[
    "baseline",
    "uniform",
    "normal",
    "lognormal",
    "gamma",
    "beta",
    "layer_adaptive",
    "weight_adaptive",
    "temporal",
    "activity",
]
DISTRIBUTIONS: tuple[Distribution, ...] = get_args(Distribution)

_TEMPORAL_FLOOR = 0.25  # what remains of the initial diversity in an adult network


def baseline(like: Tensor) -> Tensor:
    """1 for every weight: the neutral setting.

    Example:
        >>> baseline(torch.zeros(3))
        tensor([1., 1., 1.])
    """
    return torch.ones(like.shape, dtype=torch.float32, device=like.device)


def uniform(like: Tensor, noise: Noise | Draw, nu: float | Tensor) -> Tensor:
    """Uniform on ``[1 - nu, 1 + nu]``; ``nu`` is the half-width, a number or a tensor that broadcasts.

    Example:
        >>> bool((uniform(torch.zeros(1000), Noise(), 0.2) - 1).abs().max() <= 0.2)
        True
    """
    return 1.0 + nu * (2.0 * noise.uniform(like) - 1.0)


def normal(like: Tensor, noise: Noise | Draw, nu: float) -> Tensor:
    """Normal with mean 1 and standard deviation ``nu``.

    Example:
        >>> round(normal(torch.zeros(100_000), Noise(), 0.2).std().item(), 2)
        0.2
    """
    return 1.0 + nu * noise.normal(like)


def lognormal(like: Tensor, noise: Noise | Draw, nu: float) -> Tensor:
    """``exp(N(-nu**2 / 2, nu**2))``: mean 1; standard deviation near ``nu`` for small ``nu``.

    Example:
        >>> round(lognormal(torch.zeros(100_000), Noise(), 0.2).mean().item(), 2)
        1.0
    """
    return torch.exp(nu * noise.normal(like) - nu**2 / 2)


def gamma(like: Tensor, noise: Noise | Draw, nu: float, table: Tensor | None = None) -> Tensor:
    """Gamma with mean 1 and standard deviation ``nu``; all ones for ``nu`` = 0.

    ``table`` is what :func:`~bio_lightning.functional.quantiles.gamma_quantiles` reads.

    Example:
        >>> round(gamma(torch.zeros(100_000), Noise(), 0.2).std().item(), 2)
        0.2
    """
    return baseline(like) if nu == 0 else gamma_quantiles(noise.normal(like), nu, table)


def beta(like: Tensor, noise: Noise | Draw, nu: float) -> Tensor:
    """``1 + nu * sqrt(5) * (2 B - 1)`` with B ~ Beta(2, 2): bounded, mean 1, standard deviation ``nu``.

    The quantile function of Beta(2, 2) has a closed form, so no table is needed.

    Example:
        >>> round(beta(torch.zeros(100_000), Noise(), 0.2).std().item(), 2)
        0.2
    """
    centred = 2.0 * torch.sin(torch.asin(2.0 * noise.uniform(like) - 1.0) / 3.0)
    return 1.0 + nu * math.sqrt(5.0) * centred


def layer_adaptive(like: Tensor, noise: Noise | Draw, nu: float, depth: float | Tensor) -> Tensor:
    """Uniform with a half-width that falls linearly from ``nu`` (``depth`` 0, first layer) to ``nu / 2`` (1, last).

    Example:
        >>> wide, narrow = (layer_adaptive(torch.zeros(1000), Noise(), 0.4, depth) for depth in (0.0, 1.0))
        >>> torch.allclose((wide - 1) / 2, narrow - 1, atol=1e-6)
        True
    """
    return uniform(like, noise, nu * (1.0 - 0.5 * depth))


def weight_adaptive(weight: Tensor, noise: Noise | Draw, nu: float, average: Tensor | None = None) -> Tensor:
    """Uniform with half-width ``nu * clamp(2 - abs(w) / mean abs(w), 0.5, 1.5)``: small weights vary most.

    ``average`` is the layer's mean abs(w), broadcastable, where ``weight`` is only a piece of it.

    Example:
        >>> factor = weight_adaptive(torch.tensor([0.0, 1.0, 5.0]), Noise(), 0.4)
        >>> bool((factor[2] - 1).abs() <= 0.2)
        True
    """
    relative = ratio(weight.abs(), mean_abs(weight) if average is None else average, at_zero=1.0)
    return uniform(weight, noise, nu * (2.0 - relative).clamp(0.5, 1.5))


def temporal(birth: Tensor, decay: float, age: float) -> Tensor:
    """Development: the deviation from 1 of a :func:`uniform` draw shrinks by ``decay ** age``, down to a quarter.

    Example:
        >>> temporal(torch.tensor([0.6, 1.4]), decay=0.5, age=1.0)
        tensor([0.8000, 1.2000])
        >>> temporal(torch.tensor([0.6, 1.4]), decay=0.5, age=100.0)
        tensor([0.9000, 1.1000])
    """
    return developed(birth, remaining_diversity(decay, age))


def remaining_diversity(decay: float, age: float) -> float:
    """Share of the deviation from 1 that is left at an age.

    Example:
        >>> remaining_diversity(0.5, 1.0), remaining_diversity(0.5, 100.0)
        (0.5, 0.25)
    """
    return float(max(decay**age, _TEMPORAL_FLOOR))


def developed(birth: Tensor, remaining: Tensor | float) -> Tensor:
    """What is left of a deviation from 1.

    Example:
        >>> developed(torch.tensor([0.6, 1.4]), 0.5)
        tensor([0.8000, 1.2000])
    """
    return 1.0 + (birth - 1.0) * remaining


def activity(like: Tensor, noise: Noise | Draw, nu: float, rate: Tensor, average: Tensor | None = None) -> Tensor:
    """Uniform, the half-width shared by a neuron's incoming weights: ``nu * (2 - clamp(a / mean a, 0.5, 1.5))``.

    Args:
        like: The weight.
        noise: The draw.
        nu: Half-width of a neuron with the layer's mean rate.
        rate: Firing rate of each weight's postsynaptic neuron, broadcastable to ``like``; every neuron weighs the same
            in the mean.
        average: The layer's mean rate, broadcastable, where ``rate`` is only a piece of it.

    Example:
        >>> rate = torch.tensor([[0.0], [0.2], [1.0]])
        >>> deviation = (activity(torch.zeros(3, 1000), Noise(), 0.4, rate) - 1).abs().amax(dim=1)
        >>> [round(d, 1) for d in deviation.tolist()]
        [0.6, 0.6, 0.2]
    """
    relative = ratio(rate, mean(rate) if average is None else average, at_zero=1.0)
    return uniform(like, noise, nu * (2.0 - relative.clamp(0.5, 1.5)))
