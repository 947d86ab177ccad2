"""How often neurons fire."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from bio_lightning.functional._layer import ratio, row

__all__ = ["FiringRate"]


class FiringRate(Metric):
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

    is_differentiable = False
    full_state_update = False

    sums: Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.add_state("sums", torch.zeros(2, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, rate: Tensor) -> None:
        """Add some neurons.

        Args:
            rate: Share of positive inputs to each neuron's nonlinearity, in [0, 1]; any shape.
        """
        self.sums = self.sums + row([rate.numel(), rate.sum(dtype=torch.float64)], like=self.sums)

    def compute(self) -> Tensor:
        """The mean over all neurons so far."""
        neurons, total = self.sums.unbind(-1)
        return ratio(total, neurons, at_zero=0.0)
