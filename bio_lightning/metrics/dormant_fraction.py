"""How many neurons do nothing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from bio_lightning.functional.dormancy import dormancy_score
from bio_lightning.metrics._units import as_samples, check_units

__all__ = ["DormantFraction"]


class DormantFraction(Metric):
    r"""Share of units whose mean absolute activation is at most tau times the mean of their layer.

    .. math:: s_i = \frac{\overline{|h_i|}}{\frac{1}{n_l} \sum_{k \in l} \overline{|h_k|}} \qquad
        \text{dormant}_\tau = \frac{\sum_l \sum_{i \in l} [s_i \le \tau]}{\sum_l n_l}

    The mean :math:`\overline{|h_i|}` runs over the samples of all updates and processes: a unit that a single batch on
    a single process excites is not silent. Firing rates will do in place of activations. With several layers ``l``
    every unit counts once.

    Args:
        units: Number of units, >= 1; of several layers, in the order in which ``update`` takes them.
        tau: Largest score of a dormant unit, >= 0; one or several.
        axis: Axis of the units in an activation: the last one, or 1 for images.
        kwargs: Passed to :class:`torchmetrics.Metric`.

    Returns:
        From ``compute``, under ``tau_0``, ``tau_0.025`` and so on: shares in [0, 1], 0-dim float64 tensors. All units
        of a silent layer are dormant; without a sample none is.

    Raises:
        ValueError: ``units`` or ``tau`` is out of range.

    Example:
        >>> dormant = DormantFraction(units=4)
        >>> dormant.update(torch.tensor([[0.0, 0.1, -9.0, 3.0], [0.0, 0.1, 5.0, -3.0]]))
        >>> {key: value.item() for key, value in dormant.compute().items()}
        {'tau_0': 0.25, 'tau_0.025': 0.25, 'tau_0.1': 0.5}

    References:
        Sokar et al., The dormant neuron phenomenon in deep reinforcement learning, ICML, 2023.
    """

    is_differentiable = False
    full_state_update = False

    activity: Tensor
    samples: Tensor

    def __init__(
        self,
        units: int | Sequence[int],
        tau: float | Sequence[float] = (0.0, 0.025, 0.1),
        axis: int = -1,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.units = [check_units(each) for each in (units if isinstance(units, Sequence) else [units])]
        self.tau = tuple(tau) if isinstance(tau, Sequence) else (tau,)
        self.axis = axis
        if not self.units:
            raise ValueError("units: got none; allowed: one whole number >= 1 or several")
        if not self.tau or not all(each >= 0 for each in self.tau):
            raise ValueError(f"tau: got {tau!r}; allowed: numbers >= 0, at least one")
        self.add_state("activity", torch.zeros(sum(self.units), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("samples", torch.zeros(len(self.units), dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, *activations: Tensor) -> None:
        """Add some samples.

        Args:
            activations: One per layer, each of shape ``(..., units)``, or with the units on ``axis``; all other axes
                are samples, whose number may differ between layers.

        Raises:
            ValueError: There is another number of layers or units.
        """
        if len(activations) != len(self.units):
            raise ValueError(f"activations: got {len(activations)}; allowed: {len(self.units)}, one per layer")
        rows = [as_samples(each, units, self.axis) for each, units in zip(activations, self.units, strict=True)]
        self.activity = self.activity + torch.cat([each.abs().sum(0, dtype=torch.float64) for each in rows])
        self.samples = self.samples + torch.tensor([len(each) for each in rows], device=self.samples.device)

    def compute(self) -> dict[str, Tensor]:
        """The shares over all units, from all samples so far."""
        layers = zip(torch.split(self.activity, self.units), self.samples, strict=True)
        # what sums share, the number of samples, cancels in a score
        score = torch.cat([dormancy_score(sums).masked_fill_(samples == 0.0, torch.inf) for sums, samples in layers])
        shares = torch.stack([score <= tau for tau in self.tau]).mean(-1, dtype=score.dtype)
        shares.masked_fill_(score.isnan().any(), torch.nan)
        return dict(zip((f"tau_{tau:g}" for tau in self.tau), shares.unbind(), strict=True))
