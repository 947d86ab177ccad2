"""Weight splitting: a connection consists of several synapses."""

from __future__ import annotations

import torch
from torch import Tensor

from bio_lightning.functional._layer import computing_dtype
from bio_lightning.functional.noise import Noise

__all__ = ["split_weights", "sum_groups", "synapse_shares"]


def synapse_shares(weight: Tensor, gamma: int, noise: Noise) -> Tensor:
    """Unequal positive shares of ``gamma`` synapses in every connection; they sum to 1.

    Args:
        weight: Any shape.
        gamma: Synapses per connection, >= 1.
        noise: Seed, stream and step of the draw.

    Returns:
        float32 (float64 for a float64 weight), shape ``(gamma, *weight.shape)``; before normalising a share lies in
        (0.5, 1.5).

    Example:
        >>> synapse_shares(torch.zeros(2), 3, Noise()).sum(dim=0)
        tensor([1., 1.])
    """
    raw = 0.5 + noise.uniform(torch.empty(gamma, *weight.shape, device=weight.device)).to(computing_dtype(weight))
    return raw / raw.sum(dim=0, keepdim=True)


@torch.no_grad()
def split_weights(weight: Tensor, gamma: int, noise: Noise) -> Tensor:
    r"""Split every weight into ``gamma`` sub-weights that sum to it and have its sign.

    .. math:: w = \sum_{k=1}^{\gamma} w_k, \qquad w_k = share_k \cdot w

    Returns:
        Shape ``(gamma, *weight.shape)``.

    Example:
        >>> parts = split_weights(torch.tensor([1.0, -2.0]), 2, Noise())
        >>> torch.allclose(parts.sum(dim=0), torch.tensor([1.0, -2.0])), bool((parts[:, 1] < 0).all())
        (True, True)

    References:
        Fares and Stepanyants, Cooperative synapse formation in the neocortex, PNAS 106, 2009; Hofmann et al., Nature
        Communications 16:5112, 2025.
    """
    return (synapse_shares(weight, gamma, noise) * weight).to(weight.dtype)


def sum_groups(x: Tensor, gamma: int, dim: int = -1) -> Tensor:
    """Replace every unit's output by the sum over its group of ``gamma`` consecutive units.

    Args:
        x: Outputs, any rank.
        gamma: Units per group; must divide the size of ``dim``.
        dim: Dimension of the units: -1 for Linear, 1 for convolutions.

    Returns:
        The shape of ``x``.

    Raises:
        ValueError: The units do not divide into groups.

    Example:
        >>> sum_groups(torch.tensor([[1.0, 2.0, 3.0, 4.0]]), 2)
        tensor([[3., 3., 7., 7.]])
    """
    units = x.shape[dim]
    if units % gamma:
        raise ValueError(f"{units} units do not divide into groups of {gamma}")
    dim %= x.ndim
    groups = x.reshape(*x.shape[:dim], units // gamma, gamma, *x.shape[dim + 1 :])
    return groups.sum(dim=dim + 1, keepdim=True).expand_as(groups).reshape(x.shape)
