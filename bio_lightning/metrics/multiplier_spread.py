"""How far the learning rates of synapses spread."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from bio_lightning.functional._layer import add_pieces, ratio
from bio_lightning.functional._shards import whole
from bio_lightning.functional._sketch import BINS, sketch, sketched_quantiles
from bio_lightning.metrics._sums import Seen, SumsMetric

__all__ = ["MultiplierSpread"]


class MultiplierSpread(SumsMetric):
    r"""Mean, standard deviation, minimum, maximum and quantiles of multipliers on the learning rate.

    .. math:: \text{mean} = 1 + \frac{1}{n} \sum_i (m_i - 1) \qquad
        \text{std} = \sqrt{\tfrac{1}{n} \sum_i (m_i - 1)^2 - (\text{mean} - 1)^2}

    Every synapse counts once: updates with several layers give what one update with all of them would give. The
    standard deviation is the population's. Sums are taken in float64, of the distance to the neutral multiplier 1, so
    that a narrow spread around 1 is not lost in rounding. A quantile is within 0.4 % of a multiplier that was there; it
    comes from counts in about 5,000 bins, each less than 1 % wide; their number does not grow with that of synapses.

    Args:
        quantiles: Probabilities in [0, 1]; the quantile at ``p`` is the multiplier with ``floor(p * (n - 1))`` smaller
            ones. Without any, the counts are spared. Multipliers below 1e-6 count as 0 there, above 1e6 as 1e6.
        kwargs: Passed to :class:`torchmetrics.Metric`.

    Returns:
        From ``compute``, under ``mean``, ``std``, ``min`` and ``max``: 0-dim float64 tensors; 1, 0, 1, 1 as long as
        there is no synapse. Each of the ``quantiles`` under ``quantile_0.05`` and so on, 1 without a synapse.

    Raises:
        ValueError: ``quantiles`` are out of range.

    Example:
        >>> spread = MultiplierSpread()
        >>> spread.update(torch.tensor([[0.5, 1.5], [0.5, 1.5]]))
        >>> {key: value.item() for key, value in spread.compute().items()}
        {'mean': 1.0, 'std': 0.5, 'min': 0.5, 'max': 1.5}
        >>> median = MultiplierSpread(quantiles=(0.5,))
        >>> median.update(torch.tensor([0.5, 0.8, 2.0]))
        >>> round(median.compute()["quantile_0.5"].item(), 2)
        0.8

    References:
        Masson et al., DDSketch: a fast and fully-mergeable quantile sketch with relative-error guarantees, VLDB, 2019.
    """

    extremes: Tensor  # the lowest, negated, and the highest
    bins: Tensor

    def __init__(self, quantiles: tuple[float, ...] = (), **kwargs: Any) -> None:
        super().__init__(columns=3, **kwargs)
        if not all(0 <= probability <= 1 for probability in quantiles):
            raise ValueError(f"quantiles: got {quantiles!r}; allowed: numbers in [0, 1]")
        self.quantiles = tuple(quantiles)
        self.add_state("extremes", torch.full((2,), -torch.inf, dtype=torch.float64), dist_reduce_fx="max")
        if self.quantiles:
            self.add_state("bins", torch.zeros(BINS, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, multiplier: Tensor) -> None:
        """Add the multipliers of some synapses.

        Args:
            multiplier: Any shape; 1 is neutral.
        """
        self.add(self.observe(multiplier))

    def observe(self, multiplier: Tensor) -> Seen:
        """What ``update`` adds for the same arguments."""
        multiplier = whole(multiplier)
        seen = self.seen(add_pieces(_sums, multiplier))
        seen["extremes"] = _extremes(multiplier)
        if self.quantiles:
            seen["bins"] = sketch(multiplier)
        return seen

    def compute(self) -> dict[str, Tensor]:
        """The statistics of all multipliers so far."""
        offset, square = ratio(self.sums[..., 1:], self.sums[..., :1], at_zero=0.0).unbind(-1)
        variance = square - offset.square()
        negated, highest = self.extremes.unbind(-1)
        empty = self.sums[..., 0] == 0.0
        lowest, highest = (-negated).masked_fill(empty, 1.0), highest.masked_fill(empty, 1.0)
        return {
            "mean": 1.0 + offset,
            "std": variance.clamp(min=0.0).sqrt(),
            "min": lowest,
            "max": highest,
            **self._quantiles(lowest, highest),
        }

    def _quantiles(self, lowest: Tensor, highest: Tensor) -> dict[str, Tensor]:
        """What the bins say, within what is known to be there: so constant multipliers have exact quantiles."""
        if not self.quantiles:
            return {}
        estimates = sketched_quantiles(self.bins, self.quantiles)
        quantiles = estimates.clamp(lowest.unsqueeze(-1), highest.unsqueeze(-1)).unbind(-1)
        return {f"quantile_{each:g}": quantile for each, quantile in zip(self.quantiles, quantiles, strict=True)}


def _extremes(multiplier: Tensor) -> tuple[Tensor | float, ...]:
    """The lowest, negated, and the highest; of nothing less than any."""
    if multiplier.numel() == 0:
        return -torch.inf, -torch.inf
    lowest, highest = torch.aminmax(multiplier)
    return -lowest.to(torch.float64), highest


def _sums(multiplier: Tensor) -> tuple[Tensor | int, ...]:
    """How many there are, sums of how far they are from neutral, and of the squares."""
    distance = multiplier.to(torch.float64, copy=True).sub_(1.0)
    return distance.numel(), distance.sum(), torch.dot(distance, distance)
