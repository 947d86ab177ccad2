"""Whether excitation and inhibition keep each other in check."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from bio_lightning.functional._layer import add_pieces, computing_dtype, ratio
from bio_lightning.functional._masks import count, surplus
from bio_lightning.metrics._sums import Seen, SumsMetric

__all__ = ["ExcitationInhibition"]


class ExcitationInhibition(SumsMetric):
    r"""Mean excitation and inhibition per synapse, their balance, and the share of excitatory synapses.

    .. math:: E = \frac{1}{n} \sum_i \max(w_i, 0) \qquad I = \frac{1}{n} \sum_i \max(-w_i, 0) \qquad
        \text{balance} = \frac{E - I}{E + I}

    Every synapse counts once: updates with several layers give what one update with all of them would give. This is the
    balance of weights, or of currents when all presynaptic neurons are equally active.

    Args:
        kwargs: Passed to :class:`torchmetrics.Metric`.

    Returns:
        From ``compute``, 0-dim float64 tensors: ``excitation`` and ``inhibition``, both >= 0; ``balance`` in [-1, 1],
        0 being balanced and 1 excitation alone; ``excitatory_fraction``, the share of positive ones among weights that
        are not 0. All of them are 0 as long as there is no such weight.

    Example:
        >>> balance = ExcitationInhibition()
        >>> balance.update(torch.tensor([3.0, 3.0, -2.0, 0.0]))
        >>> {key: round(value.item(), 3) for key, value in balance.compute().items()}
        {'excitation': 1.5, 'inhibition': 0.5, 'balance': 0.5, 'excitatory_fraction': 0.667}

    References:
        van Vreeswijk and Sompolinsky, Chaos in neuronal networks with balanced excitatory and inhibitory activity,
        Science 274, 1996; Rajan and Abbott, Eigenvalue spectra of random matrices for neural networks, Physical Review
        Letters 97, 2006, for the balance of weights.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(columns=5, **kwargs)

    def update(self, weight: Tensor) -> None:
        """Add some synapses.

        Args:
            weight: Signed weights, any shape.
        """
        self.add(self.observe(weight))

    def observe(self, weight: Tensor) -> Seen:
        """What ``update`` adds for the same arguments."""
        return self.seen(add_pieces(_sums, weight))

    def compute(self) -> dict[str, Tensor]:
        """The four numbers over all synapses so far."""
        synapses, difference, total, more_excitatory, signed = self.sums.unbind(-1)
        share = ratio(0.5 * (signed + more_excitatory), signed, at_zero=0.0)
        return {
            # where all have one sign, the one sum is exactly as far from 0 as the other
            "excitation": ratio(0.5 * (total + difference), synapses, at_zero=0.0),
            "inhibition": ratio(0.5 * (total - difference), synapses, at_zero=0.0),
            "balance": ratio(difference, total, at_zero=0.0),
            "excitatory_fraction": torch.where(total.isnan(), total, share),  # NaN has no sign
        }


def _sums(weight: Tensor) -> tuple[Tensor | int, ...]:
    """How many synapses, sums of weights and of their sizes, by how many more excite, and how many do either."""
    wide = weight.to(torch.float64, copy=True)
    signs = weight.to(computing_dtype(weight)).sign()
    return weight.numel(), wide.sum(), wide.abs_().sum(), surplus(signs), count(signs)
