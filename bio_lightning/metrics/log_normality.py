"""Whether synapses are distributed like those of the cortex."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from bio_lightning.functional._layer import add_pieces, computing_dtype, is_at_hand, ratio
from bio_lightning.functional._masks import count, greater
from bio_lightning.metrics._sums import Seen, SumsMetric

__all__ = ["LogNormality"]

_CONSTANT = 1e-9  # squared coefficient of variation that rounding in sums of cubes could pass off as skewness


class LogNormality(SumsMetric):
    r"""Mean, standard deviation and skewness of the logarithm of weight magnitudes.

    .. math:: x_i = \ln |w_i| \qquad \text{skew} = \frac{\frac{1}{n} \sum_i (x_i - \bar{x})^3}{\text{std}^3}

    Magnitudes that are log-normal have a skewness of 0; those of normal weights have one of -1.5. Every synapse counts
    once: updates with several layers give what one update with all of them would give. Weights of exactly 0 are no
    synapses and are left out. Logarithms are taken in float32, or in float64 of weights in float64. Standard deviation
    and skewness are the population's; where magnitudes differ by less than 3e-5 of the mean logarithm both are 0.

    Args:
        kwargs: Passed to :class:`torchmetrics.Metric`.

    Returns:
        From ``compute``, under ``mean``, ``std`` and ``skew``: 0-dim float64 tensors; 0 as long as there is no synapse.

    Example:
        >>> log_normality = LogNormality()
        >>> log_normality.update(torch.tensor([0.1, -1.0, 10.0, 0.0]))
        >>> {key: round(value.item(), 3) + 0 for key, value in log_normality.compute().items()}
        {'mean': 0.0, 'std': 1.88, 'skew': 0.0}

    References:
        Loewenstein et al., Multiplicative dynamics underlie the emergence of the log-normal distribution of spine sizes
        in the neocortex in vivo, Journal of Neuroscience 31, 2011; Song et al., Highly nonrandom features of synaptic
        connectivity in local cortical circuits, PLoS Biology 3, 2005.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(columns=4, **kwargs)

    def update(self, weight: Tensor) -> None:
        """Add some synapses.

        Args:
            weight: Weights of any shape; signs do not matter.
        """
        self.add(self.observe(weight))

    def observe(self, weight: Tensor) -> Seen:
        """What ``update`` adds for the same arguments."""
        return self.seen(add_pieces(_sums, weight))

    def compute(self) -> dict[str, Tensor]:
        """The three statistics of all synapses so far."""
        mean, square, cube = ratio(self.sums[..., 1:], self.sums[..., :1], at_zero=0.0).unbind(-1)
        variance = square - mean.square()
        constant = variance <= _CONSTANT * square
        std = variance.masked_fill_(constant, 0.0).sqrt()
        third = cube - 3.0 * mean * square + 2.0 * mean**3
        return {"mean": mean, "std": std, "skew": (third / std**3).masked_fill_(constant, 0.0)}


def _sums(weight: Tensor) -> tuple[Tensor | int, ...]:
    """How many synapses, and sums of their logarithms, of the squares and of the cubes."""
    logs = weight.abs().to(computing_dtype(weight)).log_().to(torch.float64)
    synapses: Tensor | int = weight.numel()
    total = logs.sum()
    if not (is_at_hand(total) and math.isfinite(total)):  # else no weight is 0
        synapses = count(greater(logs, -torch.inf))
        logs.nan_to_num_(nan=torch.nan, posinf=torch.inf, neginf=0.0)  # a log of 0 adds nothing
        total = logs.sum()
    square = logs.square()
    return synapses, total, square.sum(), torch.dot(square, logs)  # a sum rounds less, and the variance is a difference
