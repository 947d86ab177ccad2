"""What the ratio of updates to weights and that of gradients to weights share."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from bio_lightning.metrics._sums import Seen, SumsMetric

__all__ = ["NormRatio", "check_shapes", "squared"]


class NormRatio(SumsMetric):
    """Norm of some tensors over the norm of others; subclasses say which.

    Squares add up, so layers, and the shards of one layer on several processes, give what all in one tensor would.

    Args:
        kwargs: Passed to :class:`torchmetrics.Metric`.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(columns=2, **kwargs)

    @staticmethod
    def reference(seen: Seen) -> Tensor | float:
        """Squares of what an observation is relative to."""
        (sums,) = seen.values()
        return sums[1]

    def compute(self) -> Tensor:
        """The ratio over all layers so far."""
        squares, reference = self.sums.unbind(-1)
        nothing = (squares == 0.0) & (reference == 0.0)
        return (squares / reference).masked_fill_(nothing, 0.0).sqrt()


def squared(piece: Tensor) -> tuple[Tensor]:
    """Sum of squares of a flat piece, in float64: float32 has no squares below 1e-45, and gradients reach those."""
    wide = piece.to(torch.float64)
    return (torch.dot(wide, wide),)


def check_shapes(first: Tensor, second: Tensor) -> None:
    """Two tensors have one shape, so that no broadcasting counts an entry twice.

    Raises:
        ValueError: They differ.
    """
    if first.shape != second.shape:
        raise ValueError(f"shapes: got {tuple(first.shape)} and {tuple(second.shape)}; allowed: the same twice")
