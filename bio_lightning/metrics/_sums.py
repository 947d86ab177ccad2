"""What metrics that add something up share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_max

from bio_lightning.functional._layer import is_at_hand, row

__all__ = ["Seen", "SumsMetric"]

#: What one update adds to the states, by their names: numbers, or a state's worth of them in one tensor.
Seen = dict[str, "Sequence[Tensor | float] | Tensor"]


class SumsMetric(Metric):
    """Keeps sums in one state, float64, whose name no other metric has; subclasses may keep more beside it.

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

    def observe(self, *_: Any, **__: Any) -> Seen:
        """What ``update`` adds for the same arguments; whoever sees many layers puts together what all of them add."""
        raise NotImplementedError

    def seen(self, sums: Sequence[Tensor | float] | Tensor) -> Seen:
        """Sums by the name of their state."""
        return {self._state: sums}

    def add(self, seen: Seen) -> None:
        """Add what was observed."""
        for name, numbers in seen.items():
            state = cast("Tensor", vars(self)[name])
            more = numbers
            if not isinstance(more, Tensor):  # those on another device than the state stay there, and torch says so
                elsewhere = (each for each in more if isinstance(each, Tensor) and not is_at_hand(each))
                more = row(more, like=next(elsewhere, state))
            merge = torch.maximum if self._reductions[name] is dim_zero_max else torch.add
            setattr(self, name, merge(state, more))
