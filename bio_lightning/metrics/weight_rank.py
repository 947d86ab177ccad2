"""How many directions weights use."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from bio_lightning.functional._layer import ratio
from bio_lightning.functional.matrix_rank import effective_rank, singular_values, stable_rank
from bio_lightning.metrics._sums import Seen, SumsMetric

__all__ = ["WeightRank"]


class WeightRank(SumsMetric):
    """Stable and effective rank of weights, as means over layers.

    Each update adds one layer and takes its singular values in float64, which for large layers lasts: log it rarely.
    Every layer counts once. A layer has to come whole: the rank of a matrix is not one of its shards. For the formulas
    see :func:`~bio_lightning.functional.stable_rank` and :func:`~bio_lightning.functional.effective_rank`.

    Args:
        kwargs: Passed to :class:`torchmetrics.Metric`.

    Returns:
        From ``compute``, under ``stable`` and ``effective``: 0-dim float64 tensors, in [1, min(out, in)], or 0 for
        layers of zeros; 0 as long as there is no layer.

    Example:
        >>> import torch
        >>> weight_rank = WeightRank()
        >>> weight_rank.update(torch.tensor([[2.0, 0.0, 0.0], [0.0, 1.0, 0.0]]))
        >>> {key: round(value.item(), 3) for key, value in weight_rank.compute().items()}
        {'stable': 1.25, 'effective': 1.89}

    References:
        Rudelson and Vershynin, Sampling from large matrices: an approach through geometric functional analysis, Journal
        of the ACM 54, 2007; Roy and Vetterli, The effective rank: a measure of effective dimensionality, EUSIPCO, 2007.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(columns=3, **kwargs)

    def update(self, weight: Tensor) -> None:
        """Add one layer.

        Args:
            weight: Shape ``(out, in, ...)``; all axes behind the first are taken as one. Without elements it is no
                layer.

        Raises:
            ValueError: ``weight`` has fewer than two axes.
        """
        self.add(self.observe(weight))

    def observe(self, weight: Tensor) -> Seen:
        """What ``update`` adds for the same arguments."""
        singular = singular_values(weight)
        if singular.numel() == 0:
            return self.seen([0, 0, 0])
        return self.seen([1, stable_rank(singular), effective_rank(singular)])

    def compute(self) -> dict[str, Tensor]:
        """The means over all layers so far."""
        means = ratio(self.sums[..., 1:], self.sums[..., :1], at_zero=0.0)
        return dict(zip(("stable", "effective"), means.unbind(-1), strict=True))
