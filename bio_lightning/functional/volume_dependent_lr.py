"""Volume-dependent learning rates: large synapses are stable, small ones change fast and erratically."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from bio_lightning.functional._layer import computing_dtype, mean, mean_abs, ratio
from bio_lightning.functional.noise import Noise

__all__ = ["volume_dependent_lr"]


@torch.no_grad()
def volume_dependent_lr(
    weight: Tensor,
    noise: Noise,
    *,
    base_lr: float = 0.1,
    stability_factor: float = 2.0,
    lr_variability: float = 0.2,
    reference: Literal["layer_mean", "absolute"] = "layer_mean",
    normalize: bool = True,
) -> Tensor:
    r"""Learning-rate factor of every weight from the volume of its spine.

    .. math::
        v = \frac{|w|}{|w| + r}, \qquad
        \mu = e^{-stability \cdot v} \Big/ \overline{e^{-stability \cdot v}}, \qquad
        f = |\mathcal N(\mu, (variability \cdot \mu)^2)|

    Args:
        weight: Any shape.
        noise: Seed, stream and step of the draw.
        base_lr: Replaces the division by the mean when ``normalize`` is false; > 0.
        stability_factor: How much faster small weights learn than large ones; in [0, 80], beyond which float32 has no
            room for the factor of a large weight.
        lr_variability: Standard deviation of the factor relative to its mean; >= 0.
        reference: The weight at half the largest volume: the layer's mean absolute weight, or 1.
        normalize: Keep the layer's mean learning rate (before the noise) what the user set.

    Returns:
        The shape of ``weight``, >= 0, float32 or wider.

    Example:
        >>> volume_dependent_lr(torch.tensor([0.0, 1.0]), Noise(), lr_variability=0.0, normalize=False, base_lr=1.0)
        tensor([1.0000, 0.2636])

    References:
        Kasai et al., Structural dynamics of dendritic spines in memory and cognition, Trends in Neurosciences 33, 2010;
        Hofmann et al., Nature Communications 16:5112, 2025. Deviations: scale-free reference, normalised mean.
    """
    size = weight.abs().to(computing_dtype(weight))
    half = mean_abs(weight) if reference == "layer_mean" else torch.ones_like(mean_abs(weight))
    volume = ratio(size, size + half, at_zero=0.0)
    expected = torch.exp(-stability_factor * volume)
    expected = ratio(expected, mean(expected), at_zero=1.0) if normalize else base_lr * expected
    return (expected * (1.0 + lr_variability * noise.normal(weight))).abs()
