"""How many synapses are replaced."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from bio_lightning.functional._layer import ratio
from bio_lightning.metrics._sums import Seen, SumsMetric

__all__ = ["Turnover"]


class Turnover(SumsMetric):
    r"""Share of synapses that were replaced, in the last event and in all events together.

    .. math:: \text{fraction} = \frac{\sum_l r_l}{\sum_l n_l} \qquad
        \text{fraction\_total} = \frac{\sum_l R_l}{\sum_l n_l}

    Each update adds one layer ``l`` of ``n`` synapses, of which ``r`` were replaced in the last event and ``R`` since
    the start. A synapse that is replaced twice counts twice in the total, which can therefore exceed 1.

    Args:
        kwargs: Passed to :class:`torchmetrics.Metric`.

    Returns:
        From ``compute``, under ``fraction`` and ``fraction_total``: 0-dim float64 tensors; 0 as long as there is no
        synapse.

    Example:
        >>> turnover = Turnover()
        >>> turnover.update(replaced=1, replaced_total=6, synapses=8)
        >>> {key: value.item() for key, value in turnover.compute().items()}
        {'fraction': 0.125, 'fraction_total': 0.75}
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(columns=3, **kwargs)

    def update(self, replaced: Tensor | int, replaced_total: Tensor | int, synapses: int) -> None:
        """Add one layer.

        Args:
            replaced: Number of synapses replaced in the last event.
            replaced_total: Number of replacements in all events.
            synapses: Number of synapses in the layer.
        """
        self.add(self.observe(replaced, replaced_total, synapses))

    def observe(self, replaced: Tensor | int, replaced_total: Tensor | int, synapses: int) -> Seen:
        """What ``update`` adds for the same arguments."""
        return self.seen([synapses, replaced, replaced_total])

    def compute(self) -> dict[str, Tensor]:
        """The shares over all layers so far."""
        shares = ratio(self.sums[..., 1:], self.sums[..., :1], at_zero=0.0)
        return dict(zip(("fraction", "fraction_total"), shares.unbind(-1), strict=True))
