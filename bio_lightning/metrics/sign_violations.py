"""How often training contradicts the sign of a neuron."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from bio_lightning.functional._layer import ratio
from bio_lightning.metrics._sums import Seen, SumsMetric

__all__ = ["SignViolations"]


class SignViolations(SumsMetric):
    r"""Number of weights that moved past zero and were put back, in total and per synapse.

    .. math:: \text{corrected} = \sum_l v_l \qquad \text{per\_synapse} = \frac{\sum_l v_l}{\sum_l n_l}

    Each update adds one layer ``l`` of ``n`` synapses with ``v`` corrections. A weight that is put back at every step
    counts at every step, so that the second number, which layers of different size share, can exceed 1.

    Args:
        kwargs: Passed to :class:`torchmetrics.Metric`.

    Returns:
        From ``compute``, under ``corrected`` and ``per_synapse``: 0-dim float64 tensors; 0 as long as there is no
        synapse.

    Example:
        >>> violations = SignViolations()
        >>> violations.update(corrected=3, synapses=12)
        >>> {key: value.item() for key, value in violations.compute().items()}
        {'corrected': 3.0, 'per_synapse': 0.25}
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(columns=2, **kwargs)

    def update(self, corrected: Tensor | int, synapses: int) -> None:
        """Add one layer.

        Args:
            corrected: Number of corrections.
            synapses: Number of synapses in the layer.
        """
        self.add(self.observe(corrected, synapses))

    def observe(self, corrected: Tensor | int, synapses: int) -> Seen:
        """What ``update`` adds for the same arguments."""
        return self.seen([synapses, corrected])

    def compute(self) -> dict[str, Tensor]:
        """The numbers over all layers so far."""
        synapses, corrected = self.sums.unbind(-1)
        return {"corrected": corrected, "per_synapse": ratio(corrected, synapses, at_zero=0.0)}
