"""How many synapses are rigid."""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import Tensor

from bio_lightning.functional._layer import add_pieces, computing_dtype, ratio
from bio_lightning.functional._masks import count, less
from bio_lightning.metrics._sums import Seen, SumsMetric

__all__ = ["CrystallizedFraction"]


class CrystallizedFraction(SumsMetric):
    r"""Share of synapses that have lost most of their plasticity.

    .. math:: \frac{1}{n} \sum_i [c_i < \text{below}]

    Args:
        below: A synapse counts as crystallized while its remaining plasticity ``c`` is smaller, in (0, 1]; by default
            while it has lost more than half. At the defaults of ``Crystallization`` that takes two hits.
        kwargs: Passed to :class:`torchmetrics.Metric`.

    Returns:
        From ``compute``: a share in [0, 1], 0-dim float64; 0 as long as there is no synapse.

    Raises:
        ValueError: ``below`` is out of range.

    Example:
        >>> import torch
        >>> crystallized = CrystallizedFraction()
        >>> crystallized.update(torch.tensor([1.0, 0.6, 0.36, 0.05]))
        >>> crystallized.compute().item()
        0.5
    """

    def __init__(self, below: float = 0.5, **kwargs: Any) -> None:
        super().__init__(columns=2, settings=(below,), **kwargs)
        if not 0 < below <= 1:
            raise ValueError(f"below: got {below!r}; allowed: a number in (0, 1]")
        self.below = below

    def update(self, crystal: Tensor, below: float | None = None) -> None:
        """Add some synapses.

        Args:
            crystal: What is left of each synapse's plasticity, in (0, 1]; any shape.
            below: Their own limit; None for the metric's.
        """
        self.add(self.observe(crystal, below))

    def observe(self, crystal: Tensor, below: float | None = None) -> Seen:
        """What ``update`` adds for the same arguments."""
        limit = self.below if below is None else below
        return self.seen(add_pieces(partial(_sums, limit=limit), crystal))

    def compute(self) -> Tensor:
        """The share of all synapses so far."""
        synapses, crystallized = self.sums.unbind(-1)
        return ratio(crystallized, synapses, at_zero=0.0)


def _sums(crystal: Tensor, limit: float) -> tuple[int, Tensor]:
    """How many synapses, and how many of them are crystallized."""
    return crystal.numel(), count(less(crystal.to(computing_dtype(crystal)), limit))
