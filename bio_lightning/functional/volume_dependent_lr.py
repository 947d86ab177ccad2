"""Volume-dependent learning rates: large synapses are stable, small ones change fast and erratically."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from bio_lightning.functional._compiling import computed_once
from bio_lightning.functional._exponential import exp_of_negative
from bio_lightning.functional._layer import computing_dtype, mean, mean_abs
from bio_lightning.functional.noise import Draw, Noise

__all__ = ["stability", "volume_dependent_lr"]

Reference = Literal["layer_mean", "absolute"]
#: Larger factors would take more squarings than the precision allows.
_POLYNOMIAL_UP_TO = 4.0


def stability(
    weight: Tensor, average: Tensor | None = None, *, stability_factor: float = 2.0, reference: Reference = "layer_mean"
) -> Tensor:
    r"""How fast a weight learns because of its volume: :math:`e^{-stability \cdot v}`.

    Args:
        weight: Any shape.
        average: Mean absolute weight of the layer, broadcastable, where ``weight`` is only a piece of it.
        stability_factor: See :func:`volume_dependent_lr`.
        reference: See :func:`volume_dependent_lr`.

    Example:
        >>> stability(torch.tensor([0.0, 1.0]), torch.tensor(1.0))
        tensor([1.0000, 0.3679])
    """
    size = weight.abs().to(computing_dtype(weight))
    half: Tensor | float = 1.0
    if reference == "layer_mean":
        half = mean_abs(weight) if average is None else average
        half = computed_once(half.clamp(min=torch.finfo(half.dtype).tiny))  # a layer of zeros has no volume
    volume = size.div_(size + half)
    if torch.compiler.is_compiling() and stability_factor <= _POLYNOMIAL_UP_TO:
        squarings = 0 if stability_factor <= 1 else 1 if stability_factor <= 2 else 2
        return exp_of_negative(volume, stability_factor, squarings)
    return volume.mul_(-stability_factor).exp_()


@torch.no_grad()
def volume_dependent_lr(
    weight: Tensor,
    noise: Noise | Draw,
    *,
    base_lr: float = 0.1,
    stability_factor: float = 2.0,
    lr_variability: float = 0.2,
    reference: Reference = "layer_mean",
    normalize: bool = True,
    average: Tensor | None = None,
    average_stability: Tensor | None = None,
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
        average: Mean absolute weight of the layer, broadcastable, where ``weight`` is only a piece of it.
        average_stability: The layer's mean :func:`stability`, likewise.

    Returns:
        The shape of ``weight``, >= 0, float32 or wider.

    Example:
        >>> volume_dependent_lr(torch.tensor([0.0, 1.0]), Noise(), lr_variability=0.0, normalize=False, base_lr=1.0)
        tensor([1.0000, 0.2636])

    References:
        Kasai et al., Structural dynamics of dendritic spines in memory and cognition, Trends in Neurosciences 33, 2010;
        Hofmann et al., Nature Communications 16:5112, 2025. Deviations: scale-free reference, normalised mean.
    """
    expected = stability(weight, average, stability_factor=stability_factor, reference=reference)
    if normalize:
        average_stability = mean(expected) if average_stability is None else average_stability
        expected.mul_(computed_once(average_stability.reciprocal()))
    else:
        expected.mul_(base_lr)
    return expected.addcmul_(expected, noise.normal(weight), value=lr_variability).abs_()
