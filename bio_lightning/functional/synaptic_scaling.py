"""Synaptic scaling: neurons regulate their incoming weights toward a target firing rate."""

from __future__ import annotations

import torch
from torch import Tensor

from bio_lightning.functional._compiling import computed_once
from bio_lightning.functional._layer import mean

__all__ = ["MIN_RATE", "scale_grad", "scaling_factor", "target_rate", "tetzlaff_change"]

MIN_RATE = 1e-3  # a silent neuron's rate in a ratio


def target_rate(rate: Tensor, target: float | str) -> Tensor:
    """The rate that neurons regulate toward: the layer's mean, or a number.

    Example:
        >>> target_rate(torch.tensor([0.2, 0.4]), "layer_mean")
        tensor(0.3000)
    """
    return mean(rate) if isinstance(target, str) else torch.full_like(mean(rate), target)


@torch.no_grad()
def scaling_factor(
    rate: Tensor,
    average: Tensor | None = None,
    *,
    target: float | str = "layer_mean",
    strength: float = 1.0,
    min: float = 0.5,
    max: float = 2.0,
) -> Tensor:
    r"""Factor on the gradients of each neuron's incoming weights.

    .. math:: f_i = \operatorname{clamp}((a^* / a_i)^{strength}, min, max)

    Args:
        rate: Firing rates a, any shape, in [0, 1].
        average: Mean rate of the layer, broadcastable, where ``rate`` is only a piece of it.
        target: ``"layer_mean"`` or a rate in (0, 1].
        strength: Exponent, >= 0; 0 is neutral.
        min: Smallest factor, in [0, 1].
        max: Largest factor, >= 1.

    Returns:
        The shape of ``rate``.

    Example:
        >>> scaling_factor(torch.tensor([0.1, 0.2, 0.4]), target=0.2)
        tensor([2.0000, 1.0000, 0.5000])
    """
    wanted = target_rate(rate, target) if average is None or not isinstance(target, str) else average
    return computed_once((wanted.clamp(min=MIN_RATE) / rate.clamp(min=MIN_RATE)).pow(strength).clamp(min, max))


@torch.no_grad()
def scale_grad(
    grad: Tensor,
    rate: Tensor,
    *,
    target: float | str = "layer_mean",
    strength: float = 1.0,
    min: float = 0.5,
    max: float = 2.0,
) -> Tensor:
    """Gradient of a weight ``(out, in, ...)`` with every output neuron's row times its :func:`scaling_factor`.

    Example:
        >>> scale_grad(torch.ones(2, 2), torch.tensor([0.1, 0.3]), target=0.2)
        tensor([[2.0000, 2.0000],
                [0.6667, 0.6667]])

    References:
        Turrigiano, The self-tuning neuron: synaptic scaling of excitatory synapses, Cell 135, 2008.
    """
    factor = scaling_factor(rate, target=target, strength=strength, min=min, max=max)
    return (grad * factor.view(-1, *(1,) * (grad.ndim - 1))).to(grad.dtype)


@torch.no_grad()
def tetzlaff_change(
    weight: Tensor, rate: Tensor, *, target: Tensor | float, step_size: float, max_change: float = 0.01
) -> Tensor:
    r"""Homeostatic change of every weight, to be added after the optimizer step.

    .. math:: \Delta w = \operatorname{clamp}(\eta (a^* - a_i) w^2, \pm max\_change \cdot |w|)

    Args:
        weight: Any shape.
        rate: Firing rate of each weight's postsynaptic neuron, broadcastable to ``weight``.
        target: Target rate a*.
        step_size: Learning rate times the rate of homeostasis, >= 0.
        max_change: Largest change relative to the weight, in [0, 1].

    Returns:
        The shape of ``weight``. Where a neuron is too quiet, excitation grows and inhibition shrinks.

    Example:
        >>> tetzlaff_change(torch.tensor([2.0, -2.0]), torch.tensor(0.1), target=0.3, step_size=0.1, max_change=1.0)
        tensor([0.0800, 0.0800])

    References:
        Tetzlaff et al., Synaptic scaling in combination with many generic plasticity mechanisms stabilizes circuit
        connectivity, Frontiers in Computational Neuroscience 5:47, 2011.
    """
    change = step_size * (target - rate) * weight.square()
    limit = max_change * weight.abs()
    return torch.minimum(torch.maximum(change, -limit), limit)
