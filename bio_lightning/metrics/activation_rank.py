"""How many directions activations use."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from bio_lightning.functional.matrix_rank import effective_rank, singular_values_of_gram, stable_rank
from bio_lightning.metrics._units import as_samples, check_units

__all__ = ["ActivationRank"]


class ActivationRank(Metric):
    r"""Stable and effective rank of the activations of one layer, over all samples so far.

    .. math:: \sigma_i^2 = \text{eigenvalues of } \sum_s h_s h_s^\top

    The sum runs over the samples of all updates and processes, so the ranks are those of all samples in one matrix, not
    a mean of the ranks of batches. It takes ``units`` squared float64 numbers, and ``compute`` their eigenvalues: meant
    for layers of up to a few thousand units. Activations are not centred. For the formulas see
    :func:`~bio_lightning.functional.stable_rank` and :func:`~bio_lightning.functional.effective_rank`.

    Args:
        units: Number of units in the layer, >= 1.
        axis: Axis of the units in an activation: the last one, or 1 for images.
        kwargs: Passed to :class:`torchmetrics.Metric`.

    Returns:
        From ``compute``, under ``stable`` and ``effective``: 0-dim float64 tensors, in [1, units], or 0 for a silent
        layer; 0 as long as there is no sample.

    Raises:
        ValueError: ``units`` is out of range.

    Example:
        >>> activation_rank = ActivationRank(units=2)
        >>> activation_rank.update(torch.tensor([[2.0, 0.0]]))
        >>> activation_rank.update(torch.tensor([[0.0, 1.0]]))
        >>> {key: round(value.item(), 3) for key, value in activation_rank.compute().items()}
        {'stable': 1.25, 'effective': 1.89}

    References:
        Rudelson and Vershynin, Sampling from large matrices: an approach through geometric functional analysis, Journal
        of the ACM 54, 2007; Roy and Vetterli, The effective rank: a measure of effective dimensionality, EUSIPCO, 2007;
        Kumar et al., Implicit under-parameterization inhibits data-efficient deep reinforcement learning, ICLR, 2021,
        for what a falling rank says of training.
    """

    is_differentiable = False
    full_state_update = False

    gram: Tensor

    def __init__(self, units: int, axis: int = -1, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.units, self.axis = check_units(units), axis
        self.add_state("gram", torch.zeros(units, units, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, activation: Tensor) -> None:
        """Add some samples.

        Args:
            activation: Shape ``(..., units)``, or with the units on ``axis``; all other axes are samples.

        Raises:
            ValueError: There is another number of units.
        """
        samples = as_samples(activation, self.units, self.axis).to(torch.float64)
        self.gram = self.gram + samples.T @ samples

    def compute(self) -> dict[str, Tensor]:
        """The ranks over all samples so far."""
        singular = singular_values_of_gram(self.gram)
        return {"stable": stable_rank(singular), "effective": effective_rank(singular)}
