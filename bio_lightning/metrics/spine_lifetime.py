"""How long synapses live."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from bio_lightning.functional._layer import ratio
from bio_lightning.metrics._sums import Seen, SumsMetric

__all__ = ["SpineLifetime"]


class SpineLifetime(SumsMetric):
    r"""Mean lifetime of synapses, and the share of them that is replaced per step.

    .. math:: \text{steps} = \frac{\sum_e n_e \, \Delta t_e}{\sum_e r_e} \qquad
        \text{per\_step} = \frac{1}{\text{steps}}

    Each update adds one layer and one event ``e``, or several together: of ``n`` synapses, ``r`` were replaced, and all
    lived for :math:`\Delta t` steps. The steps that all synapses lived through, divided by the number of
    deaths, are the mean lifetime wherever turnover is steady (Little's law), whatever the distribution of lifetimes.
    The mean age of those that died would be too small: who lives long has not died yet.

    Args:
        kwargs: Passed to :class:`torchmetrics.Metric`.

    Returns:
        From ``compute``, 0-dim float64 tensors: ``steps``, > 0, infinite as long as nothing was replaced; ``per_step``,
        >= 0 and always finite, 0 as long as there is no synapse.

    Example:
        >>> lifetime = SpineLifetime()
        >>> lifetime.update(replaced=1, synapses=4, steps=100)
        >>> lifetime.update(replaced=1, synapses=4, steps=100)
        >>> {key: value.item() for key, value in lifetime.compute().items()}
        {'steps': 400.0, 'per_step': 0.0025}

    References:
        Loewenstein et al., Predicting the dynamics of network connectivity in the neocortex, Journal of Neuroscience
        35, 2015; Holtmaat et al., Transient and persistent dendritic spines in the neocortex in vivo, Neuron 45, 2005.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(columns=2, **kwargs)

    def update(self, replaced: Tensor | int, synapses: int, steps: Tensor | int) -> None:
        """Add one event in one layer, or several.

        Args:
            replaced: Number of synapses that were replaced. Where none was, give 0.
            synapses: Number of synapses in the layer.
            steps: Steps since the event before the first of these, or since the start; >= 0.

        Raises:
            ValueError: ``steps`` is out of range.
        """
        self.add(self.observe(replaced, synapses, steps))

    def observe(self, replaced: Tensor | int, synapses: int, steps: Tensor | int) -> Seen:
        """What ``update`` adds for the same arguments."""
        if not isinstance(steps, Tensor) and steps < 0:  # to look at a tensor would wait for its device
            raise ValueError(f"steps: got {steps!r}; allowed: a whole number >= 0")
        return self.seen([synapses * steps, replaced])

    def compute(self) -> dict[str, Tensor]:
        """The two numbers over all events so far."""
        lived, replaced = self.sums.unbind(-1)
        return {
            "steps": ratio(lived, replaced, at_zero=torch.inf),
            "per_step": ratio(replaced, lived, at_zero=0.0),
        }
