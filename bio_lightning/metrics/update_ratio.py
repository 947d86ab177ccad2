"""How far a step moves the weights."""

from __future__ import annotations

from torch import Tensor

from bio_lightning.functional._layer import add_pieces, computing_dtype
from bio_lightning.functional._shards import whole
from bio_lightning.metrics._norm_ratio import NormRatio, check_shapes, squared
from bio_lightning.metrics._sums import Seen

__all__ = ["UpdateRatio"]


class UpdateRatio(NormRatio):
    r"""Size of an optimizer step relative to the weights.

    .. math:: \sqrt{\frac{\sum_l \|w_l' - w_l\|^2}{\sum_l \|w_l\|^2}}

    Each update adds one layer ``l``; large layers weigh more. Shards of a layer on several processes may be given as
    they are.

    Args:
        kwargs: Passed to :class:`torchmetrics.Metric`.

    Returns:
        From ``compute``: 0-dim float64, >= 0; 0 where nothing moved, also as long as there is no weight; infinite
        where weights moved that were all 0.

    Example:
        >>> import torch
        >>> update_ratio = UpdateRatio()
        >>> update_ratio.update(before=torch.tensor([3.0, 4.0]), after=torch.tensor([3.0, 4.5]))
        >>> update_ratio.compute().item()
        0.1

    References:
        Bernstein et al., On the distance between two neural networks and the stability of learning, NeurIPS, 2020.
    """

    def update(self, before: Tensor, after: Tensor) -> None:
        """Add one layer.

        Args:
            before: Weights before the step, a copy of its own; any shape.
            after: Weights after the step, the same shape.

        Raises:
            ValueError: The shapes differ.
        """
        self.add(self.observe(before, after))

    def observe(self, before: Tensor, after: Tensor, reference: Tensor | float | None = None) -> Seen:
        """What ``update`` adds for the same arguments.

        Args:
            before: Weights before the step.
            after: Weights after the step.
            reference: What the squares of those before add up to, where that is known.
        """
        check_shapes(before, after)
        before = whole(before)
        squares = add_pieces(squared, before) if reference is None else [reference]
        return self.seen([*add_pieces(_squared_moves, before, after), *squares])


def _squared_moves(before: Tensor, after: Tensor) -> tuple[Tensor]:
    dtype = computing_dtype(before)
    return squared(after.to(dtype) - before.to(dtype))
