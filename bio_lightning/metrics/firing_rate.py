"""How often neurons fire."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from bio_lightning.functional._layer import ratio
from bio_lightning.metrics._sums import Seen, SumsMetric

__all__ = ["FiringRate"]


class FiringRate(SumsMetric):
    r"""Mean firing rate of neurons.

    .. math:: \frac{1}{n} \sum_i a_i

    Every neuron counts once, whatever the size of its layer.

    Args:
        kwargs: Passed to :class:`torchmetrics.Metric`.

    Returns:
        From ``compute``: a share in [0, 1], 0-dim float64; 0 as long as there is no neuron.

    Example:
        >>> firing_rate = FiringRate()
        >>> firing_rate.update(torch.tensor([0.0, 0.5, 0.25]))
        >>> firing_rate.compute().item()
        0.25
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(columns=2, **kwargs)

    def update(self, rate: Tensor) -> None:
        """Add some neurons.

        Args:
            rate: Share of positive inputs to each neuron's nonlinearity, in [0, 1]; any shape.
        """
        self.add(self.observe(rate))

    def observe(self, rate: Tensor) -> Seen:
        """What ``update`` adds for the same arguments."""
        return self.seen([rate.numel(), rate.sum(dtype=torch.float64)])

    @property
    def neurons(self) -> Tensor:
        """How many there are so far."""
        return self.sums[..., 0]

    def compute(self) -> Tensor:
        """The mean over all neurons so far."""
        return ratio(self.sums[..., 1], self.neurons, at_zero=0.0)
