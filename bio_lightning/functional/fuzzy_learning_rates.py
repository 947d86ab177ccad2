"""Fuzzy learning rates: every synapse has its own plasticity."""

from __future__ import annotations

import torch
from torch import Tensor

from bio_lightning.functional import distributions
from bio_lightning.functional._layer import mean, ratio
from bio_lightning.functional.distributions import Distribution
from bio_lightning.functional.noise import Draw, Noise

__all__ = ["fuzzy_learning_rates", "normalize_multipliers"]


@torch.no_grad()
def fuzzy_learning_rates(
    weight: Tensor,
    noise: Noise | Draw,
    *,
    distribution: Distribution = "lognormal",
    nu: float = 0.16,
    min: float = 0.5,
    max: float = 2.0,
    depth: float | Tensor = 0.0,
    rate: Tensor | None = None,
    decay: float = 0.97,
    age: float = 0.0,
    normalize: bool = True,
    average: Tensor | None = None,
    average_rate: Tensor | None = None,
    table: Tensor | None = None,
) -> Tensor:
    r"""Draw one learning-rate factor per weight, with mean exactly 1 over the layer.

    .. math:: m = \frac{\operatorname{clamp}(x, min, max)}{\overline{\operatorname{clamp}(x, min, max)}}

    with x from one of the :mod:`~bio_lightning.functional.distributions`. Clamping alone would move the mean, and with
    it the learning rate that the user set.

    Args:
        weight: Any shape. Only ``weight_adaptive`` reads its values.
        noise: Seed, stream and step of the draw.
        distribution: One of the ten names.
        nu: Standard deviation, or half-width of the uniform ones; >= 0.
        min: Smallest factor before normalising, in [0, 1].
        max: Largest factor before normalising, >= 1.
        depth: Position of the layer in the network, 0 (first) to 1 (last); ``layer_adaptive`` only.
        rate: Firing rate of the postsynaptic neuron, broadcastable to ``weight``; ``activity`` only, and without it
            every neuron counts as average.
        decay: Factor per unit of age, in (0, 1]; ``temporal`` only.
        age: Developmental age, >= 0; ``temporal`` only.
        normalize: Divide by the mean; what comes out without that, :func:`normalize_multipliers` can divide later.
        average: Mean absolute weight of the layer, where ``weight`` is only a piece of it; ``weight_adaptive`` only.
        average_rate: The layer's mean rate, where ``rate`` is only a piece of it.
        table: The quantiles that ``gamma`` reads, where they are at hand, from
            :func:`~bio_lightning.functional.quantiles.gamma_table`.

    Returns:
        float32 (float64 for a float64 ``weight`` where its values matter), the shape of ``weight``.

    Example:
        >>> noise = Noise(seed=0, stream=1)
        >>> m = fuzzy_learning_rates(torch.zeros(100, 100), noise, distribution="gamma", nu=0.8)
        >>> round(m.mean().item(), 5)
        1.0

    References:
        Hofmann et al., Concept transfer of synaptic diversity from biological to artificial neural networks, Nature
        Communications 16:5112, 2025. Deviation: the mean is restored after clamping.
    """
    if distribution == "baseline":
        factor = distributions.baseline(weight)
    elif distribution == "layer_adaptive":
        factor = distributions.layer_adaptive(weight, noise, nu, depth)
    elif distribution == "weight_adaptive":
        factor = distributions.weight_adaptive(weight, noise, nu, average)
    elif distribution == "temporal":
        factor = distributions.temporal(distributions.uniform(weight, noise, nu), decay, age)
    elif distribution == "activity":
        every = weight.new_ones((1,) * weight.ndim) if rate is None else rate
        factor = distributions.activity(weight, noise, nu, every, average_rate)
    elif distribution == "gamma":
        factor = distributions.gamma(weight, noise, nu, table)
    else:
        draw = {
            "uniform": distributions.uniform,
            "normal": distributions.normal,
            "lognormal": distributions.lognormal,
            "beta": distributions.beta,
        }[distribution]
        factor = draw(weight, noise, nu)
    clamped = factor.clamp(min, max)
    return normalize_multipliers(clamped) if normalize else clamped


def normalize_multipliers(multiplier: Tensor, average: Tensor | None = None) -> Tensor:
    """Divide by the layer's mean, so that the layer learns on average at the rate the user set.

    Args:
        multiplier: Any shape.
        average: The layer's mean, broadcastable, where ``multiplier`` is only a piece of it.

    Example:
        >>> normalize_multipliers(torch.tensor([1.0, 3.0]))
        tensor([0.5000, 1.5000])
    """
    return ratio(multiplier, mean(multiplier) if average is None else average, at_zero=1.0)
