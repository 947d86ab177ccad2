"""How large gradients are beside the weights."""

from __future__ import annotations

from torch import Tensor

from bio_lightning.functional._layer import add_pieces
from bio_lightning.metrics._norm_ratio import NormRatio, check_shapes, squared
from bio_lightning.metrics._sums import Seen

__all__ = ["GradientRatio"]


class GradientRatio(NormRatio):
    r"""Size of gradients relative to the weights.

    .. math:: \sqrt{\frac{\sum_l \|g_l\|^2}{\sum_l \|w_l\|^2}}

    Each update adds one layer ``l``; large layers weigh more. Shards of a layer on several processes may be given as
    they are. Gradients are those after the reduction over processes, unscaled where a GradScaler is at work.

    Args:
        kwargs: Passed to :class:`torchmetrics.Metric`.

    Returns:
        From ``compute``: 0-dim float64, >= 0; 0 where all gradients are 0, also as long as there is no weight; infinite
        where weights have gradients and are all 0.

    Example:
        >>> import torch
        >>> gradient_ratio = GradientRatio()
        >>> gradient_ratio.update(grad=torch.tensor([0.0, 1.0]), weight=torch.tensor([3.0, 4.0]))
        >>> gradient_ratio.compute().item()
        0.2

    References:
        You et al., Large batch training of convolutional networks, arXiv:1708.03888, 2017: the inverse of the ratio is
        what sets a layer's learning rate there.
    """

    def update(self, grad: Tensor, weight: Tensor) -> None:
        """Add one layer.

        Args:
            grad: Gradients, any shape.
            weight: The weights, the same shape.

        Raises:
            ValueError: The shapes differ.
        """
        self.add(self.observe(grad, weight))

    def observe(self, grad: Tensor, weight: Tensor) -> Seen:
        """What ``update`` adds for the same arguments."""
        check_shapes(grad, weight)
        return self.seen([*add_pieces(squared, grad), *add_pieces(squared, weight)])
