"""How old synapses are."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from bio_lightning.functional._layer import add_pieces, ratio
from bio_lightning.functional._masks import count, less
from bio_lightning.metrics._sums import Seen, SumsMetric

__all__ = ["SynapseSurvival"]


class SynapseSurvival(SumsMetric):
    r"""Share of today's synapses that are older than some number of steps, and their mean age.

    .. math:: \text{older\_than}_N = \frac{1}{n} \sum_i [t - b_i > N]

    The age of a synapse is the number of steps from its birth ``b`` to now, ``t``; it is born when training begins, and
    when it is replaced. All that has to be kept is one integer per weight: ``born[replaced] = step``. Every synapse
    counts once: updates with several layers give what one update with all of them would give. For another day,
    ``reset`` first.

    Args:
        older_than: Numbers of steps, >= 0; one or several.
        kwargs: Passed to :class:`torchmetrics.Metric`.

    Returns:
        From ``compute``, 0-dim float64 tensors: ``older_than_1000`` and so on, each a share in [0, 1]; ``age_mean``, in
        steps. All of them are 0 as long as there is no synapse.

    Raises:
        ValueError: ``older_than`` is out of range.

    Example:
        >>> born = torch.zeros(2, 2, dtype=torch.int64)
        >>> born[0, 0] = 50  # replaced
        >>> survival = SynapseSurvival(older_than=100)
        >>> survival.update(born, now=150)
        >>> {key: value.item() for key, value in survival.compute().items()}
        {'older_than_100': 0.75, 'age_mean': 137.5}

    References:
        Holtmaat et al., Transient and persistent dendritic spines in the neocortex in vivo, Neuron 45, 2005.
    """

    def __init__(self, older_than: int | Sequence[int] = (100, 1000), **kwargs: Any) -> None:
        limits = tuple(older_than) if isinstance(older_than, Sequence) else (older_than,)
        if not limits or not all(isinstance(steps, int) and steps >= 0 for steps in limits):
            raise ValueError(f"older_than: got {older_than!r}; allowed: whole numbers >= 0, at least one")
        super().__init__(columns=len(limits) + 2, settings=limits, **kwargs)
        self.older_than = limits

    def update(self, born: Tensor, now: int) -> None:
        """Add some synapses.

        Args:
            born: Step at which each was born, integer, <= ``now``; any shape.
            now: The present step.

        Raises:
            ValueError: ``born`` holds no integers: a mask is none, and halves would round late births.
        """
        self.add(self.observe(born, now))

    def observe(self, born: Tensor, now: int) -> Seen:
        """What ``update`` adds for the same arguments."""
        if born.is_floating_point() or born.dtype == torch.bool:
            raise ValueError(f"born: got {born.dtype}; allowed: an integer type")
        limits = [now - steps for steps in self.older_than]
        if born.dtype != torch.int32 or min(limits) < -(1 << 31) or max(limits) >= 1 << 31:
            born = born.to(torch.int64)  # comparing wraps around where the type is too small for a limit
        return self.seen(add_pieces(partial(_sums, limits=limits, now=now), born))

    def compute(self) -> dict[str, Tensor]:
        """The shares and the mean over all synapses so far."""
        names = [*(f"older_than_{steps}" for steps in self.older_than), "age_mean"]
        return dict(zip(names, ratio(self.sums[..., 1:], self.sums[..., :1], at_zero=0.0).unbind(-1), strict=True))


def _sums(born: Tensor, limits: Sequence[int], now: int) -> list[Tensor | int]:
    """How many synapses, how many were born before each limit, and the sum of all ages."""
    synapses = born.numel()
    return [synapses, *(count(less(born, limit)) for limit in limits), synapses * now - born.sum()]
