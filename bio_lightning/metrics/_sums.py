"""What metrics that add something up share."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor
from torchmetrics import Metric

__all__ = ["SumsMetric"]


class SumsMetric(Metric):
    """Keeps sums in one state, float64, whose name no other metric has.

    A :class:`torchmetrics.MetricCollection` takes metrics for one whose states agree in name and, after the first
    update, in value. So the name tells class and settings.

    Args:
        columns: How many sums.
        settings: What updates depend on besides their arguments.
        kwargs: Passed to :class:`torchmetrics.Metric`.
    """

    is_differentiable = False
    full_state_update = False

    def __init__(self, columns: int, settings: tuple[object, ...] = (), **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._state = "_".join(map(str, (type(self).__name__, *settings)))
        self.add_state(self._state, torch.zeros(columns, dtype=torch.float64), dist_reduce_fx="sum")

    @property
    def sums(self) -> Tensor:
        """Shape ``(..., columns)``."""
        return cast("Tensor", vars(self)[self._state])

    def add(self, sums: Tensor) -> None:
        """Add some more, shape ``(columns,)``."""
        setattr(self, self._state, self.sums + sums)
