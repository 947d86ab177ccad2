"""How fast each weight learns: one multiplier per synapse, applied once per optimizer step.

All mechanisms of a LightningModule share one store. What a mechanism keeps for a weight lies there under its own key,
so that one may read or reset what another wrote (a rejuvenated synapse loses its crystallization).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from bio_lightning.functional._layer import computing_dtype
from bio_lightning.synapses import Synapses

if TYPE_CHECKING:
    from bio_lightning.callbacks.mechanism import Mechanism
    from bio_lightning.session import Session

__all__ = ["Plasticity", "Store"]

#: Tensors by weight name, then by key.
Store = dict[str, dict[str, Tensor]]


class Plasticity:
    """The pass over gradients or updates.

    Args:
        session: Whose store and step counters count.
    """

    def __init__(self, session: Session) -> None:
        self._session = session
        self._snapshots: dict[str, Tensor] = {}

    def factor(
        self,
        synapses: Synapses,
        mechanisms: Iterable[Mechanism],
        weight: Tensor,
        step: int,
        *,
        stored_only: bool = False,
    ) -> Tensor | None:
        """Product of what the mechanisms do to a weight's learning rate at a step; None when none acts.

        Args:
            synapses: Which weight tensor.
            mechanisms: Those that act on it, in the library's order.
            weight: Its values before the optimizer step.
            step: Number of optimizer steps done so far.
            stored_only: Leave out what is drawn anew each step.
        """
        product: Tensor | None = None
        for mechanism in mechanisms:
            if stored_only and not mechanism.keeps_multiplier:
                continue
            if stored_only or mechanism.active(step):
                part = mechanism.factor(self._session, synapses, weight, step)
                if part is not None:
                    product = part if product is None else product * part
        return product

    @torch.no_grad()
    def scale_gradient(self, synapses: Synapses, mechanisms: Iterable[Mechanism], step: int) -> None:
        """Multiply the gradient by the factor."""
        weight = synapses.weight
        factor = self.factor(synapses, mechanisms, weight, step)
        assert weight.grad is not None  # noqa: S101 - the caller passes only weights with a gradient
        if factor is not None:
            weight.grad.mul_(factor)

    @torch.no_grad()
    def snapshot(self, synapses: Synapses) -> None:
        """Remember a weight before the optimizer moves it."""
        weight = synapses.weight
        held = self._snapshots.get(synapses.name)
        if held is None or held.shape != weight.shape or held.device != weight.device or held.dtype != weight.dtype:
            held = self._snapshots[synapses.name] = torch.empty_like(weight)
        held.copy_(weight)

    @torch.no_grad()
    def scale_update(self, synapses: Synapses, mechanisms: Iterable[Mechanism], step: int, share: float) -> None:
        """Let the weight move by factor times what the optimizer moved it: w - (1 - m) (w - w_old), exact for m = 1.

        Args:
            synapses: Which weight tensor.
            mechanisms: Those that act on it.
            step: Number of optimizer steps done before this one.
            share: Share of one synapse in its connection's step.
        """
        weight, before = synapses.weight, self._snapshots[synapses.name]
        factor = self.factor(synapses, mechanisms, before, step)
        if factor is None and share == 1:
            return
        dtype = computing_dtype(weight)
        factor = torch.ones((), dtype=dtype, device=weight.device) if factor is None else factor.to(dtype)
        weight.sub_((weight - before) * (1.0 - factor * share))

    def release(self) -> None:
        """Free the snapshots."""
        self._snapshots.clear()
