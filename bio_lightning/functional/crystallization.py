"""Crystallization: synapses that are well optimised, or strongly driven, become rigid."""

from __future__ import annotations

import torch
from torch import Tensor

from bio_lightning.functional._compiling import computed_once
from bio_lightning.functional._layer import mean, mean_abs
from bio_lightning.functional._masks import both, choose, either, greater, less

__all__ = ["crystallize", "frequently_used", "highly_active", "settled_or_strong"]


@torch.no_grad()
def settled_or_strong(
    weight: Tensor,
    grad: Tensor,
    *,
    crystal_thresh: float = 4.5e-5,
    ignore_zero_grad: bool = True,
    average: Tensor | None = None,
) -> Tensor:
    r"""Which synapses crystallize by their gradient.

    .. math:: |g| < thresh \cdot |w| \quad\text{or}\quad |g| > \overline{|w|}

    Args:
        weight: Any shape.
        grad: Raw gradient of the whole optimizer step, before any factor; the shape of ``weight``.
        crystal_thresh: Relative gradient below which a weight is well optimised, >= 0.
        ignore_zero_grad: An exactly zero gradient (a dead unit, a constant pixel) is no evidence.
        average: Mean absolute weight of the layer, broadcastable, where ``weight`` is only a piece of it.

    Returns:
        bool, the shape of ``weight``; False where the gradient is not finite.

    Example:
        >>> settled_or_strong(torch.ones(4), torch.tensor([0.0, 1e-5, 0.1, 5.0]))
        tensor([False,  True, False,  True])
    """
    return hits(weight, grad, crystal_thresh, ignore_zero_grad, average).to(torch.bool)


def hits(
    weight: Tensor, grad: Tensor, crystal_thresh: float, ignore_zero_grad: bool, average: Tensor | None = None
) -> Tensor:
    """:func:`settled_or_strong` as a mask of ``_masks``."""
    size = grad.abs()
    average = mean_abs(weight) if average is None else average
    settled = less(size, weight.abs().mul_(crystal_thresh))
    if ignore_zero_grad:
        settled = both(settled, greater(size, 0.0))
    infinity = torch.full_like(average, torch.inf)
    large = computed_once(torch.where(average > 0, average, infinity))  # a layer of zeros has no strong signals
    strong = greater(size, large)
    return both(either(settled, strong), less(size, torch.inf))  # NaN is neither small nor large


@torch.no_grad()
def highly_active(rate: Tensor, use_thresh: float = 1.5) -> Tensor:
    """Which neurons fire above ``use_thresh`` times their layer's mean rate.

    Example:
        >>> highly_active(torch.tensor([0.1, 0.9]))
        tensor([False,  True])
    """
    return rate > use_thresh * mean(rate)


@torch.no_grad()
def frequently_used(pre_rate: Tensor, post_rate: Tensor, *, use_thresh: float = 1.5) -> Tensor:
    """Which synapses crystallize by use: both neurons fire above ``use_thresh`` times their layer's mean rate.

    Args:
        pre_rate: Firing rates of the presynaptic neurons, broadcastable to the weight.
        post_rate: Firing rates of the postsynaptic neurons, broadcastable to the weight.
        use_thresh: Multiple of the mean rate, >= 0.

    Returns:
        bool, the broadcast shape.

    Example:
        >>> frequently_used(torch.tensor([[0.1, 0.9]]), torch.tensor([[0.9], [0.1]]))
        tensor([[False,  True],
                [False, False]])
    """
    return highly_active(pre_rate, use_thresh) & highly_active(post_rate, use_thresh)


@torch.no_grad()
def crystallize(
    crystal: Tensor, mask: Tensor, *, dampening_factor: float = 0.6, floor: float = 0.05, recovery: float = 0.01
) -> Tensor:
    r"""New rigidity factor of every synapse.

    .. math:: c \leftarrow \max(c \cdot dampening, floor) \text{ where } mask, \quad
              c \leftarrow c + recovery (1 - c) \text{ elsewhere}

    Args:
        crystal: Current c in (0, 1], any shape.
        mask: Which synapses crystallize, from :func:`settled_or_strong` or :func:`frequently_used`; bool, or 0 and 1.
        dampening_factor: Factor per hit, in (0, 1].
        floor: Smallest c, in (0, 1]. A c below it (an old floor's) is raised only when hit.
        recovery: Share of the lost plasticity regained per step without a hit, in [0, 1].

    Returns:
        New c, the shape of ``crystal``.

    Example:
        >>> crystallize(torch.tensor([1.0, 0.5]), torch.tensor([True, False]), recovery=0.1)
        tensor([0.6000, 0.5500])

    References:
        Hofmann et al., Nature Communications 16:5112, 2025. Deviations: floor, recovery, raw gradient.
    """
    hit = (crystal * dampening_factor).clamp_(min=floor)
    return choose(mask, hit, torch.lerp(crystal, crystal.new_ones(()), recovery))
